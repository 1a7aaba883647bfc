"""Checks of renderers: where in the picture a voxel is drawn, found by marks whose arrangement no turn keeps."""

from __future__ import annotations

import itertools

import attrs
import numpy as np
import torch

from medviz.hookspecs import Renderer
from medviz.testing import cases
from medviz.testing.checks.renderers import differences, drawn
from medviz.testing.outcome import fail, name_of

_SIZES = {2: (12, 16), 3: (9, 12, 16)}
_ALIKE = 0.8  # of the marks; those of another turn, drawn sharply, share at most 0.3
_AFFINES = (np.diag([1.0, 1.0, 1.0, 1.0]), np.diag([-1.0, 1.0, 1.0, 1.0]))


@attrs.frozen
class Turn:
    """How a picture was made of a slice: first its axes are swapped, then its rows and its columns reversed."""

    swapped: bool = False
    rows: bool = False
    columns: bool = False

    def apply(self, plane: np.ndarray) -> np.ndarray:
        """Return the slice as it is drawn, in voxels."""
        plane = plane.T if self.swapped else plane
        plane = plane[::-1] if self.rows else plane
        return plane[:, ::-1] if self.columns else plane

    def __str__(self) -> str:
        parts = [
            "its axes swapped" if self.swapped else "its axes in order",
            "bottom up" if self.rows else "",
            "mirrored" if self.columns else "",
        ]
        return ", ".join(part for part in parts if part)


_TURNS = [Turn(*flags) for flags in itertools.product((False, True), repeat=3)]


def check_orientation(instance: Renderer) -> None:
    """Voxels are drawn where they lie: the image's axes run down and across, or the picture is upright by the affine.

    Without an affine nothing is turned. With one, the picture is either in the image's own order still, or it has the
    front, or of other planes the head, above; then an affine whose first axis runs the other way mirrors it. Of a
    volume, slices and projections along an axis are recognised; any other picture of it is not judged.
    """
    for ndim in (2, 3):
        plain, right_last, right_first = (_seen(instance, ndim, affine) for affine in (None, *_AFFINES))
        if ndim == 2 and not (plain and right_last and right_first):
            how = "with" if plain else "without"
            _fail(instance, f"a 2-D map with marks in three corners, {how} an affine", "marks in corners", "none")
        if plain and plain[1] != Turn():
            what = f"a {ndim}-D map without an affine"
            _fail(instance, what, "the first of two axes down the picture, the second across", f"{plain[1]}")
        if right_last and right_first and not _upright(right_last, right_first):
            _fail(
                instance,
                f"a {ndim}-D map with the patient's right at the end of its first axis, then at the start",
                "the front or the head above, and two pictures of which one mirrors the other; or both as without an "
                "affine",
                f"first {right_last[1]}; then {right_first[1]}",
            )


def _fail(instance: Renderer, what: str, expected: str, got: str) -> None:
    fail(
        f"{name_of(instance)} drew {what}",
        expected,
        got,
        "Look at axes that are swapped or flipped between map and picture; medviz.MapRenderer sets them upright.",
    )


def _upright(first: tuple[int, Turn], second: tuple[int, Turn]) -> bool:
    """Return whether two pictures of affines whose first axes run against each other agree on the patient."""
    (fixed, one), (other_fixed, other) = first, second
    if one == other == Turn():
        return True
    across = fixed != 0, other_fixed != 0  # whether the first axis, left and right, lies in the picture
    mirrored = one.columns != other.columns
    return all(turn.swapped and turn.rows for turn in (one, other)) and (
        across[0] != across[1] or mirrored == across[0]
    )


def _seen(instance: Renderer, ndim: int, affine: np.ndarray | None) -> tuple[int, Turn] | None:
    """Return which axis is fixed (of a 2-D image -1), and how the slice through the peak is turned; None: not found."""
    values = torch.zeros(1, 1, *_SIZES[ndim], device="cpu")
    peak = tuple(extent // 2 for extent in _SIZES[ndim])
    values[0, 0][peak] = 1.0  # the peak stays where it is, so that only the marks make a difference
    what = f"a {ndim}-D map {'without' if affine is None else 'with'} an affine"
    without = drawn(instance, cases.attribution(ndim, affine=affine, values=values), what).frames
    for fixed in (-1,) if ndim == 2 else (0, 1, 2) if affine is None else (2, 1, 0):
        marked = values.clone()
        plane = marked[0, 0] if ndim == 2 else marked[0, 0].select(fixed, peak[fixed])
        marks = _marks(tuple(plane.shape))
        plane[torch.from_numpy(marks)] = 0.9
        frames = drawn(instance, cases.attribution(ndim, affine=affine, values=marked), what).frames
        turn = _recognised(differences(without, frames), marks)
        if turn is not None:
            return fixed, turn
    return None


def _marks(shape: tuple[int, ...]) -> np.ndarray:
    """Return a bar along the second axis from the first corner, and a voxel in each of the two corners beside it.

    They are thin, so that their outlines alone, drawn as contours, lie in the same voxels.
    """
    marks = np.zeros(shape, bool)
    marks[0, :5] = marks[0, -1] = marks[-1, 0] = True
    return marks


def _recognised(differ: np.ndarray, marks: np.ndarray) -> Turn | None:
    """Return the turn of the marks that the pixels are most like, from their outermost ones on."""
    if not differ.any():
        return None
    rows, columns = (np.flatnonzero(differ.any(axis)) for axis in (1, 0))
    inner = differ[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alike = {turn: _likeness(inner, turn.apply(marks)) for turn in _TURNS}
    best = max(alike, key=lambda turn: alike[turn])
    return best if alike[best] >= _ALIKE else None


def _likeness(pixels: np.ndarray, marks: np.ndarray) -> float:
    """Return the share of the marks that is seen, or that of what is seen that is at most a voxel away from a mark.

    The smaller of the two; 0 where the pixels have not the sides of the marks' slice, whose voxels are as wide as high.
    """
    (height, width), (rows, columns) = pixels.shape, marks.shape
    if height < rows or width < columns or not 1 / 1.3 < height * columns / (width * rows) < 1.3:
        return 0.0
    seen = np.zeros(marks.shape, bool)
    row, column = np.nonzero(pixels)
    seen[row * rows // height, column * columns // width] = True
    near = np.pad(marks, 1)
    near = np.any([np.roll(near, shift, (0, 1)) for shift in itertools.product((-1, 0, 1), repeat=2)], axis=0)[
        1:-1, 1:-1
    ]
    return float(min((seen & marks).sum() / marks.sum(), (seen & near).sum() / seen.sum()))
