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
        said = f"{taken.median:.0f} MB ({taken.low:.0f} to {taken.high:.0f}), inference {bare.median:.0f} MB; {repeats}"
        met = taken.median <= LINES["memory"].target * bare.median + _SPARE
        yield Row("memory", f"{title}: {way}", value, note=f"{said} processes each", met=met)
    for peer in PEERS:
        if peer not in machine.missing():
            extra = _extra(name, edge, peer, options)
            of_bare = Spread(*[extra / bare.median] * 3)
            yield Row("", f"{title}: {peer} / inference", of_bare, note=f"{extra:.0f} MB; 1 process")


def _extra(name: str, edge: int, way: str, options: Options) -> float:
    megabytes: float = alone.answer(alone.Question("memory", name, edge, way, device=options.device))["megabytes"]
    return megabytes
