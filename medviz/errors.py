"""The errors that medviz raises beside `ValueError` and `TypeError`, and the "did you mean" in their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PluginError(ValueError):
    """A plugin is unknown, ambiguous, broken, wrongly configured, or does not keep the contract of its kind."""


def first_line(err: BaseException) -> str:
    """Return what an error says first; what follows is for those who wrote what raised it."""
    return str(err).partition("\n")[0]


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x' or 'y'?"`` for the near misses of `name` among `known`, or ``"."`` without any."""
    lower: dict[str, str] = {}
    for one in known:
        if one and one != name:
            lower.setdefault(one.lower(), one)
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
