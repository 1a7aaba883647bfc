"""How long occlusion takes, window by window: `python -m benchmarks.occlusion`.

Three ways over the same windows, in one process, in turns (A B C A B C …): medviz incrementally, medviz with whole
passes, and MONAI. Before anything is timed, the maps are held against each other. What is printed is the median of the
ratios of each round, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import attrs
import torch
from monai.networks import nets
from monai.visualize import OcclusionSensitivity
from torch import Tensor, nn

from medviz.explainers.occlusion import Occlusion
from medviz.occluders.constant import Constant

_AGREE = 1e-4  # of the largest value of the map


@attrs.frozen
class Case:
    """A network, an image and its windows: half of them overlap along each axis."""

    name: str
    network: Callable[[], nn.Module]
    edge: int
    nd: int
    mask: int = 16


CASES = [
    Case("3-D ResNet18", partial(nets.resnet18, spatial_dims=3, n_input_channels=1, num_classes=3), 96, 3),
    Case("3-D DenseNet121", partial(nets.DenseNet121, 3, 1, 3), 96, 3),
    Case("2-D ResNet18", partial(nets.resnet18, spatial_dims=2, n_input_channels=1, num_classes=3), 224, 2),
    Case("2-D DenseNet121", partial(nets.DenseNet121, 2, 1, 3), 224, 2),
]


def ways(case: Case, windows: int, batch: int, device: str) -> dict[str, Callable[[], Tensor]]:
    """Return what is timed: each maps the score of class 0 over the first `windows` windows along the last axes."""
    torch.manual_seed(0)
    model = case.network().eval().to(device)
    image = torch.rand(1, 1, *[case.edge] * case.nd, device=device)
    step = case.mask // 2
    # one row of windows through the middle of the image, as long as `windows` allows
    along = min(case.edge, case.mask + step * (windows - 1))
    middle = (case.edge - case.mask) // 2
    first = (case.edge - along) // 2
    part = [(middle, middle + case.mask)] * (case.nd - 1) + [(first, first + along)]
    cut = (slice(None), slice(None), *(slice(low, high) for low, high in part))
    score = float(model(image)[0, 0].detach())

    def ours(incremental: bool) -> Tensor:
        method = Occlusion(case.mask, 0.5, Constant(0.0), region=part, incremental=incremental)
        return method(model, image, 0, batch_size=batch).values[cut]

    peer = OcclusionSensitivity(
        model, mask_size=case.mask, n_batch=batch, verbose=False, mode=0.0, overlap=0.5, activate=False
    )
    box = [bound for low, high in part for bound in (low, high)]

    def theirs() -> Tensor:
        with torch.no_grad():
            return score - torch.as_tensor(peer(image, b_box=box)[0])[:, :1].cpu()

    return {"medviz": partial(ours, True), "medviz, whole passes": partial(ours, False), "MONAI": theirs}


def timed(run: Callable[[], Tensor], device: str) -> float:
    """Return the seconds of one call."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def row(case: Case, windows: int, batch: int, rounds: int, device: str) -> str:
    """Return one line of the table.

    Raises:
        ValueError: the maps do not agree, so that their times cannot be compared.
    """
    runs = ways(case, windows, batch, device)
    maps = {name: run() for name, run in runs.items()}
    largest = float(maps["MONAI"].abs().max())
    error = float((maps["medviz"] - maps["medviz, whole passes"]).abs().max()) / largest
    against = float((maps["medviz"] - maps["MONAI"]).abs().max()) / largest
    if max(error, against) > _AGREE:
        raise ValueError(f"{case.name}: the maps differ by {error:.1e} and {against:.1e} of the largest value.")
    times = [{name: timed(run, device) for name, run in runs.items()} for _ in range(rounds)]
    ratios = [
        f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})"
        for name in ("medviz, whole passes", "MONAI")
        for r in [[t[name] / t["medviz"] for t in times]]
    ]
    seconds = statistics.median(t["medviz"] for t in times)
    return f"| {case.name} | {case.edge}^{case.nd} | {seconds:.2f} | {' | '.join(ratios)} | {error:.0e} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--windows", type=int, default=12, help="windows along the last axis")
    parser.add_argument("--batch", type=int, default=8, help="copies in one pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    lines = [
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {options.device}",
        "",
        "| network | image | medviz, s | whole passes / medviz | MONAI / medviz | error |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        row(case, options.windows, options.batch, options.rounds, options.device)
        for case in CASES
        if options.only in case.name
    ]
    import click

    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
