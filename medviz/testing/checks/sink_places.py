"""Checks of sinks: a scan that is written lies where the image lay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from medviz.hookspecs import Sink
from medviz.testing import cases
from medviz.testing.checks.sinks import is_file, moved, new_folder, write
from medviz.testing.outcome import fail, name_of, skip_unless
from medviz.testing.read_back import SCANS, scan

_OBLIQUE = np.array([[0, 0.2, -2.0, 30], [-0.8, 0, 0, 12.5], [0, 1.5, 0.27, -7], [0, 0, 0, 1.0]])
_PLANTED = ((5, 1, 2), (0, 3, 1), (2, 0, 4), (1, 2, 0))
"""Four voxels that lie in no plane: where they lie says where all others do."""


def check_geometry(instance: Sink) -> None:
    """In a file that holds a scan, each of four different values lies at its millimetres, whatever the order of axes.

    The affine is oblique, with axes that are flipped and swapped; in 2-D three values are looked at.
    """
    for ndim, size in ((2, (6, 4)), (3, (6, 4, 5))):
        voxels = [voxel[:ndim] for voxel in _PLANTED[: ndim + 1]]
        values = torch.zeros(1, 1, *size, device="cpu")
        for order, voxel in enumerate(voxels):
            values[0, 0][voxel] = 4.0 - order
        x = cases.GREY(cases.attribution(ndim, affine=_OBLIQUE, values=values))
        with new_folder() as folder:
            place = write(moved(instance, folder), x, f"a {ndim}-D map with an affine")
            skip_unless(
                is_file(place, folder) and str(place).lower().endswith(SCANS),
                f"it writes no file that the kit can place ({', '.join(SCANS)}).",
            )
            expected, found = _places(_OBLIQUE, voxels), _largest(Path(place), len(voxels))
        if found.shape != expected.shape or np.abs(found - expected).max() > 0.05:
            fail(
                f"{name_of(instance)} wrote a {ndim}-D map with its largest values at {_in_mm(expected)}",
                "the largest values of the file at the same places",
                _in_mm(found) if len(found) else "a file with fewer values",
                "Write the values with the spatial axes first and in their order, and with `attribution.affine[0]`.",
            )


def _largest(path: Path, count: int) -> np.ndarray:
    """Return the places in millimetres of the largest values of a scan, the first first."""
    values, affine = scan(path)
    values = values.reshape(*values.shape[:3], -1)[..., 0]
    order = np.argsort(-values.astype(float), axis=None, kind="stable")[:count]
    return _places(affine, np.stack(np.unravel_index(order, values.shape), -1).tolist())


def _places(affine: np.ndarray, voxels: Sequence[Sequence[int]]) -> np.ndarray:  # (N, 3)
    index = np.zeros((len(voxels), 3))
    for row, voxel in zip(index, voxels, strict=True):
        row[: len(voxel)] = voxel
    places: np.ndarray = index @ affine[:3, :3].T + affine[:3, 3]
    return places


def _in_mm(places: np.ndarray) -> str:
    return ", ".join("(" + ", ".join(f"{at:g}" for at in place.round(1) + 0.0) + ") mm" for place in places)
