"""The table: what is promised beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.records import Record
from benchmarks.rows import CPU_ONLY, LINES, TIMES, Point, Row, number
from benchmarks.subjects import TITLES
from benchmarks.timing import Spread

_VERDICT = {True: "yes", False: "**no**", None: ""}


def said(item: Row | Point) -> str:
    """Return one result on one line, for the terminal."""
    if isinstance(item, Point):
        ratio = f", {_spread(item.ratio, TIMES)} inference" if item.ratio else ""
        numbers = item.failed or f"{_time(item.seconds)}{ratio}, {item.megabytes:.0f} MB"
        return f"  {item.method} at {item.edge}³: {numbers}"
    line = LINES.get(item.line)
    target = f" (target {line.said()}: {'kept' if item.kept else 'MISSED'})" if line else ""
    return f"  {item.case}: {found(item)}{target}"


def page(records: Sequence[Record], label: str, plots: Iterable[tuple[str, str]]) -> str:
    """Return the page.

    Args:
        records: what was measured.
        label: see `Options.label`.
        plots: titles and addresses of pictures.
    """
    device = label.partition("-")[0]
    parts = [f"# Measured on the {'CPU' if device == 'cpu' else 'GPU'}", _intro(records), *_environments(records)]
    parts += ["## What is promised", _promises(records, device)]
    parts += [f"![{title}]({address})" for title, address in plots]
    for record in records:
        if record.rows:
            parts += [f"## {TITLES[record.subject]}", _details(record)]
        if record.points:
            parts.append(_points(record.points))
    return "\n\n".join(parts) + "\n"


def promises(records: Sequence[Record], device: str = "cpu") -> list[tuple[str, Row | None]]:
    """Return every promise with its worst case, or with None where nothing was measured."""
    rows = [row for record in records for row in record.rows]
    wanted = [key for key in LINES if device == "cpu" or key not in CPU_ONLY]
    return [(key, _worst(key, [row for row in rows if row.line == key])) for key in wanted]


def _worst(key: str, rows: list[Row]) -> Row | None:
    """Return the row furthest from its target; one that failed is worse than any, a missed one worse than one kept."""

    def rank(row: Row) -> tuple[int, float]:
        if row.value is None:
            return 0, 0.0
        return (2 if row.kept else 1), LINES[key].margin(row.value.median)

    return min(rows, key=rank, default=None)


def _intro(records: Sequence[Record]) -> str:
    text = (
        "Made by `python -m benchmarks`; not to be edited by hand. Each number is the median over the rounds, with the "
        "smallest and the largest; ratios are taken round by round. Results are held against each other before they "
        "are timed."
    )
    if any(record.environment.get("quick") for record in records):
        text += (
            "\n\n**A quick run: small images, few rounds. It proves that everything runs; the verdicts do not count.**"
        )
    unfinished = [TITLES[record.subject] for record in records if not record.complete]
    if unfinished:
        text += f"\n\n**Not finished: {', '.join(unfinished)}.**"
    return text


def _environments(records: Sequence[Record]) -> list[str]:
    """One list where all was measured in one go, else one for each machine, day and set of versions."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        shown = _environment(record.environment)
        groups.setdefault(shown, []).append(record)
    if len(groups) == 1:
        return list(groups)
    return [f"{', '.join(TITLES[r.subject] for r in group)}:\n\n{shown}" for shown, group in groups.items()]


def _environment(env: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    lines = [
        f"- {env['machine']}, {env['cores']} cores, {env['threads']} threads, {env['system']}; device: {env['device']}",
        f"- Python {env['python']}; {versions}",
        f"- not installed: {', '.join(env['missing'])}" if env["missing"] else "- every peer is installed",
        f"- {env['date']}, commit {env['commit']}; float32, random weights, one image",
    ]
    return "\n".join(lines)


def _promises(records: Sequence[Record], device: str) -> str:
    lines = ["| what | target | measured | kept | worst case |", "|---|---|---|---|---|"]
    for key, row in promises(records, device):
        line = LINES[key]
        measured = "not measured" if row is None else found(row)
        kept, case = ("", "") if row is None else (_VERDICT[row.kept], row.case)
        lines.append(_cells(line.text, line.said(), measured, kept, case))
    return "\n".join(lines)


def _details(record: Record) -> str:
    lines = ["| case | measured | target | kept | medians | remarks |", "|---|---|---|---|---|---|"]
    for row in record.rows:
        target = LINES[row.line].said() if row.line in LINES else ""
        times = ", ".join(f"{name} {_time(seconds)}" for name, seconds in row.seconds.items())
        lines.append(_cells(row.case, found(row), target, _VERDICT[row.kept], times, row.note))
    return "\n".join(lines)


def _points(points: Sequence[Point]) -> str:
    edges = sorted({point.edge for point in points})
    lines = [_cells("time, and extra memory", *(f"{edge}³" for edge in edges)), "|---" * (len(edges) + 1) + "|"]
    for method in dict.fromkeys(point.method for point in points):
        of = {point.edge: point for point in points if point.method == method}
        lines.append(_cells(method, *(_point(of.get(edge)) for edge in edges)))
    failed = [f"- {' '.join(point.failed.split())}" for point in points if point.failed]
    return "\n".join([*lines, "", "Failed:", "", *failed] if failed else lines)


def _point(point: Point | None) -> str:
    if point is None or point.megabytes is None:
        return "failed" if point else ""
    ratio = f" ({number(point.ratio.median)})" if point.ratio and point.method != "inference" else ""
    return f"{_time(point.seconds)}{ratio}, {point.megabytes:.0f} MB"


def found(row: Row) -> str:
    """Return what was measured, or why nothing was."""
    if row.value is None:
        return f"failed: {row.failed}"
    return _spread(row.value, LINES[row.line].unit if row.line in LINES else TIMES)


def _spread(spread: Spread, unit: str) -> str:
    median = number(spread.median, unit)
    if spread.low == spread.high:
        return median
    return f"{median} ({number(spread.low, unit).split()[0]} to {number(spread.high, unit).split()[0]})"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _cells(*cells: str) -> str:
    """Return a line of a table; what a peer says in an error must not break it."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"
