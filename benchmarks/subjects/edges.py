"""Time and memory of every method over the volume's edge: is a map as cheap for a large volume as for a small one?

Each method has a process of its own for each edge and measure. Times are taken in turns with inference's, in the same
process, so that their ratio stands even where the machine's speed drifts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks import alone, machine
from benchmarks.methods import PEERS
from benchmarks.options import Options
from benchmarks.rows import TIMES, Case, Point, Row
from benchmarks.timing import Spread

NETWORK = "3-D DenseNet121"
LAYER = "features.denseblock3"  # at 32³ the deepest has one voxel, of which there is no map
_EDGES, _QUICK = (32, 64, 96, 128, 160), (32, 64)
_FROM = 64  # the edge that the largest is held against: below it, calls of milliseconds say little


def cases(options: Options) -> Iterator[Case]:
    """Return a case for each method and one for what they say together."""
    methods = ["inference", "medviz", "medviz, six methods"]
    methods += [peer for peer in PEERS if peer not in machine.missing()][: 1 if options.quick else None]
    found: list[Point] = []
    for method in methods:
        yield Case(method, partial(_curve, method, found, options))
    yield Case("parallel", partial(_parallel, found), "parallel time")


def _curve(method: str, found: list[Point], options: Options) -> Iterator[Point]:
    for edge in _QUICK if options.quick else _EDGES:
        point = _point(method, edge, options)
        found.append(point)
        yield point


def _point(method: str, edge: int, options: Options) -> Point:
    ask = partial(alone.Question, network=NETWORK, edge=edge, method=method, layer=LAYER, device=options.device)
    try:
        time = alone.answer(ask("time", rounds=options.rounds(3)))
        memory = alone.answer(ask("memory"))
    except RuntimeError as err:
        return Point(method, edge, failed=str(err))
    return Point(method, edge, time["seconds"], Spread(**time["ratio"]), memory["megabytes"])


def _parallel(found: list[Point]) -> Iterator[Row]:
    """The ratio to inference must not grow with the volume: this project's reading of "parallel"."""
    points = {(point.method, point.edge): point for point in found}
    edges = [point.edge for point in found if point.method == "medviz"]
    last, first = (points["medviz", edge] for edge in (max(edges), _FROM))
    case = f"{NETWORK}, `{LAYER}`, {max(edges)}³ against {_FROM}³"
    if first.ratio is None or last.ratio is None:
        raise RuntimeError(first.failed or last.failed)
    pairs = [(getattr(last.ratio, high), getattr(first.ratio, low)) for high, low in _EXTREMES]
    said = f"{first.ratio.median:.2f} {TIMES} at {_FROM}³, {last.ratio.median:.2f} {TIMES} at {max(edges)}³"
    yield Row("parallel time", case, Spread(*(a / b for a, b in pairs)), note=said)
    low, high = (_share(points, edge) for edge in (_FROM, max(edges)))
    said = f"{low:.2f} {TIMES} at {_FROM}³, {high:.2f} {TIMES} at {max(edges)}³"
    yield Row("parallel memory", case, Spread(*[high / low] * 3), note=said)


_EXTREMES = (("median", "median"), ("low", "high"), ("high", "low"))


def _share(points: dict[tuple[str, int], Point], edge: int) -> float:
    ours, bare = (points[method, edge].megabytes for method in ("medviz", "inference"))
    if not ours or not bare:
        raise RuntimeError(f"no memory was measured at {edge}³.")
    return ours / bare
