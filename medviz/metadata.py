"""What the installed packages list among their entry points, read again only where it may have changed."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import Any

import attrs

_log = logging.getLogger("medviz")


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
    offering: tuple[Distribution, ...]
    places: tuple[Any, ...]
    texts: tuple[str | None, ...]


_last: dict[str, _Read] = {}
_named: set[str] = set()  # damaged packages that the log has named


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


def groups() -> set[str]:
    """Return the names of all groups that any installed package lists entry points in."""
    return {point.group for point, _ in _points()}


def _read(group: str, places: tuple[Any, ...]) -> _Read:
    points = [(point, package) for point, package in _points(group=group)]
    offering = {id(package): package for _, package in points}
    # each look at `name` or `version` parses the package's metadata anew
    known = {key: _name_and_version(package) for key, package in offering.items()}
    found = tuple(Line(point.name, *known[id(package)], point.value) for point, package in points)
    packages = tuple(offering.values())
    return _Read(found, packages, places, _texts(packages))


def _points(**wanted: str) -> list[tuple[EntryPoint, Distribution]]:
    """Return entry points with their packages. A package whose list is damaged is left out, and the log names it."""
    read: Any = importlib.metadata.entry_points
    try:
        return [(point, point.dist) for point in read(**wanted) if point.dist is not None]
    except Exception:  # whatever the parsers of one damaged package raise
        return [pair for package in _first_of_each() for pair in _points_of(package, wanted)]


def _first_of_each() -> Iterator[Distribution]:
    """Yield the packages that are installed; of one that lies in several places, what Python would import."""
    seen: set[str] = set()
    for package in importlib.metadata.distributions():
        name = _name_and_version(package)[0]
        if name not in seen:
            yield package
        seen.add(name)


def _points_of(package: Distribution, wanted: dict[str, str]) -> list[tuple[EntryPoint, Distribution]]:
    try:
        listed: Any = package.entry_points
        return [(point, package) for point in listed.select(**wanted)]
    except Exception as err:
        place = _place(package)
        level = logging.DEBUG if place in _named else logging.WARNING
        _log.log(level, "%s cannot be read, and is left out: %s: %s", place, type(err).__name__, err)
        _named.add(place)
        return []


def _name_and_version(package: Distribution) -> tuple[str, str]:
    """Return what a package calls itself; where its metadata are damaged, the name that their folder begins with."""
    try:
        return normalise(package.name), str(package.version or "unknown")
    except Exception:  # KeyError, TypeError, UnicodeDecodeError … by the kind of damage
        return normalise(Path(_place(package)).name.partition("-")[0]), "unknown"


def _place(package: Distribution) -> str:
    return str(getattr(package, "_path", package))


def _places() -> tuple[Any, ...]:
    """Return where packages are looked for, and when each folder last changed."""
    return tuple(map(id, sys.meta_path)), tuple((place, _changed(place or os.curdir)) for place in sys.path)


def _changed(place: str) -> tuple[int, int] | None:
    try:
        found = os.stat(place)
    except OSError:  # `sys.path` may name what does not exist
        return None
    return found.st_ino, found.st_mtime_ns


def _texts(packages: Iterable[Distribution]) -> tuple[str | None, ...]:
    """Return the packages' own lists of entry points, as they are now."""
    return tuple(package.read_text("entry_points.txt") for package in packages)
