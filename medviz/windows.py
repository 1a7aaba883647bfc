"""Windows that slide over an image, and a map made of the values of each."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from types import EllipsisType

import attrs
import torch
from torch import Tensor

_log = logging.getLogger("medviz")
_LEAST = 1e-3  # of the largest weight: a voxel that only edges of windows reach still gets a value


def cut_out(image: Tensor, corners: Tensor, size: Sequence[int]) -> Tensor:
    """Return what is seen of an image `(C, *S)` through windows of `size` with their first voxels at `corners` (M, nd).

    Returns:
        `(M, C, *size)`.
    """
    return torch.stack([image[_box(corner, size)] for corner in corners.tolist()])


def _box(corner: Sequence[int], size: Sequence[int]) -> tuple[EllipsisType | slice, ...]:
    """Return where a window lies, along the last axes."""
    return (..., *(slice(c, c + s) for c, s in zip(corner, size, strict=True)))


def around(extent: int, wanted: int, first: int, end: int) -> tuple[int, int, int]:
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

    @classmethod
    def over(
        cls, shape: Sequence[int], size: Sequence[int], overlap: float, region: Sequence[tuple[int, int]]
    ) -> Windows:
        """Place windows so that every voxel of `region` is hidden by windows all around it.

        Args:
            shape: of the image.
            size: of a window; cut, and logged, where it is larger than the image.
            overlap: of neighbours, as a fraction of the size, in [0, 1).
            region: the first voxel and the one after the last, along each axis. Windows slide over it and half a
                window around it, or more where one window would not fit.
        """
        starts, sizes = [], []
        for extent, wanted, (first, end) in zip(shape, size, region, strict=True):
            low, high, cut = around(extent, wanted, first, end)
            step = max(1, int(round(cut * (1 - overlap), 6)))  # 10 · (1 - 0.8) is 1.9999… in binary
            starts.append(sorted({min(start, high - cut) for start in range(low, high - cut + step, step)}))
            sizes.append(cut)
        if tuple(sizes) != tuple(size):
            _log.info("the window of %s voxels is cut to %s, to fit the image", tuple(size), tuple(sizes))
        return cls(tuple(sizes), torch.tensor(list(itertools.product(*starts))), tuple(shape))

    def __len__(self) -> int:
        return len(self.corners)

    def box(self, window: int) -> tuple[EllipsisType | slice, ...]:
        """Return where a window lies, as an index of the last axes."""
        return _box(self.corners[window].tolist(), self.size)

    def blend(self, values: Tensor, weight: Tensor) -> Tensor:
        """Return, for each voxel, the mean of the values of the windows over it, by their weights there.

        Args:
            values: one or more for each window, `(M, N)`.
            weight: of each voxel of a window, `size`, ≥ 0.

        Returns:
            `(N, *S)`, float64; NaN where there is no window.
        """
        values = values.double()
        weight = weight.double().clamp(min=float(weight.max()) * _LEAST).to(values.device)
        total = values.new_zeros((values.shape[1], *self.shape))
        weights = values.new_zeros(self.shape)
        for i, value in enumerate(values):
            total[self.box(i)] += value.reshape(-1, *[1] * weight.ndim) * weight
            weights[self.box(i)] += weight
        return total / weights


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
