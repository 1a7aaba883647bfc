"""Copy boxes out of maps and into them.

Box after box, each a plain copy of memory; on a GPU all of them in one kernel, by an index that is copied there without
a wait: it would otherwise stand still once for each box.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medviz.incremental.geometry import Starts, groups, meeting, overhang
from medviz.incremental.layout import empty


def cut(clean: Tensor, starts: Starts, size: Sequence[int], outside: float = 0.0) -> Tensor:
    """Return boxes of one map `(1, C, *S)`: `(M, C, *size)`.

    Args:
        clean: the map.
        starts: their first voxels, which may lie outside of it.
        size: theirs.
        outside: the value outside of the map.
    """
    if _by_index(clean):
        return _cut_by_index(clean, starts, size, outside)
    boxes = empty(clean, len(starts), size)
    for box, start in zip(boxes, starts.tolist(), strict=True):
        _cut_into(box, clean[0], start, outside)
    return boxes


def cut_changed(
    clean: Tensor, block: Tensor, at: Starts, starts: Starts, size: Sequence[int], outside: float = 0.0
) -> Tensor:
    """Return the same boxes of M copies of the map, each changed in one place.

    Args:
        clean, starts, size, outside: as for `cut`.
        block: what stands in the changed places, `(M, C, *L)`.
        at: their first voxels.
    """
    offsets = at - starts
    if not _by_index(clean) or (offsets == offsets[:1]).all():
        boxes = cut(clean, starts, size, outside)
        put(boxes, block, offsets)
        return boxes
    # a kernel writes whole blocks, so that there must be room for them
    low, high = overhang(offsets, block.shape[2:], size)
    room = [n + a + b for n, a, b in zip(size, low, high, strict=True)]
    boxes = cut(clean, starts - low, room, outside)
    put(boxes, block, offsets + low)
    for axis, (first, n) in enumerate(zip(low, size, strict=True), start=2):
        boxes = boxes.narrow(axis, first, n)
    return boxes


def put(maps: Tensor, block: Tensor, at: Starts) -> None:
    """Write one block `(M, C, *L)` into each of M maps `(M, C, *S)`; what hangs over their border is left out."""
    alike, size = list(groups(at)), block.shape[2:]
    if len(alike) > 1 and _by_index(maps) and not any(map(any, overhang(at, size, maps.shape[2:]))):
        # not through views of each place, which overlap: deterministic algorithms would write to copies of them
        maps.movedim(1, -1)[_voxels(at, size, maps.device)] = block.to(maps).movedim(1, -1)
        return
    for offset, rows in alike:
        source, target = meeting(offset, size, maps.shape[2:])
        there, here = (rows, slice(None), *target), (rows, slice(None), *source)
        maps[there] = block[here]


def parts(maps: Tensor, starts: Starts, size: Sequence[int]) -> Tensor:
    """Return one box, which lies inside, of each of M maps: `(M, C, *size)`."""
    if _by_index(maps):
        where = (torch.arange(len(maps), device=maps.device), *_columns(starts, maps.device))
        return _views(maps, size)[where]
    boxes = empty(maps, len(maps), size)
    for box, one, at in zip(boxes, maps, starts.tolist(), strict=True):
        box.copy_(one[_slices(at, size)])
    return boxes


def rectangles(matrix: Tensor, starts: Starts, size: Sequence[int]) -> Tensor:
    """Return parts of one matrix, `(M, *size)`."""
    if _by_index(matrix):
        return _views(matrix[None, None], size)[0][_columns(starts, matrix.device)][:, 0]
    return torch.stack([matrix[_slices(at, size)[1:]] for at in starts.tolist()])


def _by_index(maps: Tensor) -> bool:
    return maps.is_cuda


def _cut_into(box: Tensor, clean: Tensor, start: Sequence[int], outside: float) -> None:
    """Fill one box `(C, *L)` with what a map `(C, *S)` holds there."""
    target, source = meeting([-s for s in start], clean.shape[1:], box.shape[1:])
    if any(part.stop - part.start < n for part, n in zip(source, box.shape[1:], strict=True)):
        box.fill_(outside)
    there, here = (slice(None), *source), (slice(None), *target)
    box[there] = clean[here]


def _cut_by_index(clean: Tensor, starts: Starts, size: Sequence[int], outside: float) -> Tensor:
    low, high = overhang(starts, size, clean.shape[2:])
    if any(low) or any(high):
        both = zip(reversed(low), reversed(high), strict=True)
        clean = F.pad(clean, [n for pair in both for n in pair], value=outside)
    return _views(clean, size)[0][_columns(starts + low, clean.device)]


def _views(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return every box of a size, at each place of each map: `(M, *P, C, *size)`, a view."""
    for axis, n in enumerate(size, start=2):
        maps = maps.unfold(axis, n, 1)
    return maps.movedim(1, 1 + len(size))


def _columns(starts: Starts, device: torch.device) -> tuple[Tensor, ...]:
    """Return one index for each axis, `(M,)`; the copy is not waited for."""
    return torch.from_numpy(starts.T.copy()).to(device, non_blocking=True).unbind()


def _voxels(starts: Starts, size: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
    """Return which row and voxel each voxel of the boxes is: indices that together have the size `(M, *size)`."""
    rows, nd = len(starts), len(size)
    along = [(starts[:, [axis]] + np.arange(n)).ravel() for axis, n in enumerate(size)]
    every = torch.from_numpy(np.concatenate([np.arange(rows), *along])).to(device, non_blocking=True)
    first, *axes = torch.split(every, [rows, *(rows * n for n in size)])
    shapes = [[rows, *(n if i == axis else 1 for i in range(nd))] for axis, n in enumerate(size)]
    return first.view(rows, *[1] * nd), *(axis.view(shape) for axis, shape in zip(axes, shapes, strict=True))


def _slices(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """Return where a box lies in one map `(C, *S)`."""
    return (slice(None), *(slice(s, s + n) for s, n in zip(start, size, strict=True)))
