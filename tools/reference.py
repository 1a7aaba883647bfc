"""Make docs/reference/: `python tools/reference.py`. A test holds it against the code, so that nothing is missing.

The pages name every public object; mkdocstrings puts in its docstring when the docs are built. The command line's page
is written out in full, from click.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import click

import medviz
import medviz.testing
from medviz import registry
from medviz.cli import main
from medviz.hookspecs import KINDS

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
NOTE = "<!-- Made by tools/reference.py; to change it, change the docstrings and options. -->"
GROUPS = {
    "Explain": ("explain", "per_image", "Probe"),
    "Read and write": ("read", "Image", "Attribution", "Rendering"),
    "Find plugins": ("names", "get_explainer", "get_occluder", "get_renderer", "get_sink", "get_reader", "prefer"),
    "For authors of plugins": (
        "hookimpl",
        "field",
        "LayerExplainer",
        "FileSink",
        "PictureSink",
        "ResultKey",
        "MapRenderer",
        "Plugin",
        "describe",
        "atomic",
        "PluginError",
    ),
}
"""What stands where; hooks and targets have pages of their own."""
VALIDATORS = ("number", "whole", "of_type", "one_of")


def public() -> dict[str, str]:
    """Return where each public name but the version is written, by name."""
    return {name: written(name) for name in medviz.__all__ if name != "__version__"}


def written(name: str) -> str:
    """Return the full path of a public object where it is defined, which is what mkdocstrings can read."""
    value = getattr(medviz, name)
    home = f"{medviz._HOME[name]}.{name}"
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else home


def api() -> str:
    """Return the page of the public API."""
    homes = public()
    own_pages = {*targets_of(homes), *(spec.__name__ for spec in KINDS.values())}
    groups = {
        **GROUPS,
        "More": tuple(sorted(homes.keys() - own_pages - {n for names in GROUPS.values() for n in names})),
    }
    lines = [
        "# Public API",
        NOTE,
        "Everything that `import medviz` offers; it is loaded when it is first used. The specs of the kinds of plugins "
        "are on the page of the [hooks](../hooks.md), the targets on [theirs](targets.md). What is not named here may "
        "change without notice.",
    ]
    for title, names in groups.items():
        if names:
            lines += [f"## {title}", *(entry(homes[name], f"medviz.{name}") for name in names)]
    kit = [name for name in medviz.testing.__all__ if name not in ("models", "strategies")]
    lines += [
        "## medviz.validators",
        "Checks for the parameters of plugins, for `attrs.field(validator=…)`, whose errors name the "
        "parameter; `medviz.validators.SEED` is the one of a seed.",
        *(entry(f"medviz.validators.{name}", f"medviz.validators.{name}") for name in VALIDATORS),
        "## medviz.testing",
        "The conformance kit, explained in [testing a plugin](../testing.md).",
        *(entry(f"{getattr(medviz.testing, name).__module__}.{name}", f"medviz.testing.{name}") for name in kit),
        *(entry(f"medviz.testing.{name}", f"medviz.testing.{name}") for name in ("models", "strategies")),
    ]
    return page(lines)


def targets_of(homes: dict[str, str]) -> list[str]:
    """Return the public names that are targets."""
    return [name for name in homes if name.endswith("Target")]


def targets() -> str:
    """Return the page of the targets."""
    homes = public()
    lines = [
        "# Targets",
        NOTE,
        "What is explained: from the output to one score for each image. `target=` takes None (the predicted class), "
        "an int, a tensor `(B,)` of classes, a function of the output, or one of these; a list means several targets.",
        *(entry(homes[name], f"medviz.{name}") for name in targets_of(homes)),
    ]
    return page(lines)


def plugins() -> str:
    """Return the page of the built-in plugins."""
    lines = [
        "# Built-in plugins",
        NOTE,
        "Each entry point of `medviz-xai`: the name that is written in Python and in a shell, and the class behind it. "
        "[What is built in](../builtins.md) is the short list, the [gallery](../gallery.md) shows what they draw.",
    ]
    unnamed: dict[str, None] = {}
    for kind in KINDS:
        own = [each for each in registry.entries(kind) if each.package == "medviz-xai"]
        if own:
            lines.append(f"## {kind.capitalize()}")
            lines += [built_in(each) for each in own]
            unnamed |= dict.fromkeys(path for each in own for path in bases(each) if path not in public().values())
    lines += ["## Parameters that several share", *(entry(path, path.rpartition(".")[2]) for path in unnamed)]
    return page(lines)


def bases(plugin: registry.Entry) -> list[str]:
    """Return the full paths of the classes that a plugin has parameters from, beside its own."""
    cls: Any = plugin.load()
    fields = [field.name for field in attrs.fields(cls)] if attrs.has(cls) else []
    homes = [next(home for home in cls.__mro__ if name in vars(home).get("__annotations__", {})) for name in fields]
    return list(dict.fromkeys(f"{home.__module__}.{home.__qualname__}" for home in homes if home is not cls))


def built_in(plugin: registry.Entry) -> str:
    """Return the entry of a plugin: its parameters with their defaults, then its docstring."""
    parameters = inspect.signature(plugin.load()).parameters.values()
    given = [p.name + ("" if p.default is p.empty else f"={p.default!r}") for p in parameters]
    call = f"medviz.get_{plugin.kind[:-1]}({', '.join([repr(plugin.name), *given])})".replace("'", '"')
    path = plugin.value.replace(":", ".")
    options = "      show_root_heading: false\n      show_root_toc_entry: false\n      heading_level: 4"
    shared = "".join(f" [{base.rpartition('.')[2]}][{base}]" for base in bases(plugin))
    shared = f"\n\nIt also has the parameters of{shared.replace('] [', '] and [')}." if shared else ""
    return f"### {plugin.name}\n\n```text\n{call}\n```\n\n::: {path}\n    options:\n{options}{shared}"


def commands() -> str:
    """Return the page of the command line."""
    context = main.make_context("medviz", [], resilient_parsing=True)
    lines = [
        "# All commands and options",
        NOTE,
        "What `-h` shows. The [page of the command line](../cli.md) explains it with examples.",
    ]
    for name, command in main.commands.items():
        inner = click.Context(command, info_name=name, parent=context)
        options = [each for each in command.get_params(inner) if isinstance(each, click.Option)]
        rows = [record for each in options if (record := each.get_help_record(inner))]
        usage = f"medviz {name} {' '.join(command.collect_usage_pieces(inner))}"
        lines += [f"## medviz {name}", f"```text\n{usage}\n```", *paragraphs(command.help or ""), table(rows)]
    return page(lines)


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a command's help; what click is told to leave as it is becomes a block of code."""
    parts = inspect.cleandoc(text).split("\n\n")
    return [f"```text\n{p.partition(chr(10))[2]}\n```" if p.startswith("\b") else " ".join(p.split()) for p in parts]


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return the options as a table."""
    body = [f"| `{option}` | {words} |" for option, words in (map(_cell, row) for row in rows)]
    return "\n".join(["| option | |", "|---|---|", *body])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", ", ")


def entry(path: str, heading: str) -> str:
    """Return the line that mkdocstrings replaces, under a heading of our own."""
    options = {"heading_level": 3, "heading": heading, "toc_label": heading}
    return f"::: {path}\n    options:\n" + "\n".join(f"      {key}: {value}" for key, value in options.items())


def page(lines: Iterable[str]) -> str:
    """Return the text of a page."""
    return "\n\n".join(lines) + "\n"


PAGES = {"api.md": api, "targets.md": targets, "plugins.md": plugins, "commands.md": commands}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
