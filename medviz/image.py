"""An image with its place in the world, and the batches that explainers work on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor


def _as_data(data: Any) -> Tensor:
    tensor = torch.as_tensor(data).to(torch.float32)
    if tensor.ndim not in (3, 4) or not tensor.numel():
        raise ValueError(f"`data` has shape {tuple(tensor.shape)}; expected (C, H, W) or (C, D, H, W), not empty.")
    return tensor.contiguous()


def as_affine(affine: Any, shape: tuple[int, ...] = (4, 4)) -> np.ndarray | None:
    """Return `affine` as a float64 array of `shape`, or None.

    Raises:
        ValueError: another shape, a value that is not finite, or a matrix without an inverse.
    """
    if affine is None:
        return None
    array = np.asarray(affine, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all() or not np.all(np.linalg.det(array[..., :3, :3])):
        raise ValueError(f"`affine` must be an invertible, finite {shape} matrix; got shape {array.shape}:\n{array}")
    return array


@attrs.frozen(eq=False)
class Image:
    """One image, `(C, *S)`, as it lies in its file.

    Args:
        data: values `(C, *S)`, turned into float32.
        affine: (4, 4), from voxel indices to RAS+ millimetres; None: not known. A 2-D image has its third axis at 0.
        path: the file that it was read from.
    """

    data: Tensor = attrs.field(converter=_as_data)
    affine: np.ndarray | None = attrs.field(default=None, converter=as_affine)
    path: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """The voxel size in mm along each spatial axis, or None where there is no affine."""
        return None if self.affine is None else spacing_of(self.affine, self.data.ndim - 1)


def spacing_of(affine: np.ndarray, ndim: int) -> tuple[float, ...]:
    """Return the length in mm of a step along each of the first `ndim` voxel axes of `affine` (4, 4)."""
    return tuple(float(length) for length in np.linalg.norm(affine[:3, :ndim], axis=0))


def as_batch(image: Any, affine: Any = None) -> tuple[Tensor, np.ndarray | None]:
    """Return the batch `(B, C, *S)` and the affines (B, 4, 4), or None, of what a user calls an image.

    Args:
        image: a tensor or array `(B, C, *S)`, a MetaTensor (its affine is kept), an `Image`, or several of one shape.
        affine: (4, 4) for all or (B, 4, 4); replaces that of the image.

    Raises:
        TypeError: not an image, or integers.
        ValueError: an empty batch, another number of axes, values that are not finite, or images of several shapes.
    """
    if isinstance(image, Image):
        image = [image]
    if isinstance(image, Sequence) and image and all(isinstance(item, Image) for item in image):
        shapes = {tuple(item.data.shape) for item in image}
        if len(shapes) > 1:
            raise ValueError(f"the images of a batch must have one shape; got {sorted(shapes)}.")
        if affine is None and all(item.affine is not None for item in image):
            affine = np.stack([item.affine for item in image])
        batch = torch.stack([item.data for item in image])
    elif isinstance(image, Tensor | np.ndarray):
        affine = getattr(image, "affine", None) if affine is None else affine
        batch = torch.as_tensor(image).detach()
        batch = batch.as_subclass(Tensor) if type(batch) is not Tensor else batch  # a MetaTensor becomes plain
    else:
        raise TypeError(f"`image` is a {type(image).__name__}; expected a tensor (B, C, *S) or medviz.Image.")
    _check(batch)
    if affine is not None:
        affine = np.asarray(affine, dtype=np.float64)
        affine = as_affine(np.broadcast_to(affine, (len(batch), 4, 4)) if affine.ndim == 2 else affine, (len(batch), 4, 4))
    return batch, affine


def _check(batch: Tensor) -> None:
    if not batch.is_floating_point():
        raise TypeError(f"`image` holds {batch.dtype}; networks need floating point: image.float().")
    if batch.ndim not in (4, 5):
        raise ValueError(
            f"`image` has shape {tuple(batch.shape)}; expected (B, C, H, W) or (B, C, D, H, W). "
            "Add a missing batch axis with image[None]."
        )
    if not batch.numel():
        raise ValueError(f"`image` is empty, its shape is {tuple(batch.shape)}.")
    if not torch.isfinite(batch).all():
        raise ValueError(f"`image` holds {int((~torch.isfinite(batch)).sum())} values that are NaN or infinite.")
