"""Every plugin class of the package is listed as an entry point, and every entry point loads."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import attrs
import pytest

import medviz
from medviz import naming, registry
from medviz.contract import check_class
from medviz.hookspecs import KINDS, Plugin

OWN = [entry for entry in registry.entries() if entry.package == "medviz-xai"]


def _plugins() -> Iterator[type[Plugin]]:
    """Yield the public classes of the package, in the folders of the kinds, that implement a hook."""
    for kind in KINDS:
        try:
            folder = importlib.import_module(f"medviz.{kind}")
        except ModuleNotFoundError:
            continue
        for module in pkgutil.walk_packages(folder.__path__, f"{folder.__name__}."):
            for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                marked = any(hasattr(method, "medviz_impl") for method in vars(cls).values())
                marked = marked and not cls.__name__.startswith("_")
                if issubclass(cls, Plugin) and cls.__module__ == module.name and marked:
                    yield cls


def test_every_plugin_class_is_an_entry_point() -> None:
    found = {f"{cls.__module__}:{cls.__qualname__}": cls.kind for cls in _plugins()}
    named = {value: kind for value, kind in found.items() if not _needs_an_object(value)}
    assert named == {entry.value: entry.kind for entry in OWN}
    assert len(named) >= 30


def _needs_an_object(value: str) -> bool:
    """A class with a parameter that no plugin string can write, such as a function, is for Python code only."""
    module, _, name = value.partition(":")
    fields = attrs.fields(getattr(importlib.import_module(module), name))
    return any(f.default is attrs.NOTHING and f.name != "path" for f in fields)


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_entry_point_loads_and_keeps_the_contract(entry: registry.Entry) -> None:
    plugin = entry.load()
    check_class(plugin, entry.kind)
    assert inspect.getdoc(plugin), "a plugin says what it does"
    assert naming.origin(plugin) == entry
    assert entry.name == entry.name.lower()
    assert entry.version == medviz.__version__


@pytest.mark.parametrize("entry", [e for e in OWN if e.kind != "sinks"], ids=lambda e: f"{e.kind}-{e.name}")
def test_every_parameter_has_a_default_and_the_description_reads_back(entry: registry.Entry) -> None:
    made = registry.get(entry.kind, entry.full_name)
    assert naming.describe(made) == entry.name


@pytest.mark.parametrize("entry", [e for e in OWN if e.kind == "sinks"], ids=lambda e: e.name)
def test_every_sink_needs_at_most_a_path(entry: registry.Entry) -> None:
    suffix = getattr(entry.load(), "suffixes", ("",))[0]
    made = registry.get_sink(entry.full_name, path=f"somewhere{suffix}")
    again = registry.get_sink(f"{entry.full_name}:path=somewhere{suffix}")
    assert naming.describe(made) == naming.describe(again)
