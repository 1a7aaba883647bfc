"""The checks of every kind, in the order in which they run."""

from __future__ import annotations

from types import ModuleType

from medviz.hookspecs import KINDS
from medviz.testing.checks import (
    common,
    explainer_batches,
    explainer_calls,
    explainer_maps,
    explainer_meaning,
    occluders,
    readers,
    renderer_places,
    renderers,
    sink_places,
    sinks,
    wrappers,
)
from medviz.testing.outcome import Check

_MODULES: dict[str, tuple[ModuleType, ...]] = {
    "explainers": (explainer_maps, explainer_calls, explainer_batches, explainer_meaning),
    "occluders": (occluders,),
    "renderers": (renderers, renderer_places),
    "sinks": (sinks, sink_places),
    "readers": (readers,),
    "wrappers": (wrappers,),
}


def _checks(module: ModuleType) -> list[Check]:
    return [
        value
        for name, value in vars(module).items()
        if name.startswith("check_") and value.__module__ == module.__name__
    ]


CHECKS: dict[str, tuple[Check, ...]] = {
    kind: tuple(one for module in (common, *_MODULES.get(kind, ())) for one in _checks(module)) for kind in KINDS
}
"""From each kind of plugin to its checks: every public function `check_*` of the modules above."""
