"""How long each plugin takes, in the log: what a wrapper is for."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from typing import Any

import attrs

from medviz import Plugin, Wrapper, describe, hookimpl

_log = logging.getLogger("medviz.timing")


def _timed(plugin: Plugin) -> Generator[None, Any, Any]:
    start = time.perf_counter()
    try:
        return (yield)
    finally:
        _log.info("%s took %.3f s", describe(plugin), time.perf_counter() - start)


@attrs.frozen(eq=False)
class Timing(Wrapper):
    """Log, at level INFO, the seconds that each explainer, renderer, sink and reader takes, also where it fails.

    Work on a GPU is counted where something waits for it.
    """

    @hookimpl(wrapper=True)
    def explain(self, plugin: Plugin) -> Generator[None, Any, Any]:
        """Time an explainer."""
        return (yield from _timed(plugin))

    @hookimpl(wrapper=True)
    def render(self, plugin: Plugin) -> Generator[None, Any, Any]:
        """Time a renderer."""
        return (yield from _timed(plugin))

    @hookimpl(wrapper=True)
    def write(self, plugin: Plugin) -> Generator[None, Any, Any]:
        """Time a sink; what it draws itself is timed with the renderer."""
        return (yield from _timed(plugin))

    @hookimpl(wrapper=True)
    def read(self, plugin: Plugin) -> Generator[None, Any, Any]:
        """Time a reader."""
        return (yield from _timed(plugin))
