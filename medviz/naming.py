"""What an instance goes by: the entry it is from, its parameters, and the plugin string that makes it again."""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import Any

import attrs

from medviz import plugin_strings
from medviz.hookspecs import Plugin
from medviz.registry import ENTRY, Entry, entries, resolve
from medviz.validators import as_python


def origin(plugin: Plugin | type) -> Entry:
    """Return the entry that an instance was got by, or that a class is installed under.

    Of what was not got by a name the class counts; one that is not installed gives an entry made of its module.
    """
    if isinstance(plugin, Plugin) and ENTRY in vars(plugin):
        entry: Entry = vars(plugin)[ENTRY]
        return entry
    cls: Any = plugin if isinstance(plugin, type) else type(plugin)
    for entry in entries(cls.kind) if issubclass(cls, Plugin) else ():
        if _is_of(entry, cls):
            return entry
    value = f"{cls.__module__}:{cls.__qualname__}"
    return Entry(getattr(cls, "kind", ""), cls.__name__.lower(), cls.__module__.partition(".")[0], "", value)


def _is_of(entry: Entry, cls: type) -> bool:
    """Return whether an entry names a class, in its own module or in one that has it from there; runs nobody's code."""
    module, path = entry.place
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = inspect.getattr_static(found, part, None)  # a module may make what it is asked for
    return found is cls


def describe(plugin: Plugin, nested: bool = False) -> str:
    """Return the plugin string of an instance: its name, and the parameters that differ from their defaults.

    The name is `package/name` where several packages offer it.

    Args:
        plugin: the instance.
        nested: it is a parameter of another plugin.
    """
    return described(plugin, origin(plugin), nested)


def described(plugin: Plugin, entry: Entry, nested: bool = False) -> str:
    """Return the same of an instance whose `origin` is known: to ask for that is to look at the installed packages."""
    changed = {}
    for name, (value, default, kind) in parameters(plugin).items():
        if isinstance(value, Plugin):
            value = describe(value, nested=True)
            default = (
                describe(resolve(kind, default), nested=True) if kind and default is not attrs.NOTHING else default
            )
        elif callable(value):
            value = getattr(value, "__name__", type(value).__name__)
        if repr(value) != repr(default):
            changed[name] = value
    return plugin_strings.written(entry.full_name if entry.shared else entry.name, changed, nested)


def parameters(plugin: Plugin) -> dict[str, tuple[Any, Any, str]]:
    """Return, for each parameter that an instance was made with, its value, its default, and what kind of plugin it is.

    Of a class that attrs has not made, the arguments of `__init__` count, where they are kept under their names.
    """
    cls: Any = type(plugin)
    if not attrs.has(cls):
        arguments = inspect.signature(cls).parameters.values()
        named = [a for a in arguments if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
        return {a.name: (as_python(getattr(plugin, a.name)), a.default, "") for a in named if hasattr(plugin, a.name)}
    found = {}
    for f in (f for f in attrs.fields(cls) if f.init):
        default = f.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory(plugin) if default.takes_self else default.factory()
        kind = f.metadata.get("kind", "")
        if callable(f.converter) and not kind:
            with contextlib.suppress(Exception):  # a default need not be one that can be given
                default = f.converter(default)
        found[f.alias] = (as_python(getattr(plugin, f.name)), default, kind)
    return found
