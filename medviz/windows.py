"""Windows that slide over an image, and a map made of the values of each."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from types import EllipsisType

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

_log = logging.getLogger("medviz")
_LEAST = 1e-3  # of the largest weight: a voxel that only edges of windows reach still gets a value
_SMALL = 4096  # voxels of a window: above it, one addition for each window is quicker than one index for each voxel
_AT_ONCE = 1 << 20  # voxels of windows that are added together, so that their indices stay small


def cut_out(image: Tensor, corners: Tensor, size: Sequence[int]) -> Tensor:
    """Return what is seen of an image `(C, *S)` through windows of `size` with their first voxels at `corners` (M, nd).

    Returns:
        `(M, C, *size)`.
    """
    return torch.stack([image[_box(corner, size)] for corner in corners.tolist()])


def _box(corner: Sequence[int], size: Sequence[int]) -> tuple[EllipsisType | slice, ...]:
    """Return where a window lies, along the last axes."""
    return (..., *(slice(c, c + s) for c, s in zip(corner, size, strict=True)))


def sliding_range(extent: int, wanted: int, first: int, end: int) -> tuple[int, int, int]:
    """Return where windows slide, along one axis, to look at the voxels from `first` to before `end`.

    Args:
        extent: of the image.
        wanted: size of a window.
        first: first voxel that is looked at.
        end: the one after the last.

    Returns:
        The first voxel of the windows' range, the one after its last, and a window's size.
    """
    edge, cut = (wanted - 1) // 2, min(wanted, extent)
    low = max(0, min(first - edge, extent - cut))
    return low, min(extent, max(end + edge, low + cut)), cut


@attrs.frozen(eq=False)
class Windows:
    """Windows of one size over a part of an image.

    Args:
        size: of a window, in voxels along each axis.
        corners: the first voxel of each window, `(M, nd)`.
        shape: of the image, `*S`.
    """

    size: tuple[int, ...]
    corners: Tensor
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.corners)

    def blend(self, values: Tensor, weight: Tensor) -> Tensor:
        """Return, for each voxel, the mean of the values of the windows over it, by their weights there.

        Args:
            values: one or more for each window, `(M, N)`.
            weight: of each voxel of a window, `size`, ≥ 0.

        Returns:
            `(N, *S)`, float64; NaN where there is no window.
        """
        values = values.cpu().double()
        weight = weight.cpu().double().clamp(min=float(weight.max()) * _LEAST)
        means = values.new_zeros((values.shape[1], *self.shape))
        for total, column in zip(means, values.T, strict=True):
            self._add(total, column, weight)
        weights = values.new_zeros(self.shape)
        self._add(weights, values.new_ones(len(values)), weight)
        return means.div_(weights)

    def _add(self, total: Tensor, values: Tensor, weight: Tensor) -> None:
        """Add values (M,) · `weight` to a `total` `(*S)` at the voxels of each window, always in the same order."""
        if weight.numel() > _SMALL:
            for corner, value in zip(self.corners.tolist(), values, strict=True):
                total[_box(corner, self.size)] += value * weight
            return
        strides = torch.tensor(total.stride(), device="cpu")
        inside = torch.ones(self.size, device="cpu").nonzero() @ strides
        flat, many = total.view(-1), max(1, _AT_ONCE // weight.numel())
        for first in range(0, len(values), many):
            some = slice(first, first + many)
            where = (self.corners[some].cpu() @ strides)[:, None] + inside
            flat.index_add_(0, where.flatten(), (values[some, None] * weight.flatten()).flatten())


def _leaves_gaps(starts: Sequence[int], size: int) -> bool:
    return any(later - start > size for start, later in itertools.pairwise(starts))


@attrs.frozen(eq=False)
class Grid:
    """Windows of one size at every combination of places along the axes, in the order of their first voxels.

    Args:
        size: of a window, in voxels along each axis.
        starts: the first voxels along each axis, ascending.
        shape: of the image, `*S`.
    """

    size: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]

    @classmethod
    def over(cls, shape: Sequence[int], size: Sequence[int], overlap: float, region: Sequence[tuple[int, int]]) -> Grid:
        """Place windows so that every voxel of `region` is hidden by windows all around it.

        Args:
            shape: of the image, `*S`.
            size: of a window; cut, and logged, where it is larger than the image.
            overlap: of neighbours, as a fraction of the size, in [0, 1).
            region: the first voxel and the one after the last, along each axis. Windows slide over it and half a
                window around it, or more where one window would not fit.
        """
        starts, sizes = [], []
        for extent, wanted, (first, end) in zip(shape, size, region, strict=True):
            low, high, cut = sliding_range(extent, wanted, first, end)
            step = max(1, int(round(cut * (1 - overlap), 6)))  # 10 · (1 - 0.8) is 1.9999… in binary
            starts.append(tuple(sorted({min(start, high - cut) for start in range(low, high - cut + step, step)})))
            sizes.append(cut)
        if tuple(sizes) != tuple(size):
            _log.info("the window of %s voxels is cut to %s, to fit the image", tuple(size), tuple(sizes))
        return cls(tuple(sizes), tuple(starts), tuple(shape))

    def __len__(self) -> int:
        return math.prod(self.counts)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many places there are along each axis, `*n`."""
        return tuple(len(starts) for starts in self.starts)

    def windows(self, chosen: Tensor | None = None) -> Windows:
        """Return the windows at the `chosen` places `(*n)`, True or False; None: at all."""
        places = (torch.ones(self.counts, dtype=torch.bool, device="cpu") if chosen is None else chosen).nonzero()
        corners = [torch.tensor(starts, device="cpu")[places[:, axis]] for axis, starts in enumerate(self.starts)]
        return Windows(self.size, torch.stack(corners, 1), self.shape)

    def every(self, step: int) -> Tensor:
        """Return the places `(*n)` of a coarser grid: every `step`-th along each axis, and the last.

        Where that would leave voxels between two windows, `step` is halved, for that axis, until it does not. The
        places for a `step` are among those for half of it.
        """
        chosen = torch.ones(self.counts, dtype=torch.bool, device="cpu")
        for axis, (starts, size) in enumerate(zip(self.starts, self.size, strict=True)):
            along = step
            while along > 1 and _leaves_gaps([*starts[::along], starts[-1]], size):
                along //= 2
            kept = torch.zeros(len(starts), dtype=torch.bool, device="cpu")
            kept[::along] = kept[-1] = True
            chosen &= kept.view(-1, *[1] * (len(self.size) - 1 - axis))
        return chosen

    def holding(self, voxels: Tensor) -> Tensor:
        """Return the places `(*n)` of the windows that hold one or more of the `voxels` `(*S)`, True or False."""
        for axis, (starts, size) in enumerate(zip(self.starts, self.size, strict=True)):
            first = torch.tensor(starts, device="cpu")
            voxels = _any(voxels, axis, first, first + size)
        return voxels

    def held(self, chosen: Tensor) -> Tensor:
        """Return the voxels `(*S)` that one or more of the windows at the `chosen` places `(*n)` hold."""
        for axis, (starts, size, extent) in enumerate(zip(self.starts, self.size, self.shape, strict=True)):
            first, voxel = torch.tensor(starts, device="cpu"), torch.arange(extent, device="cpu")
            over = [torch.searchsorted(first, v, right=True) for v in (voxel - size, voxel)]
            chosen = _any(chosen, axis, *over)
        return chosen


def _any(flags: Tensor, axis: int, first: Tensor, end: Tensor) -> Tensor:
    """Return, for each range along an axis, whether a flag is set in it."""
    sums = F.pad(flags, [0, 0] * (flags.ndim - 1 - axis) + [1, 0]).cumsum(axis, dtype=torch.int32)
    return sums.index_select(axis, end) > sums.index_select(axis, first)


@attrs.frozen
class Crop:
    """A part of a grid: call it to cut the part out, and `inverse` to put it back among zeros.

    Args:
        slices: the part, along the last axes.
        shape: of the whole grid, along the same axes.
    """

    slices: tuple[slice, ...]
    shape: tuple[int, ...]

    def __call__(self, whole: Tensor) -> Tensor:
        """Return the part of `whole` `(…, *shape)`."""
        return whole[self._where()]

    def inverse(self, part: Tensor) -> Tensor:
        """Return `part` in its place in a grid of zeros `(…, *shape)`."""
        whole = part.new_zeros((*part.shape[: -len(self.shape)], *self.shape))
        whole[self._where()] = part
        return whole

    def _where(self) -> tuple[EllipsisType | slice, ...]:
        return (..., *self.slices)
