"""Prove a plugin right: checks that hold every instance of a kind against its contract.

    for row in medviz.testing.check(MyMethod()):
        ...                                     # row.check, row.status, row.message

    @medviz.testing.conformance([MyMethod()])   # the same checks, one test of pytest each
    def test_conformance(check, instance):
        check(instance)

pytest is needed only by `conformance`, hypothesis only by `medviz.testing.strategies`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medviz.testing import models as models
from medviz.testing.examples import example as example
from medviz.testing.outcome import ConformanceError as ConformanceError
from medviz.testing.outcome import NotApplicable as NotApplicable
from medviz.testing.outcome import Row as Row
from medviz.testing.run import check as check
from medviz.testing.run import checks_for as checks_for
from medviz.testing.run import conformance as conformance

if TYPE_CHECKING:
    from medviz.testing import strategies as strategies

__all__ = [
    "ConformanceError",
    "NotApplicable",
    "Row",
    "check",
    "checks_for",
    "conformance",
    "example",
    "models",
    "strategies",
]


def __getattr__(name: str) -> Any:
    if name != "strategies":
        raise AttributeError(f"module 'medviz.testing' has no attribute {name!r}")
    return importlib.import_module("medviz.testing.strategies")
