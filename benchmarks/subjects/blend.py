"""`blend_images` of a volume beside MONAI's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import medviz.visualize
from benchmarks.agreement import agree, said
from benchmarks.options import Options
from benchmarks.rows import Case, Row
from benchmarks.timing import interleaved, medians, ratio

_EDGE = 128


def cases(options: Options) -> Iterator[Case]:
    """Return a case for tensors and one for arrays."""
    for kind in ("tensors",) if options.cuda else ("tensors", "arrays"):
        yield Case(kind, partial(_compare, kind, options), "blend")


def _compare(kind: str, options: Options) -> Iterator[Row]:
    import monai.visualize

    edge = 64 if options.quick else _EDGE
    torch.manual_seed(0)
    image, heat = (torch.rand(1, edge, edge, edge).to(options.device) for _ in range(2))
    heat[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # where the range of a heat map does not hold 0, MONAI differs
    given = (image, heat) if kind == "tensors" else (image.numpy(), heat.numpy())
    ways = {
        name: partial(package.blend_images, *given, 0.5, "jet")
        for name, package in (("medviz", medviz.visualize), ("MONAI", monai.visualize))
    }
    made, expected = (torch.as_tensor(way()).cpu().float() for way in ways.values())
    found = agree({"medviz": made, "MONAI": expected}, 1e-5)
    times = interleaved(ways, options.rounds(41), options.device)
    note = f"{said(found)}; {options.rounds(41)} rounds"
    yield Row("blend", f"{edge}³, {kind}", ratio(times, "MONAI", "medviz"), medians(times), note)
