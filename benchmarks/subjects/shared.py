"""Six class-activation methods for three targets beside one inference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import medviz
from benchmarks.agreement import agree
from benchmarks.methods import SIX
from benchmarks.networks import NETWORKS, inference
from benchmarks.options import Options
from benchmarks.rows import Case, Row
from benchmarks.timing import interleaved, medians, ratio
from medviz.probe import Probe
from medviz.relay import run_explainer

_TARGETS = [0, 1, 2]
_CASES = [
    ("3-D ResNet18", 64, 48),
    ("3-D DenseNet121", 96, 64),
    ("2-D ResNet18", 224, 96),
    ("2-D DenseNet121", 224, 96),
]


def cases(options: Options) -> Iterator[Case]:
    """Return a case for each network."""
    for name, full, small in _CASES:
        edge = small if options.quick else full
        title = f"{name}, {NETWORKS[name].size(edge)}"
        yield Case(title, partial(_compare, name, edge, title, options), "shared")


def _compare(name: str, edge: int, title: str, options: Options) -> Iterator[Row]:
    network = NETWORKS[name]
    model, image = network.model(options.device), network.image(edge, options.device)
    explainers: list[Any] = [medviz.get_explainer(f"medviz-xai/{one}", layer=network.deepest) for one in SIX]
    together = medviz.explain(model, image, explainers, _TARGETS)
    singly = [one(model, image, target) for one in explainers for target in _TARGETS]
    found = agree({"together": _stack(together), "one by one": _stack(singly)}, 1e-5)
    ways = {
        "inference": partial(inference, model, image),
        "raw": partial(_raw, model, image, explainers, network.deepest),
        "explain": partial(medviz.explain, model, image, explainers, _TARGETS),
    }
    times = interleaved(ways, options.rounds(15), options.device)
    said = f"agree with single calls to {found:.0e}; {options.rounds(15)} rounds"
    yield Row("shared", f"{title}: maps on one Probe", ratio(times, "raw", "inference"), medians(times), said)
    case = f"{title}: `medviz.explain`, 18 maps on the image's grid"
    yield Row("shared", case, ratio(times, "explain", "inference"), note=said)


def _stack(attributions: list[Any]) -> Tensor:
    """Return the maps, each scaled, so that a method with small values counts as much as the others."""
    maps = [one.values / one.values.abs().max().clamp_min(1e-30) for one in attributions]
    return torch.cat(maps)


def _raw(model: nn.Module, image: Tensor, explainers: list[Any], layer: str) -> list[Tensor]:
    with Probe(model, image, layers=[layer]) as probe:
        fixed = [probe.fix(target) for target in _TARGETS]
        return [run_explainer(one, probe, target, ()) for one in explainers for target in fixed]
