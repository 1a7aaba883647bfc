"""How a map gets to the size of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from medviz.tensors import resize

__all__ = ["default_upsampler"]


def default_upsampler(spatial_size: Sequence[int], align_corners: bool = False) -> Callable[[Tensor], Tensor]:
    """Return a function that resizes `(B, K, *s)` to `spatial_size`, linearly along each axis.

    Args:
        spatial_size: the image's `*S`, 1 to 3 axes.
        align_corners: let the centres of the corner voxels coincide, and not the outer borders.

    Raises:
        ValueError: another number of axes.
    """
    if not 1 <= len(spatial_size) <= 3:
        raise ValueError(f"`spatial_size` has {len(spatial_size)} axes, {tuple(spatial_size)}; expected 1 to 3.")
    return lambda x: resize(x, spatial_size, align_corners)
