"""Whether the voxels of a prepared image still stand where those of the scan stood."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medviz.finite import all_finite
from medviz.tensors import resize

_MOST = 200_000  # voxels that are held against each other
_LEVELS, _LEAST = 256, 32  # of intensity, and as many voxels in each
_TIE = 1e-6  # an image that is its own mirror image stands alike both ways
_SURE, _BETTER = 0.9, 0.002  # without a change of size, an image has moved only where that is plain
_SHARE = 0.1  # of the smaller image, that both must have in common: few voxels fit to anything
_UNLIKE = 0.3  # above what is left between unlike images; below it, nobody knows where a cut image came from


def stand_alike(before: Tensor, after: Tensor) -> bool:
    """Return whether the affine of `before` is that of `after`, as far as the voxels tell.

    Intensities may be others, and the end may be cut or padded. The first channels are held against each other with
    their first voxels together, which must fit at least as well as anything else that is tried: one voxel further, the
    centres or the ends together, stretched to the other's size, and turned or mirrored. A stretching that leaves the
    size as it was, because the rest is cut off, is not seen.

    Args:
        before: the image as it was read, `(C, *S)`.
        after: what was made of it, `(C, *S)`.
    """
    if before.ndim != after.ndim:
        return False
    if not all_finite(after):
        return True  # nobody can tell, and what explains it refuses it
    old, new = _levels(before[0].cpu().double()), after[0].cpu().double()
    same_size = old.shape == new.shape
    better, sure = (_BETTER, _SURE) if same_size else (_TIE, 0.0)
    if any(other > max(here + better, sure) for other, here in _elsewhere(old, new)):
        return False
    return same_size or _fit(old, new) >= _UNLIKE


def _levels(image: Tensor) -> Tensor:
    """Return to which of some levels of intensity each voxel belongs; all levels hold about as many."""
    some = image.flatten()[:: max(1, image.numel() // _MOST)]
    number = max(2, min(_LEVELS, len(some) // _LEAST))
    edges = torch.quantile(some, torch.linspace(0, 1, number + 1, dtype=torch.float64, device="cpu")[1:-1])
    return torch.bucketize(image, edges)


def _elsewhere(old: Tensor, new: Tensor) -> Iterator[tuple[float, float]]:
    """Yield how well the two fit in another way than voxel by voxel, and how well the same voxels of `new` fit so."""
    axes = range(old.ndim)
    for axis, step in itertools.product(axes, (-1, 1)):
        yield _both(old, old, new, [step * (k == axis) for k in axes])
    for order in itertools.permutations(axes):
        for mirrored in itertools.product((False, True), repeat=old.ndim):
            turned = old.permute(order).flip([axis for axis in axes if mirrored[axis]])
            longer = [a - b for a, b in zip(turned.shape, new.shape, strict=True)]
            for offsets in ([0] * old.ndim, [n // 2 for n in longer], longer):
                if any(offsets) or any(mirrored) or order != tuple(axes):
                    yield _both(old, turned, new, offsets)
    if old.shape != new.shape:
        stretched = resize(new[None, None], old.shape)[0, 0]
        yield _fit(old, stretched), _fit(old, new)


def _both(old: Tensor, other: Tensor, new: Tensor, offsets: Sequence[int]) -> tuple[float, float]:
    """Return how well `new` fits to `other`, in which it begins at `offsets`, and to `old`, where it has both."""
    begins = [max(-o, 0) for o in offsets]
    ends = [min(a, b - o, c) for a, b, o, c in zip(old.shape, other.shape, offsets, new.shape, strict=True)]
    sizes = [max(0, end - begin) for begin, end in zip(begins, ends, strict=True)]
    if math.prod(sizes) < _SHARE * min(old.numel(), new.numel()):
        return 0.0, 0.0
    here = tuple(map(slice, begins, ends))
    there = tuple(slice(begin + o, end + o) for begin, end, o in zip(begins, ends, offsets, strict=True))
    return _fit(other[there], new[here]), _fit(old[here], new[here])


def _fit(old: Tensor, new: Tensor) -> float:
    """Return the correlation ratio of `new`: the share of its variance that the levels of `old` explain.

    It is 1 where each intensity was replaced by another, and 0 where nothing is known. Both are taken from their first
    voxels on, as far as both go.
    """
    sizes = list(map(min, old.shape, new.shape))
    step = 1
    while math.prod(-(-size // step) for size in sizes) > _MOST:
        step += 1
    level, value = (image[tuple(slice(0, size, step) for size in sizes)].flatten() for image in (old, new))
    value = value - value.mean()
    number, total = torch.bincount(level), torch.bincount(level, value)
    variance = float(value.square().sum())
    return float((total.square() / number.clamp(min=1)).sum()) / variance if variance else 0.0
