"""Checks of every kind: the class, its parameters, and that an instance holds configuration only."""

from __future__ import annotations

import inspect
import os
from typing import Any

import attrs

from medviz import naming, plugin_strings
from medviz.contract import check_class
from medviz.errors import PluginError
from medviz.hookspecs import Plugin
from medviz.testing.outcome import ConformanceError, describe_error, fail, name_of


def check_contract(instance: Plugin) -> None:
    """The class keeps the contract: its base class, its marked hooks and their arguments."""
    try:
        check_class(type(instance), instance.kind)
    except PluginError as err:
        raise ConformanceError(f"the class was held against the contract of {instance.kind}: {err}") from err


def check_parameters(instance: Plugin) -> None:
    """Every parameter has a default, except a sink's `path`; and the plugin can be written as a plugin string."""
    cls: type = type(instance)
    known = naming.parameters(instance)
    unkept = [name for name in inspect.signature(cls).parameters if name not in known]
    if unkept:
        fail(
            f"{name_of(instance)} was asked for its parameters, for the record of how a map was made",
            "each as an attribute of its name",
            f"none for {', '.join(unkept)}",
            "Write @attrs.frozen(eq=False) above the class, with a field for each.",
        )
    missing = [name for name, (_, default, _) in known.items() if default in (attrs.NOTHING, inspect.Parameter.empty)]
    missing = [name for name in missing if not (instance.kind == "sinks" and name == "path")]
    if missing:
        fail(
            f"{name_of(instance)} was to be made without parameters",
            "a default for each, so that its name alone works",
            f"none for {', '.join(missing)}",
            "Give each field a default that suits most users.",
        )
    try:
        naming.describe(instance)
    except Exception as err:
        raise ConformanceError(
            f"{name_of(instance)} was to be written as a plugin string, for the record of how a map was made: expected "
            f"text; got {describe_error(err)}. Parameters must be plain values, plugins or functions."
        ) from err
    for name, (value, *_) in known.items():
        text = plugin_strings.written("x", {name: value})
        if not (isinstance(value, Plugin) or callable(value) or _reads_back(text, name, value)):
            fail(
                f"{name_of(instance)} was written as a plugin string, for the record of how a map was made",
                f"a value of `{name}` that is read back as it was",
                text,
                "Let parameters be numbers, strings, lists and dicts of those, paths, plugins or functions.",
            )


def _reads_back(text: str, name: str, value: Any) -> bool:
    try:
        found = plugin_strings.parse(text)[1][name]
    except PluginError:
        return False
    return _listed(found) == _listed(os.fspath(value) if isinstance(value, os.PathLike) else value)


def _listed(value: Any) -> str:
    """A tuple and a list are the same, and NaN is itself."""
    return repr(value).translate(str.maketrans("()", "[]"))
