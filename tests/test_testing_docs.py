"""The page about testing names every check there is, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import medviz.testing
from medviz.hookspecs import KINDS
from medviz.testing.checks import CHECKS, common

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "testing.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, str]:
    """Return the checks that a section lists, with what it says of each."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE))


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_has_its_row(kind: str) -> None:
    own = [one.__name__ for one in CHECKS[kind] if one.__module__ != common.__name__]
    shared = [one.__name__ for one in CHECKS[kind] if one.__module__ == common.__name__]
    assert list(rows(kind.capitalize())) == own
    assert list(rows("Every kind")) == shared
    assert len(own) > 1


def test_every_row_is_a_sentence() -> None:
    sentences = [text for heading in ("Every kind", *map(str.capitalize, KINDS)) for text in rows(heading).values()]
    assert all(len(text.split()) > 4 and text[0].isupper() and text.endswith(".") for text in sentences), sentences


def test_every_check_says_what_it_does() -> None:
    for checks in CHECKS.values():
        for one in checks:
            assert one.__doc__, one
            assert one.__doc__.splitlines()[0].endswith("."), one


@pytest.mark.parametrize("name", medviz.testing.__all__)
def test_every_public_name_is_on_the_page(name: str) -> None:
    assert f"::: medviz.testing.{name}\n" in PAGE + "\n"
