"""Scans in NIfTI files."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import torch

from medviz.hookspecs import Reader, hookimpl
from medviz.image import Image, spacing_of
from medviz.readers.values import as_float32, check_nan
from medviz.validators import as_python

_log = logging.getLogger("medviz")

_SPACE_UNITS = 0b111  # the bits of `xyzt_units` that say the unit of lengths
_MILLIMETRES = {1: 1e3, 3: 1e-3}  # metres and micrometres; 2 are millimetres, and 0 is taken for them
_CIFTI = range(3000, 3100)  # intent codes
_APART = 0.1  # voxels, from which on two places are not one
_LONGEST_HEADER = 540  # bytes, of NIfTI-2


def _check_volume(reader: Any, field: Any, value: Any) -> None:
    if value is not None and value != "all" and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"`volume` is {value!r}; expected None, the number of a volume, or 'all'.")


@attrs.frozen(eq=False)
class Nifti(Reader):
    """Read a NIfTI file: scaled values in the file's own axis order `(X, Y, Z)`, with the affine to RAS+ millimetres.

    The affine is None where the file says nothing about patient space (both form codes are 0); what nibabel makes up
    for such a file would claim a left and a right that nobody knows.

    Args:
        volume: which volume of a file with four axes, counted from 0 (negative: from the end); "all": the volumes
            become channels. None: the file must hold one volume.
        nan: replaces NaN and infinite values; None: they are an error.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".nii", ".nii.gz")

    volume: int | str | None = attrs.field(default=None, converter=as_python, validator=_check_volume)
    nan: float | None = attrs.field(default=None, kw_only=True, validator=check_nan)

    @hookimpl
    def read(self, path: Path) -> Image:
        """Read one scan.

        Raises:
            ValueError: a damaged file, one that does not fit into memory, values that are not real numbers or not
                finite, or a `volume` that does not fit.
        """
        with _file_named(path):
            image = _open(path)
        number = _number(image.shape, self.volume, path)
        with _file_named(path):
            values = _volumes(image, number)
            affine = _affine(image, path)
            return Image(torch.from_numpy(as_float32(values, self.nan)), affine, path)


@contextlib.contextmanager
def _file_named(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be read, whatever is wrong with it."""
    import nibabel as nib

    try:
        yield
    except PermissionError:
        raise
    except MemoryError as err:
        raise ValueError(f"{str(path)!r} does not fit into memory: {err or 'it is full'}.") from err
    except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError) as err:
        raise ValueError(f"{str(path)!r} cannot be read as NIfTI: {err}") from err
    except nib.spatialimages.HeaderDataError as err:
        raise ValueError(f"{str(path)!r} cannot be read as NIfTI, its header is wrong: {err}") from err


def _open(path: Path) -> Any:
    import nibabel as nib

    if path.name.lower().endswith(".gz"):
        _check_sum(path)
    kinds: Any = (nib.Nifti1Image, nib.Nifti2Image)
    # by the file itself: by its name, nibabel would open "scan.nii" in the place of "scan.Nii"
    with nib.openers.ImageOpener(str(path)) as file:
        head = file.read(_LONGEST_HEADER)
    kind = next((kind for kind in kinds if kind.header_class.may_contain_header(head)), None)
    if kind is None:
        packed = " It is packed by gzip; name it .nii.gz." if head.startswith(b"\x1f\x8b") else ""
        raise ValueError(f"it has no NIfTI header.{packed}")
    magic, offset = (head[344:346], head[108:112]) if kind is kinds[0] else (head[4:6], head[168:176])
    if magic == b"ni" and not any(offset):
        raise ValueError("it is one half of a .hdr/.img pair; convert it into one .nii file.")
    holder = nib.fileholders.FileHolder(str(path))
    image = kind.from_file_map({"image": holder, "header": holder}, mmap=False)
    if int(image.header["intent_code"]) in _CIFTI:
        raise ValueError("it is CIFTI-2, whose values lie on surfaces; expected a scan.")
    if image.ndim < 2:
        raise ValueError(f"its shape is {image.shape}; expected two axes or more.")
    return image


def _check_sum(path: Path) -> None:
    """Unpack all of `path` once: nibabel stops before the check sum, and would return a damaged scan in silence."""
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass


def _number(shape: tuple[int, ...], volume: int | str | None, path: Path) -> int | str:
    """Return which volume of a file of `shape` is meant, or "all"."""
    series = [length for length in shape[3:] if length != 1]
    if len(series) > 1:
        raise ValueError(f"{str(path)!r} has the shape {shape}; expected one scan or one series of them.")
    count = series[0] if series else 1
    if isinstance(volume, int) and not -count <= volume < count:
        raise ValueError(f"`volume` is {volume}, but {str(path)!r} holds {count}: 0 to {count - 1}.")
    if volume is None and count > 1:
        raise ValueError(
            f"{str(path)!r} holds {count} volumes, its shape is {shape}; choose one with volume=0 … {count - 1}, "
            "or volume='all' to make them channels."
        )
    return volume if volume is not None else 0


def _volumes(image: Any, number: int | str) -> np.ndarray:
    """Return `(C, *S)`, scaled; of one volume of a series, read that one only."""
    space = image.shape[:3]
    if image.ndim <= 3:
        return np.asarray(image.dataobj)[None]
    if number == "all":
        return np.moveaxis(np.asarray(image.dataobj).reshape(*space, -1), -1, 0)
    series = tuple(0 if length == 1 else number for length in image.shape[3:])
    every = (slice(None),) * 3
    return np.asarray(image.dataobj[every + series])[None]


def _affine(image: Any, path: Path) -> np.ndarray | None:
    header = image.header
    if not header["sform_code"] and not header["qform_code"]:
        spacing = " x ".join(f"{length:g}" for length in header.get_zooms()[:3])
        _log.warning(
            "%s says nothing about patient space (form codes 0): no affine; its voxel size %s is not used.",
            path,
            spacing,
        )
        return None
    factor = _MILLIMETRES.get(int(header["xyzt_units"]) & _SPACE_UNITS, 1.0)
    if header["sform_code"] and header["qform_code"]:
        _compare_forms(image, factor, path)
    return np.diag([factor] * 3 + [1.0]) @ np.asarray(image.affine, dtype=np.float64)


def _compare_forms(image: Any, factor: float, path: Path) -> None:
    """Say so where a file has two places: viewers choose one of them, and a map has the other."""
    import nibabel as nib

    try:
        apart = image.get_qform() - image.get_sform()
    except (ValueError, nib.spatialimages.HeaderDataError):  # the quaternion is none; nobody can use it
        return
    corners = [[*corner, 1] for corner in itertools.product(*[(0, n - 1) for n in (*image.shape, 1)[:3]])]
    millimetres = factor * float(np.linalg.norm((apart @ np.transpose(corners))[:3], axis=0).max())
    if millimetres > _APART * factor * min(spacing_of(image.get_sform(), 3)):
        _log.warning(
            "%s has two places in space, up to %.1f mm apart: the sform is taken. Viewers that take the qform, as some "
            "of them do, show the scan in one place and its map in the other.",
            path,
            millimetres,
        )
