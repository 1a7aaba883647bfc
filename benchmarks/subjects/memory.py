"""Extra memory of Grad-CAM beside that of one inference, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks import alone, machine
from benchmarks.methods import PEERS
from benchmarks.networks import NETWORKS
from benchmarks.options import Options
from benchmarks.rows import LINES, Case, Row
from benchmarks.timing import Spread

_SPARE = 8.0  # MB, which the promise leaves beside the ratio
_CASES = [("3-D DenseNet121", 96, 64), ("3-D DenseNet121", 128, 0), ("3-D ResNet18", 96, 0)]  # 0: not when quick


def cases(options: Options) -> Iterator[Case]:
    """Return a case for each network and size."""
    for name, full, small in _CASES:
        edge = small if options.quick else full
        if edge:
            title = f"{name}, {NETWORKS[name].size(edge)}"
            yield Case(title, partial(_compare, name, edge, title, options), "memory")


def _compare(name: str, edge: int, title: str, options: Options) -> Iterator[Row]:
    repeats = 1 if options.quick else 5
    ways = ("inference", "medviz", "medviz, automatic layer")
    runs: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            runs[way].append(_extra(name, edge, way, options))
    bare = Spread.of(runs["inference"])
    for way in ways[1:]:
        taken = Spread.of(runs[way])
        value = Spread(*(mb / bare.median for mb in (taken.median, taken.low, taken.high)))
        met = taken.median <= LINES["memory"].target * bare.median + _SPARE
        note = f"{_megabytes(taken)}, inference {_megabytes(bare)}; a process for each of {repeats} calls"
        yield Row("memory", f"{title}: {way}", value, note=note, met=met)
    for peer in list(PEERS)[: 1 if options.quick else None]:
        if peer not in machine.missing():
            extra = _extra(name, edge, peer, options)
            of_bare = Spread(*[extra / bare.median] * 3)
            yield Row("", f"{title}: {peer} / inference", of_bare, note=f"{extra:.0f} MB; 1 process")


def _megabytes(spread: Spread) -> str:
    return f"{spread.median:.0f} MB ({spread.low:.0f} to {spread.high:.0f})"


def _extra(name: str, edge: int, way: str, options: Options) -> float:
    megabytes: float = alone.answer(alone.Question("memory", name, edge, way, device=options.device))["megabytes"]
    return megabytes
