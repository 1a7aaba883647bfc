"""Which result is drawn by which renderer and goes to which sink; collisions are refused before the network runs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from medviz import naming, plugin_strings, registry
from medviz.attribution import Attribution
from medviz.contract import names_argument
from medviz.hookspecs import Explainer, Renderer, Sink
from medviz.relay import write
from medviz.results import ResultKey
from medviz.sinks.file_sink import check_destinations
from medviz.targets import as_target

_log = logging.getLogger("medviz")
_RENDERER = "{renderer}"


@attrs.frozen
class Plan:
    """The sinks, each with the renderer that draws for it, or None where the sink draws itself or writes values.

    Every renderer draws for every picture sink that names no renderer of its own. Where there are several, such a sink
    is made once for each, with `{renderer}` in its parameters replaced by the renderer's name.
    """

    pairs: Sequence[tuple[Sink, Renderer | None]]
    tag: str | None
    step: int

    @classmethod
    def of(cls, sinks: Sequence[str], renderers: Sequence[str], tag: str | None, step: int) -> Plan:
        """Make the sinks and renderers that are meant by plugin strings.

        Raises:
            ValueError: several renderers would draw for one sink, or none draws for any.
        """
        named = _named(renderers)
        pairs = [pair for text in sinks for pair in _pairs(text, named)]
        if named and not any(renderer for _, renderer in pairs):
            raise ValueError(
                "`--renderer` is given, but no sink takes its pictures; leave it out or add a picture sink."
            )
        return cls(pairs, tag, step)

    def check(
        self, explainers: Sequence[Explainer], targets: Sequence[Any], images: Sequence[Path], weights: Path | None
    ) -> None:
        """Refuse results that would overwrite one another, an existing file, an image or the weights."""
        keys = [
            ResultKey(index, naming.describe(explainer), as_target(target).label, self.tag or "", self.step)
            for explainer in explainers
            for target in targets
            for index in range(len(images))
        ]
        read = [*images, *([] if weights is None else [weights])]
        check_destinations([sink for sink, _ in self.pairs], keys, read)

    def write(self, attributions: Sequence[Attribution], wrappers: Any) -> Iterator[str]:
        """Draw and write everything, each picture drawn once; yield where to, each place once.

        Where a sink or its renderer fails, the others are written all the same, for the network may have run for an
        hour; then the first error is raised.
        """
        drawn: dict[int, list[Any]] = {}
        places: dict[str, None] = {}
        errors: list[Exception] = []
        for sink, renderer in self.pairs:
            try:
                if renderer is not None and id(renderer) not in drawn:
                    drawn[id(renderer)] = [renderer(attribution, wrappers=wrappers) for attribution in attributions]
                given = list(attributions) if renderer is None else drawn[id(renderer)]
                places.update(dict.fromkeys(map(str, write(sink, given, self.tag, self.step, wrappers))))
            except Exception as err:
                errors.append(err)
        yield from places
        for other in errors[1:]:
            _log.error("%s: %s", type(other).__name__, other)
        if errors:
            raise errors[0]


def _named(renderers: Sequence[str]) -> dict[str, Renderer]:
    """Return the renderers under names that tell them apart: planes, planes-2."""
    counted: Counter[str] = Counter()
    named = {}
    for text in renderers:
        name = plugin_strings.parse(text)[0].rpartition("/")[2]
        counted[name] += 1
        named[name if counted[name] == 1 else f"{name}-{counted[name]}"] = registry.get_renderer(text)
    return named


def _pairs(text: str, renderers: dict[str, Renderer]) -> list[tuple[Sink, Renderer | None]]:
    name, parameters = plugin_strings.parse(text)
    draws = names_argument(registry.find("sinks", name).load(), "write", "rendering") and "renderer" not in parameters
    if not draws or not renderers:
        return [(registry.get_sink(text), None)]
    if len(renderers) > 1 and _RENDERER not in text:
        raise ValueError(
            f"`--sink` {text!r} would get the pictures of {len(renderers)} renderers; write {_RENDERER} into its path, "
            "or give each sink a renderer=… of its own."
        )
    return [(registry.get_sink(text.replace(_RENDERER, each)), renderer) for each, renderer in renderers.items()]
