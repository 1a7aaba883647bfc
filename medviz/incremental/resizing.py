"""Interpolation to another size: each axis is multiplied by a matrix, of which a box needs a part."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medviz.finite import all_finite
from medviz.incremental.boxes import Box
from medviz.incremental.copying import parts, rectangles
from medviz.incremental.geometry import Size, Starts
from medviz.incremental.layout import order
from medviz.incremental.windows import each_axis

_LAYERS = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
_LONGEST = 2048  # voxels of an axis: the matrix of a longer one would take more memory than the map is worth


@attrs.frozen(eq=False)
class _Axis:
    """An axis of n voxels that becomes one of m.

    Args:
        weights: how much of each voxel goes into each new one, `(n, m)`.
        first, last: from where to where the voxels lie that each new one is made of, m each; neither ever falls.
            Voxels with a weight of 0 are among them, for an infinite value makes itself felt through it.
    """

    weights: Tensor
    first: Starts
    last: Starts

    @classmethod
    def of(cls, ones: Tensor, resize: Callable[[Tensor], Tensor]) -> _Axis:
        """Ask PyTorch itself what becomes of `(n, n)`, n maps of which each has a single voxel that is 1: `(n, m)`."""
        used = resize(ones.masked_fill(ones > 0, float("nan"))).isnan().int()
        first, last = used.argmax(0), len(ones) - 1 - used.flip(0).argmax(0)
        return cls(resize(ones), first.numpy(force=True), last.numpy(force=True))

    def reach(self, starts: Starts, size: int) -> tuple[Starts, Starts]:
        """Return the new voxels that `size` old ones from each of `starts` on go into: the first, and behind the last.

        The old ones may lie outside of the map.
        """
        ends = np.minimum(starts + size, len(self.weights))
        return np.searchsorted(self.last, np.maximum(starts, 0)), np.searchsorted(self.first, ends - 1, "right")

    def need(self, starts: Starts, size: int) -> int:
        """Return of how many old voxels `size` new ones from any of `starts` on are made, at most."""
        return int((self.last[starts + size - 1] - self.first[starts]).max()) + 1


@attrs.frozen
class Resized:
    """An interpolation.

    Args:
        axes: what becomes of each axis.
        run: the operation, on whole maps.
    """

    axes: Sequence[_Axis]
    run: Callable[[Tensor], Tensor]

    def reach(self, box: Box) -> tuple[Starts, Size]:
        """Return the boxes of the output that a box of the input can reach: their first voxels and size."""
        ends = [axis.reach(starts, n) for axis, starts, n in zip(self.axes, box.reach.T, box.size, strict=True)]
        size = tuple(max(1, int((end - first).max())) for first, end in ends)
        return np.stack([first for first, _ in ends], 1), size

    def __call__(self, box: Box, starts: Starts, size: Size) -> Tensor:
        """Return the output inside of the boxes, `(M, C, *size)`."""
        need = [axis.need(new, n) for axis, new, n in zip(self.axes, starts.T, size, strict=True)]
        first = np.stack([axis.first[new] for axis, new in zip(self.axes, starts.T, strict=True)], 1)
        where = np.minimum(first, np.subtract(box.shape, need))
        block = box.gather(where, need)
        if not all_finite(block):  # a sum of products would carry it along the whole axis
            return parts(self.run(box.whole()), starts, size)
        made = block.to(self.axes[0].weights.dtype)
        with torch.autocast(block.device.type, enabled=False):
            for i, axis in enumerate(self.axes):
                weights = rectangles(axis.weights, np.stack([where[:, i], starts[:, i]], 1), (need[i], size[i]))
                along = torch.einsum("m...i,mij->m...j", made.movedim(i + 2, -1), weights)
                made = along.movedim(-1, i + 2)
        return made.contiguous(memory_format=order(block))


def of_module(module: nn.Module, box: Box) -> Resized | None:
    """Return what a layer makes of a map; None for what has no rule."""
    if type(module) not in _LAYERS:
        return None
    up: Any = module
    recompute = getattr(up, "recompute_scale_factor", None)  # a layer of an old file has none
    return interpolation(box, up.size, up.scale_factor, up.mode, up.align_corners, recompute)


def interpolation(
    box: Box,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Resized | None:
    """Return what `torch.nn.functional.interpolate` makes of a map; None where it has no rule."""
    if antialias or max(box.shape) > _LONGEST:
        return None
    how = functools.partial(
        F.interpolate,
        mode=mode,
        align_corners=align_corners,
        recompute_scale_factor=recompute_scale_factor,
    )
    dtype = torch.float64 if box.block.dtype == torch.float64 else torch.float32

    def axis(i: int, n: int) -> _Axis:
        along = functools.partial(how, size=_along(i, size, box, 1), scale_factor=_along(i, scale_factor, box, 1.0))
        shape = [1, n, *(n if i == j else 1 for j in range(len(box.shape)))]
        ones = torch.eye(n, dtype=dtype, device=box.block.device)
        return _Axis.of(ones, lambda maps: along(maps.reshape(shape)).reshape(n, -1))

    axes = [axis(i, n) for i, n in enumerate(box.shape)]
    return Resized(axes, functools.partial(how, size=size, scale_factor=scale_factor))


def _along(axis: int, value: Any, box: Box, elsewhere: float) -> list[Any] | None:
    """Return what an argument says of one axis, and `elsewhere` for the other ones."""
    if value is None:
        return None
    return [one if i == axis else elsewhere for i, one in enumerate(each_axis(value, len(box.shape)))]
