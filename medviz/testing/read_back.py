"""Open what a sink wrote, by its ending, with the library that everybody opens it with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def read_back(path: Path) -> bytes:
    """Return the content of a file, after it was opened by its format, or of all files in a folder.

    Raises:
        ValueError: empty, or not what its ending says.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        if not files:
            raise ValueError("the folder is empty")
        return b"".join(read_back(p) for p in files)
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    for suffix, opened in _OPEN.items():
        if path.name.lower().endswith(suffix):
            opened(path)
    return path.read_bytes()


def _picture(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            picture.load()


SCANS = (".nii", ".nii.gz", ".mgz", ".mgh")
"""Endings of the files that hold a scan: values with their place in the patient."""


def scan(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a scan, with at least three axes, and its affine (4, 4) to RAS+ millimetres."""
    import nibabel as nib

    image: Any = nib.load(path)
    values = np.asarray(image.dataobj)
    return values.reshape(*values.shape, *[1] * (3 - values.ndim)), image.affine


def _arrays(path: Path) -> None:
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            file[name]


_OPEN: dict[str, Callable[[Path], Any]] = {
    ".png": _picture,
    ".gif": _picture,
    ".jpg": _picture,
    ".jpeg": _picture,
    ".bmp": _picture,
    ".tif": _picture,
    ".tiff": _picture,
    ".webp": _picture,
    **dict.fromkeys(SCANS, scan),
    ".npz": _arrays,
    ".npy": lambda path: np.load(path, allow_pickle=False),
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".txt": lambda path: path.read_text(encoding="utf-8"),
    ".csv": lambda path: path.read_text(encoding="utf-8"),
    ".html": lambda path: path.read_text(encoding="utf-8"),
    ".svg": lambda path: path.read_text(encoding="utf-8"),
}
