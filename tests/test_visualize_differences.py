"""The page "Differences from MONAI": every item is there, and so is every test that it names."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
ROWS = {m[1]: m[0] for m in re.finditer(r"^\| ([A-D]\d+) \|.*\|$", PAGE, re.MULTILINE)}
DEFECTS = "test_visualize_defects.py"  # where tests are that are named without their file
NAMED = re.compile(r"`(?:(test_\w+\.py)::)?(test_\w+)`")


@cache
def functions(file: str) -> dict[str, ast.FunctionDef]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def named_in(text: str) -> list[tuple[str, str]]:
    """Return the file and the name of each test that is named."""
    return [(file or DEFECTS, name) for file, name in NAMED.findall(text)]


def takes_a_peer(name: str) -> bool:
    return "peer" in [argument.arg for argument in functions(DEFECTS)[name].args.args]


def test_every_item_has_its_row() -> None:
    counts = {"A": 24, "B": 9, "C": 21, "D": 5}
    assert list(ROWS) == [f"{letter}{i}" for letter, count in counts.items() for i in range(1, count + 1)]


@pytest.mark.parametrize("item", ROWS)
def test_a_row_names_tests_that_exist_and_that_can_fail(item: str) -> None:
    named = named_in(ROWS[item])
    assert named
    for file, name in named:
        assert name in functions(file), f"{file}::{name}"
    pointed = [name for file, name in named if file == DEFECTS and takes_a_peer(name)]
    assert bool(pointed) != ("Cannot be pointed at MONAI: " in ROWS[item])
    assert all(name.startswith(f"test_{item.lower()}_") for file, name in named if file == DEFECTS)


def test_every_test_of_a_defect_is_in_its_row() -> None:
    for name in functions(DEFECTS):
        if name.startswith("test_"):
            assert f"`{name}`" in ROWS[name.split("_")[1].upper()]


def test_the_other_tests_of_the_page_exist() -> None:
    assert all(name in functions(file) for file, name in named_in(PAGE))


def test_the_page_is_in_the_navigation() -> None:
    assert "  - Differences from MONAI: differences.md\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
