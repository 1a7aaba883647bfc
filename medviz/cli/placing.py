"""Whether the voxels of a prepared image still stand where those of the scan stood."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from medviz.finite import all_finite

_CHANNELS, _PAIRS = 8, 16  # of each image, and of both, that are held against each other
_MOST = 30_000  # voxels that are looked at, so that a large scan takes no longer than a small one
_LEVELS, _LEAST = 256, 32  # of intensity, and as many voxels in each
_BETTER = 0.002  # by which another way must explain more, and by how much more where nothing explains much
_LOOSE, _PLAINLY = 0.02, 0.05
# without a change of size, an image has moved only where that is plain, or where it is seen, and by both measures
_SURE, _SEEN, _CLEARLY, _LESS_CLEARLY = 0.9, 0.25, 0.02, 0.1
_SHARE = 0.1  # of the smaller image, that both must have in common: few voxels fit to anything
_UNLIKE = 0.1  # above what is left between unlike images; below it, nobody knows where a cut image came from


def stand_alike(before: Tensor, after: Tensor) -> bool:
    """Return whether the affine of `before` is that of `after`, as far as the voxels tell.

    Intensities may be others, the end may be cut or padded, and channels may be chosen, made or added: it is enough
    that one of them stands as one of `before`. Two channels are held against each other with their first voxels
    together, which must fit at least as well as anything else that is tried: one voxel further, wherever the two
    correlate best, with the centres or the ends together, stretched to the other's size, and turned or mirrored. Not
    seen are turns by other angles, a stretching that leaves the size as it was, because the rest is cut off, and
    whatever a strong filter or the symmetry of the scan hides.

    Args:
        before: the image as it was read, `(C, *S)`.
        after: what was made of it, `(C, *S)`.
    """
    if before.ndim == after.ndim + 1 and before.shape[-1] == 1:
        before = before[..., 0]  # a slice, whose third axis is at 0
    if before.ndim != after.ndim:
        return False
    if not all_finite(after):
        return True  # nobody can tell, and what explains it refuses it
    common = (slice(None), *(slice(0, min(sizes)) for sizes in zip(before.shape[1:], after.shape[1:], strict=True)))
    if before.shape[1:] == after.shape[1:] and not _channels(after):
        return True  # there is nothing to be seen
    if before[common].shape == after[common].shape and bool((before[common] == after[common]).all()):
        return True
    pairs = sorted(itertools.product(enumerate(_channels(before)), enumerate(_channels(after))), key=_apart)
    answers = set()
    for (_, old), (_, new) in pairs[:_PAIRS]:
        answers.add(_Pair(old, new).is_alike())
        if True in answers:
            return True
    return False not in answers and (before.shape[1:] == after.shape[1:] or not _channels(before))


def _channels(image: Tensor) -> list[np.ndarray]:
    """Return the first channels that are not constant."""
    several = (channel for channel in image.cpu().numpy() if np.ptp(channel))
    return list(itertools.islice(several, _CHANNELS))


def _apart(pair: tuple[tuple[int, np.ndarray], tuple[int, np.ndarray]]) -> int:
    """Return how far apart two channels stand: those in the same place are looked at first."""
    return abs(pair[0][0] - pair[1][0])


class _Pair:
    """A channel of the scan and one of what was made of it, `*S` each."""

    def __init__(self, old: np.ndarray, new: np.ndarray) -> None:
        self._old, self._new = old, new
        self._edges = [_edges(image) for image in (old, new)]

    def is_alike(self) -> bool | None:
        """Return whether they stand alike; None: nobody can tell."""
        if any(self._fits_better(*found) for found in self._elsewhere()):
            return False
        return True if self._explained(*_common(self._old, self._new)) >= _UNLIKE else None

    def _fits_better(self, other: np.ndarray, old: np.ndarray, new: np.ndarray) -> bool:
        """Return whether `new` is made of `other` rather than of `old`, which stands where it stands."""
        there, here = self._explained(other, new), self._explained(old, new)
        if self._old.shape == self._new.shape and there <= _SURE:  # most likely filtered where it is
            clearly = _CLEARLY + _LESS_CLEARLY * (1 - here)
            seen = there >= _SEEN and there > here + clearly
            return seen and self._dependence(other, new) > self._dependence(old, new) + clearly
        if there <= here + _BETTER + _LOOSE * (1 - here):
            return False
        # by little, it may be that one level of the old intensities holds several of the new: another measure knows
        return there > here + _PLAINLY or self._dependence(other, new) > self._dependence(old, new)

    def _elsewhere(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield what new voxels would be made of if they stood elsewhere, what they stand for now, and the voxels."""
        old, new = self._old, self._new
        axes = range(old.ndim)
        for offsets in ([step * (k == axis) for k in axes] for axis in axes for step in (-1, 1)):
            yield from self._at(old, offsets)
        yield from self._climb(*self._best_shift())
        for order in itertools.permutations(axes):
            for mirrored in itertools.product((False, True), repeat=old.ndim):
                turned = np.flip(old.transpose(order), tuple(axis for axis in axes if mirrored[axis]))
                longer = [a - b for a, b in zip(turned.shape, new.shape, strict=True)]
                for offsets in ([0] * old.ndim, [n // 2 for n in longer], longer):
                    if any(offsets) or any(mirrored) or order != tuple(axes):
                        yield from self._at(turned, offsets)
        if old.shape != new.shape:
            yield self._stretched(), *_common(old, new)

    def _at(self, other: np.ndarray, offsets: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield some voxels of `other`, in which the new ones begin at `offsets`, of the old one, and the new ones."""
        begins = [max(-o, 0) for o in offsets]
        shapes = zip(self._old.shape, other.shape, offsets, self._new.shape, strict=True)
        ends = [min(a, b - o, c) for a, b, o, c in shapes]
        sizes = [max(0, end - begin) for begin, end in zip(begins, ends, strict=True)]
        if math.prod(sizes) >= _SHARE * min(self._old.size, self._new.size):
            here = tuple(map(slice, begins, ends, [_step(sizes)] * len(sizes)))
            there = tuple(slice(a + o, b + o, _step(sizes)) for a, b, o in zip(begins, ends, offsets, strict=True))
            yield other[there], self._old[here], self._new[here]

    def _stretched(self) -> np.ndarray:
        """Return the old one, stretched to the size of the new one, where they are compared."""
        shape = self._new.shape
        step = _step(list(map(min, self._old.shape, shape)))
        seen = [range(0, min(a, b), step) for a, b in zip(self._old.shape, shape, strict=True)]
        sizes = zip(seen, self._old.shape, shape, strict=True)
        return self._old[np.ix_(*(((np.array(places) + 0.5) * a / b).astype(int) for places, a, b in sizes))]

    def _explained(self, old: np.ndarray, new: np.ndarray) -> float:
        """Return the correlation ratio: the share of the new levels' variance that the old levels explain."""
        level, value = (
            np.searchsorted(edges, image.ravel()) for edges, image in zip(self._edges, (old, new), strict=True)
        )
        value = value - value.mean()
        number, total = np.bincount(level), np.bincount(level, value)
        variance = float((value**2).sum())
        return float((total**2 / np.maximum(number, 1)).sum()) / variance if variance else 0.0

    def _dependence(self, old: np.ndarray, new: np.ndarray) -> float:
        """Return 1 where each intensity was replaced by another, 0 where the two have nothing to do with each other.

        In the order of the old intensities, the new ones change little then. Source: Chatterjee 2021, "A new
        coefficient of correlation", https://doi.org/10.1080/01621459.2020.1758115. Differs: levels instead of ranks.
        """
        value = np.searchsorted(self._edges[1], new.ravel())[np.argsort(old, axis=None, kind="stable")]
        weights = 2 * np.arange(len(value)) + 1 - len(value)
        among_all = float((weights * np.sort(value)).sum()) * 2 / len(value) ** 2
        return 1 - float(np.abs(np.diff(value)).sum()) / len(value) / among_all if among_all else 0.0

    def _best_shift(self) -> tuple[list[int], int]:
        """Return where the new one begins in the old one if they are shifted to where they correlate best.

        Second: to how many voxels that is known.
        """
        step = max(_step(self._old.shape), _step(self._new.shape))
        images = (_some(image, step) for image in (self._old, self._new))
        old, new = (np.searchsorted(edges, image) for edges, image in zip(self._edges, images, strict=True))
        found = _correlations(old - old.mean(), new - new.mean())
        best = np.unravel_index(int(found.argmax()), found.shape)
        wrapped = zip(best, old.shape, found.shape, strict=True)
        return [step * int(place if place < first else place - size) for place, first, size in wrapped], 2 * step

    def _climb(self, offsets: list[int], step: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield what is found on the way from a shift, known to a step's width, to the best one beside it."""
        best = 0.0
        while step := step // 2:
            for axis, sign in itertools.product(range(len(offsets)), (0, -1, 1)):
                moved = [o + sign * step * (k == axis) for k, o in enumerate(offsets)]
                for found in self._at(self._old, moved):
                    explained = self._explained(found[0], found[2])
                    if explained > best:
                        offsets, best = moved, explained
                        yield found


def _common(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return some voxels of both, from their first ones on, as far as both go."""
    sizes = list(map(min, old.shape, new.shape))
    some = tuple(slice(0, size, _step(sizes)) for size in sizes)
    return old[some], new[some]


def _step(sizes: Sequence[int]) -> int:
    """Return how far apart voxels are looked at, so that there are not too many."""
    step = 1
    while math.prod(-(-size // step) for size in sizes) > _MOST:
        step += 1
    return step


def _some(image: np.ndarray, step: int) -> np.ndarray:
    return image[(slice(None, None, step),) * image.ndim]


def _edges(image: np.ndarray) -> np.ndarray:
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
