"""Small files with known content, for the checks of readers; some ways to write each format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medviz.image import Image

Example = Callable[[Path], Image | Sequence[Image]]

EXAMPLES: dict[str, list[Example]] = {}
"""From a suffix to the functions that write files of it."""


def example(*suffixes: str) -> Callable[[Example], Example]:
    """Decorate a function that writes a small file and returns what a reader must find in it.

        @medviz.testing.example(".csv")
        def table(path):
            path.write_text("1,2,3\\n4,5,6\\n")
            return medviz.Image([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])

    The checks of every reader of the suffix use it, beside the others for that suffix. Where a parameter of the reader
    decides what comes out, return all that is right, in a list.

    Args:
        suffixes: endings of file names, lower case, with their dots.

    Raises:
        ValueError: no such ending.
    """
    for suffix in suffixes or (None,):
        if not isinstance(suffix, str) or not suffix.startswith(".") or suffix != suffix.lower() or len(suffix) < 2:
            raise ValueError(f"`suffixes` holds {suffix!r}; expected endings such as '.csv', in lower case.")

    def register(function: Example) -> Example:
        for suffix in suffixes:
            EXAMPLES.setdefault(suffix, []).append(function)
        return function

    return register


def _ramp(*shape: int) -> torch.Tensor:
    """Return values that are all different, whole numbers from 0."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32, device="cpu").reshape(shape)


@example(".nii", ".nii.gz")
def _oblique(path: Path) -> Image:
    """Flipped, permuted and turned axes with unequal spacing."""
    affine = np.array([[0, 0.2, -2.0, 30], [-0.8, 0, 0, 12.5], [0, 1.5, 0.27, -7], [0, 0, 0, 1.0]])
    return _nifti(path, _ramp(5, 4, 3), affine)


@example(".nii", ".nii.gz")
def _upright(path: Path) -> Image:
    return _nifti(path, _ramp(3, 4, 6) - 7.5, np.diag([-1.0, 1.0, 3.0, 1.0]))


@example(".nii", ".nii.gz")
def _nowhere(path: Path) -> Image:
    """A file that says nothing about patient space."""
    return _nifti(path, _ramp(4, 3, 2), None)


def _nifti(path: Path, values: torch.Tensor, affine: np.ndarray | None) -> Image:
    import nibabel as nib

    kind: Any = nib.Nifti1Image
    image = kind(values.numpy(), np.eye(4) if affine is None else affine)
    if affine is None:
        image.set_sform(np.eye(4), code="unknown")
        image.set_qform(np.eye(4), code="unknown")
    else:
        image.set_sform(affine, code="scanner")
    image.to_filename(path)
    return Image(values[None], affine)


@example(".npy")
def _array(path: Path) -> list[Image]:
    """The first axis may be channels or space."""
    values = _ramp(2, 3, 5)
    np.save(path, values.numpy())
    return [Image(values), Image(values[None])]


@example(".png", ".bmp")
def _colours(path: Path) -> list[Image]:
    """White may be 1, or 255 as in the file."""
    from PIL import Image as PilImage

    pixels = (np.arange(5 * 4 * 3).reshape(5, 4, 3) * 4).astype(np.uint8)
    PilImage.fromarray(pixels).save(path)
    stored = torch.from_numpy(pixels).permute(2, 0, 1)
    return [Image(stored / 255), Image(stored)]


@example(".jpg", ".jpeg")
def _one_grey(path: Path) -> list[Image]:
    """One value: what JPEG loses is nothing here."""
    from PIL import Image as PilImage

    PilImage.fromarray(np.full((5, 4), 51, np.uint8)).save(path)
    return [Image(torch.full((1, 5, 4), value, device="cpu")) for value in (0.2, 51.0)]
