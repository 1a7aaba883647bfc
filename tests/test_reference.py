"""The reference is what the code says: it is up to date, and no public name, hook, entry point or option is missing."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import medviz
import medviz.testing
from medviz import registry
from medviz.cli import main
from medviz.contract import hooks_of
from medviz.hookspecs import KINDS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TOOLS = ROOT / "tools"
REFERENCE = DOCS / "reference"
PAGES = [*sorted(REFERENCE.glob("*.md")), DOCS / "hooks.md"]
ENTRY = re.compile(r"^::: ([\w.]+)$(?:\n    options:\n(?:      \w+: .*\n)*?      heading: (\S+)$)?", re.MULTILINE)
FOUND = {m[1]: m[2] or "" for page in PAGES for m in ENTRY.finditer(page.read_text("utf-8"))}


def test_it_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise: python tools/reference.py."""
    monkeypatch.syspath_prepend(str(TOOLS))
    tool: Any = importlib.import_module("reference")
    try:
        assert {path.name for path in REFERENCE.iterdir()} == set(tool.PAGES)
        for name, make in tool.PAGES.items():
            assert (REFERENCE / name).read_text(encoding="utf-8") == make(), name
    finally:
        del sys.modules["reference"]


@pytest.mark.parametrize("name", [name for name in medviz.__all__ if name not in ("__version__", "hookimpl")])
def test_every_public_name_has_its_entry(name: str) -> None:
    public = getattr(medviz, name)
    assert f"{public.__module__}.{public.__qualname__}" in FOUND


@pytest.mark.parametrize("name", medviz.testing.__all__)
def test_every_public_name_of_the_kit_has_its_entry(name: str) -> None:
    assert f"medviz.testing.{name}" in FOUND.values()


def test_the_mark_of_hooks_has_its_entry() -> None:
    assert FOUND["medviz.hookspecs.hookimpl"] == "medviz.hookimpl"


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_hook_has_its_entry(kind: str) -> None:
    """The entry of a spec shows its class `Hooks` and the hooks in it, with their docstrings."""
    spec = KINDS[kind]
    assert f"medviz.hookspecs.{spec.__name__}" in FOUND
    assert spec.Hooks.__doc__ or any(hook in vars(spec.Hooks) for hook in hooks_of(kind))
    for hook in vars(spec.Hooks).values():
        assert not hasattr(hook, "medviz_spec") or hook.__doc__


@pytest.mark.parametrize(
    "entry", [e for e in registry.entries() if e.package == "medviz-xai"], ids=lambda e: f"{e.kind}-{e.name}"
)
def test_every_entry_point_has_its_entry(entry: registry.Entry) -> None:
    page = (REFERENCE / "plugins.md").read_text(encoding="utf-8")
    section = page.partition(f"## {entry.kind.capitalize()}\n")[2].partition("\n## ")[0]
    part = section.partition(f"### {entry.name}\n")[2].partition("\n### ")[0]
    assert f"::: {entry.value.replace(':', '.')}\n" in part
    for parameter in inspect.signature(entry.load()).parameters.values():
        assert re.search(rf"^medviz\.get_.*\b{parameter.name}\b", part, re.MULTILINE), parameter


@pytest.mark.parametrize("name", list(main.commands))
def test_every_option_has_its_row(name: str) -> None:
    page = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    section = page.partition(f"## medviz {name}\n")[2].partition("\n## ")[0]
    for parameter in main.commands[name].params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if isinstance(parameter, click.Argument):
                assert option.upper() in section
            else:
                assert re.search(rf"^\| `.*(?<![\w-]){re.escape(option)}(?![\w-]).*` \|", section, re.MULTILINE), option


@pytest.mark.parametrize("path", FOUND)
def test_every_entry_has_a_docstring_that_the_docs_can_find(path: str) -> None:
    """mkdocstrings reads source and imports nothing, so the object must be written where the path says."""
    module, _, name = path.rpartition(".")
    tree = ast.parse(source_of(path) or source_of(module) or "")
    if source_of(path):
        assert ast.get_docstring(tree)
        return
    kinds = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
    (node,) = [node for node in tree.body if isinstance(node, kinds) and name in names_of(node)]
    assert isinstance(node, ast.Assign | ast.AnnAssign) or ast.get_docstring(node)


def source_of(module: str) -> str | None:
    """The source of a module of this repository, or None where there is no such file."""
    base = ROOT / module.replace(".", "/")
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file.read_text(encoding="utf-8")
    return None


def names_of(node: ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]
