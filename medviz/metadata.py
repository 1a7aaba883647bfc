"""What the installed packages list among their entry points, read again only where it may have changed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

import attrs


@attrs.frozen
class Line:
    """One entry point: its name, the package that lists it, that package's version, and where the plugin is."""

    name: str
    package: str
    version: str
    value: str


@attrs.frozen
class _Read:
    """What one look at the metadata has found, and by what it is known to be out of date."""

    lines: tuple[Line, ...]
    offering: tuple[importlib.metadata.Distribution, ...]
    places: tuple[Any, ...]
    texts: tuple[str | None, ...]


_last: dict[str, _Read] = {}


def lines(group: str) -> tuple[Line, ...]:
    """Return the entry points of a group; imports none of them.

    Reading the metadata of all packages takes as long as a small network's forward pass, and every result asks where
    its method comes from. So what was read is kept, until a folder of `sys.path` changes, which an installation does,
    or the list of a package that offers something.
    """
    last, places = _last.get(group), _places()
    if last is None or last.places != places or last.texts != _texts(last.offering):
        last = _last[group] = _read(group, places)
    return last.lines


def normalise(distribution: str) -> str:
    """Return a package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _read(group: str, places: tuple[Any, ...]) -> _Read:
    points = [(p, p.dist) for p in importlib.metadata.entry_points(group=group) if p.dist is not None]
    offering = {id(package): package for _, package in points}
    # each look at `name` or `version` parses the package's metadata anew
    known = {key: (normalise(package.name), package.version) for key, package in offering.items()}
    found = tuple(Line(point.name, *known[id(package)], point.value) for point, package in points)
    packages = tuple(offering.values())
    return _Read(found, packages, places, _texts(packages))


def _places() -> tuple[Any, ...]:
    """Return where packages are looked for, and when each folder last changed."""
    return tuple(map(id, sys.meta_path)), tuple((place, _changed(place or os.curdir)) for place in sys.path)


def _changed(place: str) -> tuple[int, int] | None:
    try:
        found = os.stat(place)
    except OSError:  # `sys.path` may name what does not exist
        return None
    return found.st_ino, found.st_mtime_ns


def _texts(packages: Iterable[importlib.metadata.Distribution]) -> tuple[str | None, ...]:
    """Return the packages' own lists of entry points, as they are now."""
    return tuple(package.read_text("entry_points.txt") for package in packages)
