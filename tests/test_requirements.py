"""The oldest releases that are tested are the oldest that are allowed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PEERS = {"captum", "monai"}


def test_the_oldest_releases_are_those_that_are_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = (re.fullmatch(r"([\w-]+)>=([\d.]+)", line) for line in _lines(project))
    allowed = {found[1]: _numbers(found[2]) for found in asked if found}
    text = (ROOT / "requirements-oldest.txt").read_text(encoding="utf-8")
    tested = {name: _numbers(release) for name, release in re.findall(r"^([\w-]+)==([\d.]+)$", text, re.MULTILINE)}
    assert tested == {name: release for name, release in allowed.items() if name not in {"torch", *PEERS}}
    assert ".".join(map(str, allowed["torch"])) in text
    assert len(allowed) == len(_lines(project))


def _lines(project: dict[str, object]) -> list[str]:
    optional = project["optional-dependencies"]
    assert isinstance(optional, dict)
    return sorted({*project["dependencies"], *optional["test"]})  # type: ignore[misc]


def _numbers(release: str) -> tuple[int, ...]:
    numbers = list(map(int, release.split(".")))
    while numbers and not numbers[-1]:
        del numbers[-1]
    return tuple(numbers)
