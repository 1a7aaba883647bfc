"""Hold a plugin class against the spec of its kind, and relay a call through pluggy and the wrappers around it."""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from typing import Any

import attrs
import pluggy

from medviz.errors import PluginError, suggest
from medviz.hookspecs import KINDS, Plugin, Wrapper, hookimpl

MANAGER = "_medviz_manager"  # the attribute of an instance that keeps what calls its hooks
_OPTIONAL = ("blend_weight",)  # hooks that a plugin of their kind may do without


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
    _check_declarations(plugin, KINDS[kind])
    _check_methods(plugin, KINDS[kind])
    if plugin.__eq__ is not object.__eq__:
        raise PluginError(
            f"{_name(plugin)} compares its instances by value, and each counts for itself; write "
            "@attrs.frozen(eq=False), or dataclass(eq=False), above it."
        )
    if inspect.isabstract(plugin):
        raise PluginError(f"{_name(plugin)} is abstract; it lacks {', '.join(sorted(plugin.__abstractmethods__))}.")  # type: ignore[attr-defined]
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
    needed = [name for name in hooks if kind == "wrappers" or name not in _OPTIONAL]
    if marked.keys().isdisjoint(needed):
        raise PluginError(f"{_name(plugin)} implements no hook; it needs a marked {' or '.join(needed)}.")


def _check_declarations(plugin: type, spec: type[Plugin]) -> None:
    """What a class says of itself, such as `signed` or `suffixes`, is asked of the class: there need be no instance."""
    fields = {f.name for f in attrs.fields(plugin)} if attrs.has(plugin) else set()
    for name, hint in typing.get_type_hints(spec).items():
        (kind,) = typing.get_args(hint)
        declared = inspect.getattr_static(plugin, name)
        if kind is type or isinstance(declared, property):
            continue
        item = typing.get_args(kind)[:1]
        good = type(declared) is (typing.get_origin(kind) or kind)
        if name in fields or not good or (item and not all(isinstance(one, item) for one in declared)):
            shown = "a field" if name in fields else repr(declared)
            written = kind if item else kind.__name__
            raise PluginError(f"{_name(plugin)}.{name} is {shown}; write `{name}: ClassVar[{written}] = …`.")
    _check_spelling(plugin, spec, fields)


def _check_spelling(plugin: type, spec: type[Plugin], fields: Set[str]) -> None:
    """A misspelt declaration, such as `needs_layers`, would leave the default in force without a word."""
    declared = {name: type(value) for name, value in vars(spec).items() if name in typing.get_type_hints(spec)}
    own = {name: value for base in plugin.__mro__ if base not in spec.__mro__ for name, value in vars(base).items()}
    for name in own.keys() - declared.keys() - fields:
        near = difflib.get_close_matches(name, declared, n=1, cutoff=0.8)
        if near and type(own[name]) is declared[near[0]]:
            raise PluginError(f"{_name(plugin)}.{name} declares nothing; did you mean {near[0]!r}?")


def _check_methods(plugin: type, spec: type[Plugin]) -> None:
    """What every plugin of a kind can do, such as `check`, keeps its name and its arguments."""
    fields = {f.name for f in attrs.fields(plugin)} if attrs.has(plugin) else set()
    for name, method in vars(spec).items():
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        own = inspect.getattr_static(plugin, name)
        if name in fields or not inspect.isfunction(own) or not _takes(own, method):
            raise PluginError(
                f"{_name(plugin)}.{name} is not {name}({', '.join(_plainly(method))}), which every "
                f"medviz.{spec.__name__} has; give it another name."
            )


def _takes(own: Any, method: Any) -> bool:
    """Return whether one method can be called as another, by the same names."""
    plain = _plainly(method)
    named = {name: None for name in inspect.signature(method).parameters if name not in plain}
    try:
        inspect.signature(own).bind(*plain, **named)
    except TypeError:
        return False
    named_alike = _plainly(own)[: len(plain)] == plain
    return named_alike or any(p.kind == p.VAR_POSITIONAL for p in inspect.signature(own).parameters.values())


def _plainly(method: Any) -> list[str]:
    """Return the arguments that can be given without their names."""
    return [name for name, p in inspect.signature(method).parameters.items() if p.kind != p.KEYWORD_ONLY]


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
    if not wraps and inspect.isgeneratorfunction(method):
        raise PluginError(f"{where} yields; a hook returns its result, and only a medviz.Wrapper yields.")
    if wraps and not inspect.isgeneratorfunction(method):
        raise PluginError(f"{where} never yields; a wrapper yields once, where the hook runs, and returns the result.")


def _check_arguments(where: str, method: Any, allowed: tuple[str, ...]) -> None:
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        raise PluginError(f"{where} is `async`; a hook is a plain method.")
    parameters = list(inspect.signature(method).parameters.values())
    if not parameters:
        raise PluginError(f"{where} takes no argument; the first of a method is `self`.")
    for parameter in parameters[1:]:
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
    """Call one hook of one plugin instance, through `wrappers`, the first of them outermost.

    Raises:
        PluginError: a wrapper did not yield once, or lost the plugin's result.
    """
    inner = _Innermost(hook)
    try:
        result = getattr(_manager(plugin, wrappers, inner).hook, hook)(plugin=plugin, **arguments)
    except RuntimeError as err:
        if not wrappers or not str(err).startswith("wrap_controller at "):
            raise
        raise PluginError(
            f"{described(plugin, hook, wrappers)} failed: a wrapper yields once, no more, no less."
        ) from err
    if result is None and inner.result is not None:
        raise PluginError(
            f"{described(plugin, hook, wrappers)} returned None, and the plugin itself did not: a wrapper returns what "
            "its yield gives."
        )
    return result


def described(plugin: Plugin, hook: str, wrappers: Sequence[Wrapper] = ()) -> str:
    """Return, for messages, which hook was called, and what was around it."""
    around = f", inside of {', '.join(_name(type(wrapper)) for wrapper in wrappers)}," if wrappers else ""
    return f"{_name(type(plugin))}.{hook}{around}"


class _Innermost:
    """Keeps what the plugin itself returned, so that it is not blamed for what a wrapper makes of it."""

    def __init__(self, hook: str) -> None:
        self.result: Any = None

        def keep() -> Generator[None, Any, Any]:
            self.result = yield
            return self.result

        setattr(self, hook, hookimpl(wrapper=True)(keep))


def names_argument(plugin: Plugin | type[Plugin], hook: str, argument: str) -> bool:
    """Return whether the implementation of `hook` names `argument`."""
    cls = plugin if inspect.isclass(plugin) else type(plugin)
    return argument in inspect.signature(getattr(cls, hook)).parameters


def _manager(plugin: Plugin, wrappers: tuple[Wrapper, ...], inner: _Innermost) -> pluggy.PluginManager:
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
    for wrapper in (inner, *reversed(wrappers)) if wrappers else ():  # pluggy calls the one registered last first
        manager.register(wrapper)
    if not wrappers:
        state[MANAGER] = manager
    return manager


def _name(plugin: type) -> str:
    return f"{plugin.__module__}.{plugin.__qualname__}"
