"""The part of a feature map that a patch has changed, and the clean map around it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, ...]
Starts = list[list[int]]
Margin = Sequence[tuple[int, int]]


@attrs.frozen(eq=False)
class Box:
    """M copies of a clean map, each changed inside of one box; all boxes have one size.

    Args:
        clean: the map, `(1, C, *S)`; on the meta device where nobody will look at it.
        block: what stands in the boxes, `(M, C, *L)`.
        reach: the first voxel along each axis that each patch can have changed, M × nd; it may lie outside of the map,
            into which the boxes are moved.
    """

    clean: Tensor
    block: Tensor
    reach: Starts

    @property
    def size(self) -> Size:
        """The size of the boxes, `*L`."""
        return tuple(self.block.shape[2:])

    @property
    def shape(self) -> Size:
        """The size of the whole map, `*S`."""
        return tuple(self.clean.shape[2:])

    @property
    def starts(self) -> Starts:
        """The first voxel of each box along each axis, M × nd."""
        return inside(self.reach, self.size, self.shape)

    def whole(self) -> Tensor:
        """Return the M whole maps, `(M, C, *S)`."""
        maps = self.clean.repeat(len(self.block), *[1] * (self.clean.ndim - 1))
        self._put(maps, [[0] * len(self.shape)] * len(self.starts))
        return maps

    def outline(self) -> Tensor:
        """Return a tensor of the size, type and device of the M whole maps, without their values and memory."""
        return self.block.new_empty(()).expand(len(self.block), *self.clean.shape[1:])

    def gather(self, starts: Starts, size: Sequence[int], margin: Margin | None = None, outside: float = 0.0) -> Tensor:
        """Return other boxes of the changed maps, `(M, C, *size)`.

        Args:
            starts: their first voxels, which may lie before the map, as far as `margin` says.
            size: theirs.
            margin: how far along each axis they may reach out of the map, before and after it.
            outside: the value there.
        """
        out = cut(self.clean, starts, size, margin, outside)
        self._put(out, starts)
        return out

    def change(self) -> Tensor:
        """Return what the boxes have added to the clean map, `(M, C, *L)`."""
        return self.block - cut(self.clean, self.starts, self.size)

    def _put(self, out: Tensor, starts: Starts) -> None:
        """Write the blocks into larger boxes with their first voxels at `starts`, or smaller ones."""
        for offset, rows in _together(self.starts, starts):
            source, target = _overlap(offset, self.size, out.shape[2:])
            there, here = (rows, slice(None), *target), (rows, slice(None), *source)
            out[there] = self.block[here]


def cut(
    clean: Tensor, starts: Starts, size: Sequence[int], margin: Margin | None = None, outside: float = 0.0
) -> Tensor:
    """Return boxes of one map `(1, C, *S)`: `(M, C, *size)`; for `margin` and `outside` see `Box.gather`."""
    if clean.is_cuda:  # one kernel, and not one for each box
        return _cut_by_index(clean, starts, size, margin or (), outside)
    out = clean.new_empty(len(starts), clean.shape[1], *size)
    for box, start in zip(out, starts, strict=True):
        _cut_into(box, clean[0], start, outside)
    return out


def parts(maps: Tensor, starts: Starts, size: Sequence[int]) -> Tensor:
    """Return one box of each of M maps: `(M, C, *size)`."""
    return torch.stack([one[_at(start, size)] for one, start in zip(maps, starts, strict=True)])


def _cut_into(box: Tensor, clean: Tensor, start: Sequence[int], outside: float) -> None:
    """Fill one box `(C, *L)` with what a map `(C, *S)` holds there."""
    target, source = _overlap([-s for s in start], clean.shape[1:], box.shape[1:])
    if any(part.stop - part.start < n for part, n in zip(source, box.shape[1:], strict=True)):
        box.fill_(outside)
    there, here = (slice(None), *source), (slice(None), *target)
    box[there] = clean[here]


def _cut_by_index(clean: Tensor, starts: Starts, size: Sequence[int], margin: Margin, outside: float) -> Tensor:
    if any(map(any, margin)):
        clean = F.pad(clean, [m for both in reversed(margin) for m in both], value=outside)
        starts = [[s + low for s, (low, _) in zip(start, margin, strict=True)] for start in starts]
    views = clean[0]
    for axis, n in enumerate(size):
        views = views.unfold(1 + axis, n, 1)
    which = (slice(None), *torch.tensor(starts, device=clean.device).T)
    return views[which].movedim(1, 0).contiguous()


def union(boxes: Sequence[Box]) -> tuple[Starts, Size]:
    """Return the reach and the one size of boxes that hold all of `boxes`."""
    axes = range(len(boxes[0].size))
    low = [[min(box.reach[i][a] for box in boxes) for a in axes] for i in range(len(boxes[0].reach))]
    high = [[max(box.reach[i][a] + box.size[a] for box in boxes) for a in axes] for i in range(len(low))]
    return low, tuple(max(h[a] - s[a] for h, s in zip(high, low, strict=True)) for a in axes)


def kept(reach: Starts, size: Sequence[int], shape: Sequence[int], growth: float) -> tuple[Starts, Size]:
    """Return the middle of boxes that fill more than `growth` of a map of `shape` along an axis: reach and size."""
    cut = tuple(min(n, max(1, math.floor(growth * whole))) for n, whole in zip(size, shape, strict=True))
    axes = list(zip(size, cut, shape, strict=True))
    return [[s + (n - k) // 2 if k < w else 0 for s, (n, k, w) in zip(r, axes, strict=True)] for r in reach], cut


def within(reach: Starts, size: Sequence[int], shape: Sequence[int]) -> tuple[Starts, Size]:
    """Return the part of boxes that lies in a map of `shape`: reach and size, which is that of the largest part."""
    low = [[max(r, 0) for r in start] for start in reach]
    high = [[min(r + n, w) for r, n, w in zip(start, size, shape, strict=True)] for start in reach]
    return low, tuple(max(1, *(h[a] - s[a] for s, h in zip(low, high, strict=True))) for a in range(len(size)))


def inside(reach: Starts, size: Sequence[int], shape: Sequence[int]) -> Starts:
    """Return the first voxels of boxes that are moved into a map of `shape`."""
    return [[min(max(r, 0), w - n) for r, n, w in zip(start, size, shape, strict=True)] for start in reach]


def fraction(size: Sequence[int], shape: Sequence[int]) -> float:
    """Return how much of a map a box fills."""
    return math.prod(size) / math.prod(shape)


def _at(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return (slice(None), *(slice(s, s + n) for s, n in zip(start, size, strict=True)))


def _together(inner: Starts, outer: Starts) -> Iterator[tuple[list[int], Any]]:
    """Yield each offset between boxes, and the rows that have it: all but those at the border have the same."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, (i, o) in enumerate(zip(inner, outer, strict=True)):
        rows.setdefault(tuple(a - b for a, b in zip(i, o, strict=True)), []).append(row)
    for offset, which in rows.items():
        yield list(offset), slice(None) if len(which) == len(inner) else which[0] if len(which) == 1 else which


def _overlap(
    offset: Sequence[int], inner: Sequence[int], outer: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where an inner box at `offset` meets the outer one: in its own voxels, and in the outer's."""
    source, target = [], []
    for o, i, n in zip(offset, inner, outer, strict=True):
        low, high = max(o, 0), max(0, min(o + i, n))
        source.append(slice(low - o, max(low, high) - o))
        target.append(slice(low, max(low, high)))
    return tuple(source), tuple(target)
