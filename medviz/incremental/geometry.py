"""Where boxes lie: whole numbers, for the boxes of all copies at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Size = tuple[int, ...]
Starts = npt.NDArray[np.int64]  # the first voxel of each box along each axis, (M, nd); it may lie outside of the map


def union(reaches: Sequence[Starts], sizes: Sequence[Size]) -> tuple[Starts, Size]:
    """Return the reach and the one size of boxes that hold all of several ones."""
    low = np.minimum.reduce(reaches)
    high = np.maximum.reduce([reach + size for reach, size in zip(reaches, sizes, strict=True)])
    return low, _largest(high - low)


def kept(reach: Starts, size: Size, shape: Size, growth: float) -> tuple[Starts, Size]:
    """Return the middle of boxes that fill more than `growth` of a map of `shape` along an axis: reach and size."""
    cut = tuple(min(n, max(1, math.floor(growth * whole))) for n, whole in zip(size, shape, strict=True))
    left = [(n - k) // 2 for n, k in zip(size, cut, strict=True)]
    return np.where(np.less(cut, shape), reach + left, 0), cut


def within(reach: Starts, size: Size, shape: Size) -> tuple[Starts, Size]:
    """Return the part of boxes that lies in a map of `shape`: reach and size, which is that of the largest part."""
    low = np.maximum(reach, 0)
    return low, tuple(max(1, n) for n in _largest(np.minimum(reach + size, shape) - low))


def inside(reach: Starts, size: Size, shape: Size) -> Starts:
    """Return the first voxels of boxes that are moved into a map of `shape`."""
    moved: Starts = np.minimum(np.maximum(reach, 0), np.subtract(shape, size))
    return moved


def fraction(size: Size, shape: Size) -> float:
    """Return how much of a map a box fills."""
    return math.prod(size) / math.prod(shape)


def overhang(starts: Starts, size: Sequence[int], shape: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return how far any box reaches out of a map of `shape`, before and after it along each axis."""
    before, after = (-starts).max(0), (starts + size).max(0) - shape
    return np.maximum(before, 0).tolist(), np.maximum(after, 0).tolist()


def groups(offsets: Starts) -> Iterator[tuple[list[int], Any]]:
    """Yield each offset between boxes, and the rows that have it: all but those at the border have the same."""
    if (offsets == offsets[:1]).all():
        yield offsets[0].tolist(), slice(None)
        return
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, offset in enumerate(map(tuple, offsets.tolist())):
        rows.setdefault(offset, []).append(row)
    for offset, which in rows.items():
        yield list(offset), which[0] if len(which) == 1 else which


def meeting(
    offset: Sequence[int], inner: Sequence[int], outer: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where an inner box at `offset` meets the outer one: in its own voxels, and in the outer's."""
    source, target = [], []
    for o, i, n in zip(offset, inner, outer, strict=True):
        low, high = max(o, 0), max(0, min(o + i, n))
        source.append(slice(low - o, max(low, high) - o))
        target.append(slice(low, max(low, high)))
    return tuple(source), tuple(target)


def _largest(sizes: Starts) -> Size:
    return tuple(sizes.max(0).tolist())
