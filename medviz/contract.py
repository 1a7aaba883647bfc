"""Hold a plugin class against the spec of its kind, and relay a call through pluggy and the wrappers around it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import pluggy

from medviz.errors import PluginError, suggest
from medviz.hookspecs import KINDS, Plugin, Wrapper

MANAGER = "_medviz_manager"  # the attribute of an instance that keeps what calls its hooks


def hooks_of(kind: str) -> dict[str, tuple[str, ...]]:
    """Return the hooks that a plugin of `kind` may implement, with the arguments that each may name."""
    specs = [spec for spec in KINDS.values() if kind in ("wrappers", spec.kind)]
    return {
        name: tuple(inspect.signature(hook).parameters)[1:]
        for spec in specs
        for name, hook in vars(spec.Hooks).items()
        if hasattr(hook, "medviz_spec")
    }


def check_class(plugin: Any, kind: str) -> None:
    """Raise a `PluginError` that says in what `plugin` does not keep the contract of `kind`.

    pluggy itself lets most of these pass in silence: an unmarked or misspelt hook is never called, an argument with a
    default or a keyword-only one is never passed.
    """
    if not inspect.isclass(plugin):
        raise PluginError(f"{plugin!r} is not a class; an entry point names the plugin's class, not an instance.")
    known: Any = plugin
    _check(known, kind)


@functools.cache
def _check(plugin: type, kind: str) -> None:
    if not issubclass(plugin, KINDS[kind]):
        raise PluginError(f"{_name(plugin)} does not subclass medviz.{KINDS[kind].__name__}, the spec of its kind.")
    if len(several := [each for each, spec in KINDS.items() if issubclass(plugin, spec)]) > 1:
        raise PluginError(f"{_name(plugin)} is of several kinds, {' and '.join(several)}; write one class for each.")
    hooks = hooks_of(kind)
    marked = dict(_marked(plugin))
    for name in sorted(hooks.keys() - marked.keys()):
        if callable(getattr(plugin, name, None)):
            raise PluginError(f"{_name(plugin)}.{name} lacks its mark; write `@medviz.hookimpl` above it.")
    for name, method in marked.items():
        if name not in hooks:
            raise PluginError(
                f"{_name(plugin)}.{name} is marked, but no hook of {kind} has that name{suggest(name, hooks)} "
                f"The hooks are: {', '.join(hooks)}."
            )
        _check_arguments(f"{_name(plugin)}.{name}", method, hooks[name])
        _check_wrapping(f"{_name(plugin)}.{name}", method, kind == "wrappers")
    if not any(not _optional(name) for name in marked):
        raise PluginError(f"{_name(plugin)} implements no hook; it needs a marked {' or '.join(hooks)}.")


def _optional(hook: str) -> bool:
    return hook == "blend_weight"


def _marked(plugin: type) -> Iterator[tuple[str, Any]]:
    for name in dir(plugin):
        method = inspect.getattr_static(plugin, name)
        if getattr(getattr(method, "__func__", method), "medviz_impl", None) is None:
            continue
        if not inspect.isfunction(method):
            raise PluginError(f"{_name(plugin)}.{name} is a {type(method).__name__}; a hook is a plain method.")
        yield name, method


def _check_wrapping(where: str, method: Any, wraps: bool) -> None:
    if method.medviz_impl["hookwrapper"] or wraps != bool(method.medviz_impl["wrapper"]):
        must = "needs `wrapper=True`" if wraps else "must not have `wrapper=True`"
        raise PluginError(f"{where} {must} in its mark; only a medviz.Wrapper goes around a hook.")
    if wraps and not inspect.isgeneratorfunction(method):
        raise PluginError(f"{where} never yields; a wrapper yields once, where the hook runs, and returns the result.")


def _check_arguments(where: str, method: Any, allowed: tuple[str, ...]) -> None:
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            raise PluginError(
                f"{where}: pluggy never passes the keyword-only or starred argument {str(parameter)!r}; "
                "name the argument plainly."
            )
        if parameter.default is not parameter.empty:
            raise PluginError(
                f"{where}: pluggy never passes an argument that has a default, {str(parameter)!r}; remove the default "
                "or make it a field of the plugin."
            )
        if parameter.name not in allowed:
            raise PluginError(
                f"{where}: unknown argument {parameter.name!r}{suggest(parameter.name, allowed)} "
                f"The hook offers: {', '.join(allowed)}."
            )


def call(plugin: Plugin, hook: str, arguments: Mapping[str, Any], wrappers: tuple[Wrapper, ...] = ()) -> Any:
    """Call one hook of one plugin instance, through `wrappers`, the first of them outermost."""
    return getattr(_manager(plugin, wrappers).hook, hook)(plugin=plugin, **arguments)


def names_argument(plugin: Plugin | type[Plugin], hook: str, argument: str) -> bool:
    """Return whether the implementation of `hook` names `argument`."""
    cls = plugin if inspect.isclass(plugin) else type(plugin)
    return argument in inspect.signature(getattr(cls, hook)).parameters


def _manager(plugin: Plugin, wrappers: tuple[Wrapper, ...]) -> pluggy.PluginManager:
    """Build the manager of one instance; the one without wrappers is kept on the instance."""
    if not isinstance(plugin, Plugin):
        raise PluginError(f"{plugin!r} is not an instance of a medviz plugin.")
    state = vars(plugin)
    kept: pluggy.PluginManager | None = state.get(MANAGER)
    if not wrappers and kept is not None and kept.is_registered(plugin):  # a copy of a plugin has its original's
        return kept
    chain: list[tuple[Any, str]] = [(type(plugin), plugin.kind), *((type(w), "wrappers") for w in wrappers)]
    for cls, kind in chain:
        check_class(cls, kind)
    manager = pluggy.PluginManager("medviz")
    for spec in KINDS.values():
        if spec is not Wrapper and (wrappers or spec.kind == plugin.kind):  # a wrapper may go around hooks of all kinds
            manager.add_hookspecs(spec.Hooks)
    manager.register(plugin)
    for wrapper in reversed(wrappers):  # pluggy calls the one registered last first
        manager.register(wrapper)
    if not wrappers:
        state[MANAGER] = manager
    return manager


def _name(plugin: type) -> str:
    return f"{plugin.__module__}.{plugin.__qualname__}"
