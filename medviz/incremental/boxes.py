"""The part of a feature map that a patch has changed, and the clean map around it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

Starts = list[list[int]]


@attrs.frozen(eq=False)
class Box:
    """M copies of a clean map, each changed inside of one box; all boxes have one size.

    Args:
        clean: the map, `(1, C, *S)`.
        block: what stands in the boxes, `(M, C, *L)`.
        starts: the first voxel of each box along each axis, M × nd.
    """

    clean: Tensor
    block: Tensor
    starts: Starts

    @property
    def size(self) -> tuple[int, ...]:
        """The size of the boxes, `*L`."""
        return tuple(self.block.shape[2:])

    def with_block(self, clean: Tensor, block: Tensor) -> Box:
        """Return a box at the same place in another map."""
        return Box(clean, block, self.starts)

    def whole(self) -> Tensor:
        """Return the M whole maps, `(M, C, *S)`."""
        maps = self.clean.expand(len(self.block), *self.clean.shape[1:]).clone()
        for one, block, start in zip(maps, self.block, self.starts, strict=True):
            one[_at(start, self.size)] = block
        return maps

    def gather(self, starts: Starts, size: Sequence[int], margin: Sequence[int], outside: float) -> Tensor:
        """Return other, larger boxes of the changed maps, `(M, C, *size)`.

        Args:
            starts: their first voxels, which may lie up to `margin` before the map.
            size: theirs.
            margin: how far along each axis they may reach out of the map, on both sides.
            outside: the value there.
        """
        padded = self.clean
        if any(margin):
            padded = F.pad(padded, [m for m in reversed(margin) for _ in (0, 1)], value=outside)
        out = self.block.new_empty((len(starts), self.clean.shape[1], *size))
        for one, start, block, inner in zip(out, starts, self.block, self.starts, strict=True):
            one.copy_(padded[0][_at([s + m for s, m in zip(start, margin, strict=True)], size)])
            offset = [i - s for i, s in zip(inner, start, strict=True)]
            source, target = _overlap(offset, self.size, size)
            one[target] = block[source]
        return out

    def clean_block(self) -> Tensor:
        """Return what stands at the place of the boxes in the clean map, `(M, C, *L)`."""
        return torch.stack([self.clean[0][_at(start, self.size)] for start in self.starts])


def union(boxes: Sequence[Box], shape: Sequence[int]) -> tuple[Starts, tuple[int, ...]]:
    """Return the starts and the one size of boxes that hold all of `boxes`, inside of maps of `shape`."""
    axes = range(len(shape))
    low = [[min(box.starts[i][a] for box in boxes) for a in axes] for i in range(len(boxes[0].starts))]
    high = [[max(box.starts[i][a] + box.size[a] for box in boxes) for a in axes] for i in range(len(low))]
    size = tuple(max(h[a] - s[a] for h, s in zip(high, low, strict=True)) for a in axes)
    return [[min(s[a], shape[a] - size[a]) for a in axes] for s in low], size


def fraction(size: Sequence[int], shape: Sequence[int]) -> float:
    """Return how much of a map a box fills."""
    return math.prod(size) / math.prod(shape)


def _at(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return (slice(None), *(slice(s, s + n) for s, n in zip(start, size, strict=True)))


def _overlap(
    offset: Sequence[int], inner: Sequence[int], outer: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where an inner box at `offset` meets the outer one: in its own voxels, and in the outer's."""
    source, target = [slice(None)], [slice(None)]
    for o, i, n in zip(offset, inner, outer, strict=True):
        low, high = max(o, 0), max(0, min(o + i, n))
        source.append(slice(low - o, max(low, high) - o))
        target.append(slice(low, max(low, high)))
    return tuple(source), tuple(target)
