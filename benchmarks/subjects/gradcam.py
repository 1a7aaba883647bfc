"""Grad-CAM beside one inference and beside its peers, at the deepest layer and at `layer2`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks import alone
from benchmarks.agreement import agree, said
from benchmarks.methods import gradcams
from benchmarks.networks import NETWORKS, channels_last, inference, own
from benchmarks.options import Options
from benchmarks.rows import Case, Row
from benchmarks.timing import Spread, Times, interleaved, medians, ratio

_TOLERANCE = 1e-3  # of the largest value: peers sum in another order
_FASTER = "gradcam peers"
_ROUNDS = {2: 45, 3: 15}  # by the number of axes: the times of 2-D vary as much, and take a fifth
_BARE = ("inference", "inference, channels last")
_CASES = [  # network, edge, edge when quick, layer: None: the deepest
    ("3-D ResNet18", 64, 48, None),
    ("3-D ResNet18", 64, 48, "layer2"),
    ("3-D DenseNet121", 96, 64, None),
    ("2-D ResNet18", 224, 96, None),
    ("2-D DenseNet121", 224, 96, None),
]


def cases(options: Options) -> Iterator[Case]:
    """Return a case for each network and layer."""
    for name, full, small, layer in _CASES:
        edge = small if options.quick else full
        line = "gradcam layer2" if layer else "gradcam deepest"
        title = f"{name}, {NETWORKS[name].size(edge)}, {layer or 'deepest layer'}"
        yield Case(title, partial(_compare, name, edge, layer, line, title, options), line)


def _compare(name: str, edge: int, layer: str | None, line: str, title: str, options: Options) -> Iterator[Row]:
    network = NETWORKS[name]
    model, image = network.model(options.device), network.image(edge, options.device)
    methods = gradcams(model, layer or network.deepest)
    found = agree({name: method.raw(image) for name, method in methods.items()}, _TOLERANCE, scaled=True)
    last = [channels_last(own(model), network.nd), channels_last(image, network.nd)]
    ways = dict(zip(_BARE, (partial(inference, own(model), image), partial(inference, *last)), strict=True))
    ways |= {name: partial(method.run, image) for name, method in methods.items()}
    rounds = options.rounds(_ROUNDS[network.nd])
    times = interleaved(ways, rounds, options.device)
    note = f"maps {said(found)}; {rounds} rounds"
    yield Row(line, title, ratio(times, "medviz", "inference"), medians(times), note)
    for other in [way for way in ways if way not in ("inference", "medviz")]:
        yield Row("", f"{title}: {other} / inference", ratio(times, other, "inference"))
    peers = {peer: taken for peer, taken in medians(times).items() if peer not in (*_BARE, "medviz")}
    if peers:
        yield _against(min(peers, key=lambda peer: peers[peer]), times, name, edge, layer, title, options)


def _against(peer: str, times: Times, name: str, edge: int, layer: str | None, title: str, options: Options) -> Row:
    """Faster, or as fast within the spread, with less memory."""
    value = ratio(times, "medviz", peer)
    case = f"{title}: medviz / {peer}, the fastest peer"
    if value.median <= 1 or not _overlap(times["medviz"], times[peer]):
        return Row(_FASTER, case, value)
    ours, theirs = (_memory(way, name, edge, layer, options) for way in ("medviz", peer))
    note = f"the times overlap; extra memory {ours:.0f} and {theirs:.0f} MB"
    return Row(_FASTER, case, value, note=note, met=ours < theirs)


def _overlap(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether the middle halves of both overlap: single outliers of a busy machine say nothing."""
    return _quarter(ours, 0) <= _quarter(theirs, 2)


def _quarter(values: Sequence[float], which: int) -> float:
    return statistics.quantiles(values, n=4)[which] if len(values) > 1 else values[0]


def _memory(way: str, name: str, edge: int, layer: str | None, options: Options) -> float:
    ask = alone.Question("memory", name, edge, way, layer, options.device)
    return Spread.of([alone.answer(ask)["megabytes"] for _ in range(options.rounds(3))]).median
