"""Each check of the kit fails on a plugin that is wrong in just that, and on no plugin that is right."""

from __future__ import annotations

from typing import Any

import helpers_mutants_explainers as maps
import helpers_mutants_files as files
import helpers_mutants_others as others
import pytest
import torch

import medviz.testing
from medviz.hookspecs import KINDS, Plugin
from medviz.testing.checks import CHECKS, common

torch.set_num_threads(1)

MUTANTS: dict[str, dict[str, list[Any]]] = {
    "explainers": maps.EXPLAINERS,
    "occluders": others.OCCLUDERS,
    "renderers": files.RENDERERS,
    "sinks": files.SINKS,
    "readers": others.READERS,
    "wrappers": others.WRAPPERS,
}
RIGHT = [
    maps.Right(),
    others.RightOccluder(),
    others.RightWrapper(),
    files.RightRenderer(),
    files.UprightVolumes(),
    files.RightSink("x.json"),
    files.RightScan("x.nii.gz"),
    others.RightReader(),
]
SHARED = {one.__name__ for one in CHECKS["wrappers"] if one.__module__ == common.__name__}
PAIRS = [(name, mutant) for mutants in MUTANTS.values() for name, each in mutants.items() for mutant in each]


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_has_a_mutant(kind: str) -> None:
    names = {one.__name__ for one in CHECKS[kind]}
    assert names == MUTANTS[kind].keys() | SHARED
    assert MUTANTS["explainers"].keys() >= SHARED, "what all kinds share is shown on explainers"


@medviz.testing.conformance(RIGHT)
def test_a_right_plugin_passes(check: Any, instance: Plugin) -> None:
    check(instance)


@pytest.mark.parametrize(("name", "mutant"), PAIRS, ids=[f"{name}-{type(mutant).__name__}" for name, mutant in PAIRS])
def test_a_wrong_plugin_fails(name: str, mutant: Plugin) -> None:
    (check,) = (one for one in CHECKS[mutant.kind] if one.__name__ == name)
    with pytest.raises(medviz.testing.ConformanceError) as failed:
        check(mutant)
    message = str(failed.value)
    assert len(message.split()) > 12, f"a stranger does not understand {message!r}"
    assert type(mutant).__name__ in message or type(mutant).__qualname__ in message
    if name not in SHARED:
        assert ": expected " in message, message
        assert "; got " in message, message


@pytest.mark.parametrize("mutant", [mutant for _, mutant in PAIRS if mutant.kind in ("occluders", "readers")])
def test_the_rows_of_a_wrong_plugin_say_so_too(mutant: Plugin) -> None:
    failed = {row.check for row in medviz.testing.check(mutant) if row.status == "failed"}
    assert failed & {name for name, other in PAIRS if other is mutant}
