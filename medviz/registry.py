"""Find, choose and load plugins; it knows no plugin by name."""

from __future__ import annotations

import importlib.metadata
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

import attrs

from medviz import metadata, plugin_strings
from medviz.contract import check_class
from medviz.errors import PluginError, suggest
from medviz.hookspecs import KINDS, Explainer, Occluder, Plugin, Reader, Renderer, Sink
from medviz.metadata import normalise
from medviz.validators import as_python

ENTRY = "_medviz_entry"  # the attribute of an instance that keeps what it was got by
_preferred: tuple[str, ...] | None = None


@attrs.frozen
class Entry:
    """One line of a package's metadata: a plugin that is installed, not yet imported."""

    kind: str
    name: str
    package: str
    version: str
    value: str
    shared: bool = attrs.field(default=False, eq=False)  # another line offers the name too

    @property
    def full_name(self) -> str:
        """The name that no other package can claim: `package/name`."""
        return f"{self.package}/{self.name}"

    @property
    def place(self) -> tuple[str, str]:
        """The module, and the name in it, that the line names."""
        module, _, name = self.value.partition("[")[0].partition(":")
        return module.strip(), name.strip()

    def load(self) -> type[Plugin]:
        """Import the plugin's module and hold the class against its contract.

        Raises:
            PluginError: with package, version and cause.
        """
        point = importlib.metadata.EntryPoint(self.name, self.value, f"medviz.{self.kind}")
        try:
            if not all(part.isidentifier() for name in self.place for part in name.split(".")):
                raise PluginError(f"{self.value!r} is not of the form package.module:Class.")
            plugin = point.load()
            check_class(plugin, self.kind)
        except (Exception, SystemExit) as err:
            cause = str(err) if isinstance(err, PluginError) else f"{type(err).__name__}: {err}"
            raise PluginError(
                f"plugin {self.name!r} ({self.kind}) of {self.package} {self.version} ({self.value}) is broken: {cause}"
            ) from err
        return plugin  # type: ignore[no-any-return]


def entries(kind: str | None = None) -> list[Entry]:
    """Return what is installed, from metadata alone, sorted by kind, name and package.

    Raises:
        PluginError: `kind` is not a kind of plugin.
    """
    found = []
    for each in KINDS if kind is None else [_known_kind(kind)]:
        lines = metadata.lines(f"medviz.{each}")
        times = Counter(line.name for line in lines)
        found += [
            Entry(each, line.name, line.package, line.version, line.value, times[line.name] > 1) for line in lines
        ]
    return sorted(found, key=lambda e: (e.kind, e.name, e.package))


def names(kind: str) -> list[str]:
    """Return the names of the installed plugins of `kind` ("explainers", "sinks", …); imports none of them."""
    return sorted({entry.name for entry in entries(kind)})


def prefer(*packages: str) -> None:
    """Choose which packages win where several offer one name, the first named first; no argument: nobody wins.

    It replaces the choice of the environment variable `MEDVIZ_PREFER` (package names, separated by commas).

    Raises:
        PluginError: no installed package of that name offers plugins.
    """
    global _preferred
    _preferred = _known_packages(packages)


def get(kind: str, name: str, /, **parameters: Any) -> Plugin:
    """Return a configured instance of the plugin `name`, which may be `package/name` or a whole plugin string.

    Raises:
        PluginError: unknown or ambiguous name, broken plugin, or rejected parameter.
    """
    bare, written = plugin_strings.parse(name)
    entry = find(kind, bare)
    return _build(entry, {**written, **parameters})


def get_explainer(name: str, /, **parameters: Any) -> Explainer:
    """Return a configured explainer: `get_explainer("gradcampp", layer="layer4")`; see `get`."""
    return cast(Explainer, get("explainers", name, **parameters))


def get_occluder(name: str, /, **parameters: Any) -> Occluder:
    """Return a configured occluder; see `get`."""
    return cast(Occluder, get("occluders", name, **parameters))


def get_renderer(name: str, /, **parameters: Any) -> Renderer:
    """Return a configured renderer; see `get`."""
    return cast(Renderer, get("renderers", name, **parameters))


def get_sink(name: str, /, **parameters: Any) -> Sink:
    """Return a configured sink; see `get`."""
    return cast(Sink, get("sinks", name, **parameters))


def get_reader(name: str, /, **parameters: Any) -> Reader:
    """Return a configured reader; see `get`."""
    return cast(Reader, get("readers", name, **parameters))


def find(kind: str, name: str) -> Entry:
    """Return the one entry that `name` (or `package/name`) means.

    Raises:
        PluginError: nothing or more than one thing has that name.
    """
    offered = entries(kind)
    package, _, bare = name.rpartition("/")
    package = normalise(package)
    found = [e for e in offered if e.name == bare and package in ("", e.package)]
    if not found:
        known = [e.name for e in offered] + [e.full_name for e in offered]
        raise PluginError(
            f"no plugin {name!r} among the {kind}{suggest(name, known)} "
            f"Installed: {', '.join(sorted({e.name for e in offered})) or 'none'}."
        )
    found = found if package else preferred(found)
    if len(found) == 1:
        return found[0]
    if len({e.package for e in found}) == 1:
        raise PluginError(f"{found[0].package} {found[0].version} lists {bare!r} twice among its {kind}.")
    both = " and ".join(repr(e.full_name) for e in found)
    raise PluginError(
        f"{bare!r} is offered by several packages: {both}. Use the full name, or choose with "
        f"medviz.prefer({found[0].package!r}) or MEDVIZ_PREFER={found[0].package}."
    )


def preferred(found: list[Entry]) -> list[Entry]:
    """Return those of the package that was chosen to win, or all where none of the packages was."""
    chosen = ([e for e in found if e.package == winner] for winner in _preferences())
    return next(filter(None, chosen), found)


def resolve(kind: str, value: Any) -> Any:
    """Return `value`, or the plugin of `kind` that it names where it is a string.

    Raises:
        PluginError: `value` is neither; or as in `get`.
    """
    plugin = get(kind, value) if isinstance(value, str) else value
    if not isinstance(plugin, KINDS[kind]):
        raise PluginError(f"{plugin!r} is not a medviz.{KINDS[kind].__name__}; give an instance or the name of one.")
    check_class(type(plugin), kind)
    return plugin


def field(*, kind: str, default: Any, kw_only: bool = False, wrap: Callable[[Any], Any] | None = None) -> Any:
    """Return an attrs field that holds a plugin: an instance, or a name or plugin string that is turned into one.

    Args:
        kind: the kind of plugin that the field holds, for example "occluders".
        default: a name or an instance; names are resolved when the plugin is constructed.
        kw_only: as in `attrs.field`.
        wrap: turns a plain function into a plugin, where the field takes one.
    """
    _known_kind(kind)

    def convert(value: Any) -> Any:
        plain = wrap is not None and callable(value) and not isinstance(value, type | Plugin)
        return resolve(kind, wrap(value) if wrap and plain else value)

    return attrs.field(default=default, converter=convert, metadata={"kind": kind}, kw_only=kw_only)


def _build(entry: Entry, parameters: Mapping[str, Any]) -> Plugin:
    plugin = entry.load()
    if attrs.has(plugin):
        fields = [f for f in attrs.fields(plugin) if f.init]
        known = [f.alias for f in fields]
        for name in sorted(parameters.keys() - set(known)):
            raise PluginError(
                f"{entry.full_name!r} has no parameter {name!r}{suggest(name, known)} "
                f"It takes: {', '.join(known) or 'none'}."
            )
        for f in fields:
            if f.default is attrs.NOTHING and f.alias not in parameters:
                raise PluginError(f"{entry.full_name!r} needs `{f.alias}`: {entry.name}:{f.alias}=…")
    try:
        made = plugin(**{name: as_python(value) for name, value in parameters.items()})
    except Exception as err:
        cause = err.args[0] if err.args and isinstance(err, TypeError | ValueError) else f"{type(err).__name__}: {err}"
        raise PluginError(f"{entry.full_name!r} rejects its parameters {_shown(parameters)}: {cause}") from err
    if not isinstance(made, plugin):
        raise PluginError(f"{entry.full_name!r} is broken: its class makes a {type(made).__name__}.")
    vars(made)[ENTRY] = entry  # so that a result need not ask the installed packages again where its method is from
    return made


def _shown(parameters: Mapping[str, Any]) -> str:
    """Return parameters as they were written; of an array or a tensor its shape is enough."""
    shown = {
        name: f"<{type(value).__name__} {tuple(value.shape)}>" if hasattr(value, "shape") else repr(value)
        for name, value in parameters.items()
    }
    return "{" + ", ".join(f"{name!r}: {text}" for name, text in shown.items()) + "}"


def _known_kind(kind: str) -> str:
    if kind not in KINDS:
        raise PluginError(f"{kind!r} is not a kind of plugin{suggest(kind, KINDS)} The kinds are: {', '.join(KINDS)}.")
    return kind


def _preferences() -> tuple[str, ...]:
    if _preferred is not None:
        return _preferred
    return _known_packages(os.environ.get("MEDVIZ_PREFER", "").split(","))


def _known_packages(packages: Any) -> tuple[str, ...]:
    if wrong := [package for package in packages if not isinstance(package, str)]:
        raise PluginError(f"{wrong[0]!r} is not the name of a package; write prefer('one', 'another').")
    wanted = tuple(normalise(p.strip()) for p in packages if p.strip())
    installed = {e.package for e in entries()} if wanted else set()
    for package in wanted:
        if package not in installed:
            raise PluginError(
                f"the preferred package {package!r} offers no plugins here{suggest(package, installed)} "
                f"Packages with plugins: {', '.join(sorted(installed))}."
            )
    return wanted
