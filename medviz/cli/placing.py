"""Whether the voxels of a prepared image still stand where those of the scan stood."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from medviz.finite import all_finite

_CHANNELS = 3  # of each image, that are held against each other
_MOST = 30_000  # voxels that are looked at, so that a large scan takes no longer than a small one
_LEVELS, _LEAST = 256, 32  # of intensity, and as many voxels in each
_BETTER = 0.002  # by which another way must fit better, and by how much more where nothing fits well
_LOOSE = 0.02
_SURE = 0.9  # without a change of size, an image has moved only where that is plain
_SHARE = 0.1  # of the smaller image, that both must have in common: few voxels fit to anything
_UNLIKE = 0.1  # above what is left between unlike images; below it, nobody knows where a cut image came from


def stand_alike(before: Tensor, after: Tensor) -> bool:
    """Return whether the affine of `before` is that of `after`, as far as the voxels tell.

    Intensities may be others, the end may be cut or padded, and channels may be chosen, made or added: it is enough
    that one of them stands as one of `before`. Two channels are held against each other with their first voxels
    together, which must fit at least as well as anything else that is tried: one voxel further, wherever the two
    correlate best, with the centres or the ends together, stretched to the other's size, and turned or mirrored. Not
    seen are turns by other angles, and a stretching that leaves the size as it was, because the rest is cut off.

    Args:
        before: the image as it was read, `(C, *S)`.
        after: what was made of it, `(C, *S)`.
    """
    if before.ndim != after.ndim:
        return False
    if not all_finite(after):
        return True  # nobody can tell, and what explains it refuses it
    olds, news = (list(image[:_CHANNELS].cpu().numpy()) for image in (before, after))
    pairs = sorted(itertools.product(range(len(olds)), range(len(news))), key=lambda pair: abs(pair[0] - pair[1]))
    answers = set()
    for old, new in pairs:
        answers.add(_Pair(olds[old], news[new]).is_alike())
        if True in answers:
            return True
    same_size = before.shape[1:] == after.shape[1:]
    return False not in answers and (same_size or all(np.ptp(old) == 0 for old in olds))


class _Pair:
    """A channel of the scan and one of what was made of it, `*S` each.

    How well they fit is the correlation ratio of the new levels of intensity: the share of their variance that the old
    levels explain. It is 1 where each intensity was replaced by another, and small where the two have nothing to do
    with each other.
    """

    def __init__(self, old: np.ndarray, new: np.ndarray) -> None:
        self._old, self._new = old, new
        self._levels = [_levels(image) for image in (old, new)]

    def is_alike(self) -> bool | None:
        """Return whether they stand alike; None: nobody can tell."""
        common = tuple(slice(0, min(sizes)) for sizes in zip(self._old.shape, self._new.shape, strict=True))
        old, new = self._old[common], self._new[common]
        if np.ptp(new) and np.array_equal(old, new):
            return True
        sure = _SURE if self._old.shape == self._new.shape else 0.0
        if any(other > max(here + _BETTER + _LOOSE * (1 - here), sure) for other, here in self._elsewhere()):
            return False
        return True if self._fit(old, new) >= _UNLIKE else None

    def _elsewhere(self) -> Iterator[tuple[float, float]]:
        """Yield how well the two fit in another way, and how well the same new voxels fit where they stand."""
        old, new = self._old, self._new
        axes = range(old.ndim)
        steps = [[step * (k == axis) for k in axes] for axis in axes for step in (-1, 1)]
        yield from (self._both(old, offsets) for offsets in steps)
        yield from self._climb(*self._best_shift())
        for order in itertools.permutations(axes):
            for mirrored in itertools.product((False, True), repeat=old.ndim):
                turned = np.flip(old.transpose(order), tuple(axis for axis in axes if mirrored[axis]))
                longer = [a - b for a, b in zip(turned.shape, new.shape, strict=True)]
                for offsets in ([0] * old.ndim, [n // 2 for n in longer], longer):
                    if any(offsets) or any(mirrored) or order != tuple(axes):
                        yield self._both(turned, offsets)
        if old.shape != new.shape:
            yield self._fit_stretched(), self._fit(old, new)

    def _best_shift(self) -> tuple[list[int], int]:
        """Return where the new one begins in the old one if they are shifted to where they correlate best.

        Second: to how many voxels that is known.
        """
        step = max(_step(self._old.shape), _step(self._new.shape))
        images = (_some(image, step) for image in (self._old, self._new))
        old, new = (np.searchsorted(edges, image) for edges, image in zip(self._levels, images, strict=True))
        found = _correlations(old - old.mean(), new - new.mean())
        best = np.unravel_index(int(found.argmax()), found.shape)
        wrapped = zip(best, old.shape, found.shape, strict=True)
        return [step * int(place if place < first else place - size) for place, first, size in wrapped], 2 * step

    def _climb(self, offsets: list[int], step: int) -> Iterator[tuple[float, float]]:
        """Yield what is found on the way from a shift, known to a step's width, to the best one beside it."""
        best = self._both(self._old, offsets)
        yield best
        while step := step // 2:
            for axis, sign in itertools.product(range(len(offsets)), (-1, 1)):
                moved = [o + sign * step * (k == axis) for k, o in enumerate(offsets)]
                found = self._both(self._old, moved)
                if found[0] > best[0]:
                    offsets, best = moved, found
                    yield best

    def _both(self, other: np.ndarray, offsets: Sequence[int]) -> tuple[float, float]:
        """Return how well the new one fits to `other`, in which it begins at `offsets`, and to the old one there."""
        begins = [max(-o, 0) for o in offsets]
        shapes = zip(self._old.shape, other.shape, offsets, self._new.shape, strict=True)
        ends = [min(a, b - o, c) for a, b, o, c in shapes]
        sizes = [max(0, end - begin) for begin, end in zip(begins, ends, strict=True)]
        if math.prod(sizes) < _SHARE * min(self._old.size, self._new.size):
            return 0.0, 0.0
        here = tuple(map(slice, begins, ends))
        there = tuple(slice(begin + o, end + o) for begin, end, o in zip(begins, ends, offsets, strict=True))
        return self._fit(other[there], self._new[here]), self._fit(self._old[here], self._new[here])

    def _fit(self, old: np.ndarray, new: np.ndarray) -> float:
        """Return the correlation ratio of parts of both, from their first voxels on, as far as both go."""
        sizes = list(map(min, old.shape, new.shape))
        some = tuple(slice(0, size, _step(sizes)) for size in sizes)
        return self._ratio(old[some], new[some])

    def _fit_stretched(self) -> float:
        """Return the correlation ratio where both fill the same space."""
        old, new, step = self._old, self._new, _step(self._old.shape)
        places = [
            ((np.arange(0, a, step) + 0.5) * b / a).astype(int) for a, b in zip(old.shape, new.shape, strict=True)
        ]
        return self._ratio(_some(old, step), new[np.ix_(*places)])

    def _ratio(self, old: np.ndarray, new: np.ndarray) -> float:
        level, value = (
            np.searchsorted(edges, image.ravel()) for edges, image in zip(self._levels, (old, new), strict=True)
        )
        value = value - value.mean()
        number, total = np.bincount(level), np.bincount(level, value)
        variance = float((value**2).sum())
        return float((total**2 / np.maximum(number, 1)).sum()) / variance if variance else 0.0


def _step(sizes: Sequence[int]) -> int:
    """Return how far apart voxels are looked at, so that there are not too many."""
    step = 1
    while math.prod(-(-size // step) for size in sizes) > _MOST:
        step += 1
    return step


def _some(image: np.ndarray, step: int) -> np.ndarray:
    return image[(slice(None, None, step),) * image.ndim]


def _levels(image: np.ndarray) -> np.ndarray:
    """Return the edges between levels of intensity, each of which holds about as many voxels."""
    some = _some(image, _step(image.shape)).ravel()
    number = max(2, min(_LEVELS, len(some) // _LEAST))
    return np.unique(np.quantile(some, np.linspace(0, 1, number + 1)[1:-1]))


def _correlations(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the magnitude of the correlation of two images where both are, for each place of the one in the other.

    Negative places stand at the end; 0 where they have little in common. Source: Padfield 2012, "Masked object
    registration in the Fourier domain", https://doi.org/10.1109/TIP.2011.2181402.
    """
    sizes, axes = [a + b for a, b in zip(old.shape, new.shape, strict=True)], range(old.ndim)

    def summed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        waves = (np.fft.rfftn(image, sizes, axes) for image in (a, b))
        together: np.ndarray = np.fft.irfftn(next(waves) * next(waves).conj(), sizes, axes)
        return together

    one, other = np.ones(old.shape), np.ones(new.shape)
    number = np.maximum(summed(one, other), 1)
    first, second = summed(old, other), summed(one, new)
    spread = (summed(old**2, other) - first**2 / number) * (summed(one, new**2) - second**2 / number)
    enough = (number >= _SHARE * min(old.size, new.size)) & (spread > 1e-9 * spread.max())
    covariance = np.abs(summed(old, new) - first * second / number)
    return np.where(enough, covariance / np.sqrt(np.where(enough, spread, 1)), 0)
