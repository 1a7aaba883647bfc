"""Fade to zero towards the middle of the window."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from medviz.hookspecs import Occluder, hookimpl
from medviz.validators import number


@attrs.frozen(eq=False)
class Gaussian(Occluder):
    """Multiply by one less a Gaussian: zero in the middle, unchanged at the corners; blend by the Gaussian.

    The middle is voxel `size // 2` along each axis: where the size is even, the first corner alone is quite unchanged.

    Source: MONAI's documented occlusion mode of the same name. Differs: overlapping windows are blended by the very
    Gaussian that hides them, as its documentation says.

    Args:
        sigma: standard deviation, as a fraction of the window along each axis; > 0.
    """

    sigma: float = attrs.field(default=0.25, validator=number(above=0))

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        return patches * (1 - _bell(tuple(patches.shape[2:]), self.sigma)).to(patches)

    @hookimpl
    def blend_weight(self, mask_size: tuple[int, ...]) -> Tensor:
        return _bell(mask_size, self.sigma)


def _bell(size: tuple[int, ...], sigma: float) -> Tensor:
    """Return a Gaussian over the window, its integral over each voxel, scaled to [0, 1]."""
    bell = torch.ones((), dtype=torch.float64, device="cpu")
    for extent in size:
        offset = torch.arange(extent, dtype=torch.float64, device="cpu") - extent // 2
        scale = 1 / (math.sqrt(2) * sigma * extent)
        profile = 0.5 * ((scale * (offset + 0.5)).erf() - (scale * (offset - 0.5)).erf())
        bell = bell[..., None] * profile
    low, high = bell.min(), bell.max()
    return (bell - low) / (high - low) if high > low else torch.ones_like(bell)
