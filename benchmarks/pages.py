"""The page and the plots, made of what is on disk."""

from __future__ import annotations

from pathlib import Path

from benchmarks import plots, report
from benchmarks.records import Record, read_all
from benchmarks.rows import LINES
from benchmarks.subjects import TITLES, edges


def write(out: Path, label: str) -> Path:
    """Write the page `<label>.md` and its plots of the records in `<out>/<label>/`, and return where it is."""
    records = read_all(out / label, list(TITLES))
    page = out / f"{label}.md"
    pictures = [(title, f"{label}/{path.name}") for title, path in _plots(records, out / label)]
    page.write_text(report.page(records, label, pictures), encoding="utf-8")
    return page


def _plots(records: list[Record], folder: Path) -> list[tuple[str, Path]]:
    points = [p for record in records for p in record.points if p.megabytes is not None]
    if not points:
        return []
    title = f"Grad-CAM of a {edges.NETWORK} at {edges.LAYER}: time and memory over the edge of the volume"
    return [(title, plots.edges(points, folder / "edges.svg", title))]


def summary(out: Path, label: str) -> str:
    """Return how many promises are kept, and which are not."""
    found = report.promises(read_all(out / label, list(TITLES)), label.partition("-")[0])
    measured = [(key, row) for key, row in found if row is not None]
    missed = [
        f"{LINES[key].text}: {report.found(row)}, target {LINES[key].said()} ({row.case})"
        for key, row in measured
        if not row.kept
    ]
    head = f"{len(measured) - len(missed)} of {len(found)} promises kept, {len(found) - len(measured)} not measured"
    return "\n".join([head, *(f"missed: {one}" for one in missed)])
