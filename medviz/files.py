"""Files that are whole or not there: where one can be written, and how it replaces another."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def check_folder(folder: Path) -> None:
    """Refuse a folder that files cannot be written into; one that is missing must be possible to make.

    Raises:
        NotADirectoryError: it is a file, or lies in what is one.
        PermissionError: it, or the folder that it would be made in, cannot be written to.
    """
    real = Path(os.path.realpath(folder))
    if folder.is_symlink() and not real.exists():
        raise NotADirectoryError(f"{_named(folder)} leads to nothing; a folder is needed there.")
    if real.exists() and not real.is_dir():
        raise NotADirectoryError(f"{_named(folder)} is a file; a folder is needed there.")
    _check_writable(folder, real)


def check_free(path: Path, overwrite: bool) -> None:
    real = Path(os.path.realpath(path))
    if real.is_dir():
        raise IsADirectoryError(f"{_named(path)} is a folder; `path` must name a file.")
    _check_writable(path, real.parent)
    if real.exists() and not overwrite:
        raise FileExistsError(f"{_named(path)} exists already; choose another `path` or set overwrite=true.")


def _check_writable(path: Path, folder: Path) -> None:
    """Refuse `path` where nothing can be written into `folder`, links followed, or into the one to make it in."""
    found = next((above for above in (folder, *folder.parents) if above.exists()), None)
    if found is not None and not found.is_dir():
        raise NotADirectoryError(f"{_named(path)} cannot be made, because {str(found)!r} is a file.")
    if found is not None and not os.access(found, os.W_OK | os.X_OK):
        raise PermissionError(f"{_named(path)} cannot be written: you have no permission to write to {str(found)!r}.")


def _named(path: Path) -> str:
    """Return the path in quotes, and where a link leads to."""
    return repr(str(path)) + (f", a link to {os.path.realpath(path)!r}," if path.is_symlink() else "")


@contextlib.contextmanager
def atomic(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Hand out a temporary file beside `path`, with its suffix, that becomes `path` only if the block succeeds.

    Its suffix is in lower case: libraries choose formats by it, and nibabel writes ".Nii" under another name. A link is
    followed; a file that is replaced hands on its permissions.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False.
        IsADirectoryError, NotADirectoryError, PermissionError: no file can be written there.
    """
    asked, path = Path(path), Path(os.path.realpath(path))
    check_free(asked, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{secrets.token_hex(8)}{''.join(asked.suffixes[-2:])[-40:].lower()}")
    part.touch(exist_ok=False)
    try:
        yield part
        if path.exists():
            part.chmod(path.stat().st_mode & 0o777)
        if overwrite:
            part.replace(path)
        else:
            _publish(part, path)
    finally:
        part.unlink(missing_ok=True)


def _publish(part: Path, path: Path) -> None:
    """Rename without replacing a file that somebody else wrote in the meantime, where the file system can."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise FileExistsError(f"{str(path)!r} was written by somebody else in the meantime.") from None
    except OSError:
        part.replace(path)
