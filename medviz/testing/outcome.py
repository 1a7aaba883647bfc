"""How a check says that a plugin is wrong, or that it has nothing to say; and the row that comes of it."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any, Literal, NoReturn

import attrs

from medviz.hookspecs import Plugin

Check = Callable[[Any], None]
Status = Literal["passed", "failed", "xfailed", "skipped"]


class ConformanceError(AssertionError):
    """A plugin does not do what the contract of its kind says."""


class NotApplicable(unittest.SkipTest):
    """A check has nothing to say of this plugin; pytest and unittest count it as skipped."""


@attrs.frozen
class Row:
    """What one check says of one plugin.

    Attributes:
        check: the check's name, as in `expected_failures`.
        status: "passed"; "failed"; "xfailed": it failed as was expected; "skipped": it does not apply.
        message: why; empty where it passed.
    """

    check: str
    status: Status
    message: str = ""


def fail(did: str, expected: str, got: str, advice: str) -> NoReturn:
    """Raise a `ConformanceError` that a stranger understands.

    Args:
        did: what the check did, a clause.
        expected: what should have come of it.
        got: what came.
        advice: what to do about it, a whole sentence.
    """
    raise ConformanceError(f"{did}: expected {expected}; got {got}. {advice}")


TRACE = "The trace says where: pytest shows it, and so does a call of the check itself."


def skip_unless(applies: bool, reason: str) -> None:
    """Raise `NotApplicable` with the `reason` where a check does not apply."""
    if not applies:
        raise NotApplicable(reason)


def describe_error(error: BaseException) -> str:
    """Return an error's type and first line, for a message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0].rstrip('.') if text else 'no message'}"


def name_of(instance: Plugin) -> str:
    """Return the plugin's class, for a message."""
    return type(instance).__name__
