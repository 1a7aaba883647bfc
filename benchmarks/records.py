"""What a subject has measured, on disk: written after every case, so that nothing is lost where a later one fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from benchmarks.rows import Point, Row, item_of, plain


@attrs.define
class Record:
    """The results of one subject.

    Args:
        subject: its name.
        environment: see `machine.environment`.
        items: rows of the table and points of the plot.
        complete: False as long as something is still to come.
    """

    subject: str
    environment: dict[str, Any]
    items: list[Row | Point] = attrs.field(factory=list)
    complete: bool = False

    @property
    def rows(self) -> list[Row]:
        """Return what stands in the table."""
        return [item for item in self.items if isinstance(item, Row)]

    @property
    def points(self) -> list[Point]:
        """Return what stands in the plot."""
        return [item for item in self.items if isinstance(item, Point)]

    def write(self, path: Path) -> None:
        """Write it to `path`, so that a reader never sees half of it."""
        data = attrs.asdict(self, recurse=False) | {"items": [plain(item) for item in self.items]}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)


def read(path: Path) -> Record:
    """Return what `Record.write` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return Record(**{**data, "items": [item_of(item) for item in data["items"]]})


def read_all(folder: Path, order: list[str]) -> list[Record]:
    """Return the records of a folder, in the order of their subjects."""
    paths = [folder / f"{name}.json" for name in order]
    return [read(path) for path in paths if path.exists()]
