"""What the demo's network can do, on the volume and the seeds that its training did not see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from demo_examples import HELD_OUT, example
from safetensors.torch import load_file

import medviz
from medviz.demo.measure import measure
from medviz.demo.network import CLASSES, LesionNet
from medviz.demo.run import EXPLAINERS
from medviz.demo.scan import load_scan, plant

CASES, PLANTS = 200, 20
HALF_CELL_MM = 4.0  # half the longest edge of a cell of the last feature maps


def report(weights: Path, echo: Callable[[str], None]) -> None:
    """Say how often the network in `weights` is right, and how well maps of it point at lesions."""
    network = LesionNet()
    network.load_state_dict(load_file(weights))
    network.eval()
    scan = load_scan(0)
    with torch.no_grad():
        right = [_right(network, *example(scan, HELD_OUT + i, i % 2 == 0), i % 2 == 0) for i in range(CASES)]
        clean = float(network(scan.data[None]).softmax(1)[0, CLASSES.index("no lesion")])
    echo(f"\nheld out: volume 0 of the scan, {CASES} augmented examples, half of them planted, with unseen seeds")
    echo(f"  right: {sum(right) / CASES:.1%} (planted {sum(right[::2])} of {CASES // 2}, unplanted {sum(right[1::2])})")
    echo(f"  the scan as it is: 'no lesion' with probability {clean:.4f}")
    echo(f"\nheld out: {PLANTS} plants with unseen seeds in volume 0 as it is")
    plants = [plant(scan, HELD_OUT + CASES + i) for i in range(PLANTS)]
    with torch.no_grad():
        answers = [int(network(image.data[None]).argmax()) == CLASSES.index("lesion") for image, _ in plants]
    echo(f"  answered 'lesion': {sum(answers)} of {PLANTS}")
    maps: list[Any] = [medviz.explain(network, image, EXPLAINERS, CLASSES.index("lesion")) for image, _ in plants]
    for i, name in enumerate(EXPLAINERS):
        found = [(measure(one[i], lesion), lesion) for one, (_, lesion) in zip(maps, plants, strict=True)]
        hits = sum(f.distance_mm <= lesion.radius_mm + HALF_CELL_MM for f, lesion in found)
        inside = [f.inside for f, _ in found]
        gain = min(f.gain for f, _ in found)
        echo(f"  {name:22} peak within radius + {HALF_CELL_MM} mm: {hits} of {PLANTS}")
        echo(f"  {'':22} mass inside: {min(inside):.0%} to {max(inside):.0%}, at least {gain:.0f} x its share")


def _right(network: LesionNet, data: torch.Tensor, coverage: torch.Tensor, planted: bool) -> bool:
    """Whether the answer is right; the lesion of a planted example is still in the picture."""
    if planted and coverage.max() < 0.5:
        raise RuntimeError("the augmentation moved the lesion out of the picture; shift less.")
    return bool(network(data[None, None]).argmax(1) == int(planted))
