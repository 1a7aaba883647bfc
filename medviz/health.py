"""Load every installed plugin, and say what is wrong with it: what `medviz plugins --check` shows."""

from __future__ import annotations

from collections.abc import Iterator

from medviz import metadata, plugin_strings, registry
from medviz.errors import PluginError, suggest
from medviz.hookspecs import KINDS

_RESERVED = frozenset("/:()[]{},='\"")


def check(kind: str | None = None) -> Iterator[tuple[registry.Entry, PluginError | None]]:
    """Load each installed plugin; yield it with what is wrong with it, or None.

    With no `kind`, also what is listed under a group that is none of medviz's, which nobody would ever find.
    """
    for entry in registry.entries(kind):
        try:
            odd = ", ".join(map(repr, sorted(_RESERVED.intersection(entry.name))))
            if odd or plugin_strings.is_word(entry.name):
                raise PluginError(
                    f"{entry.full_name!r} cannot be asked for: {odd or 'it'} means something else in plugin strings."
                )
            registry.find(entry.kind, entry.full_name)
            entry.load()
        except PluginError as err:
            yield entry, err
        else:
            yield entry, None
    strangers = (name.removeprefix("medviz.") for name in metadata.groups() if name.startswith("medviz."))
    for stranger in sorted(strangers) if kind is None else ():
        if stranger not in KINDS:
            for line in metadata.lines(f"medviz.{stranger}"):
                yield (
                    registry.Entry(stranger, line.name, line.package, line.version, line.value),
                    _no_kind(line, stranger),
                )


def _no_kind(line: metadata.Line, kind: str) -> PluginError:
    return PluginError(
        f"{line.package} {line.version} lists {line.name!r} under 'medviz.{kind}', which is no group of medviz's"
        f"{suggest(kind, KINDS)} The groups are {', '.join(f'medviz.{name}' for name in KINDS)}."
    )
