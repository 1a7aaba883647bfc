"""How far maps lie beside what they show: `python tools/alignment.py` prints the numbers of docs/how-it-works.md."""

from __future__ import annotations

import click
import torch
from torch import Tensor

import medviz
from medviz.demo.network import load_network
from medviz.demo.scan import load_scan, plant

METHODS = ["gradcam", "gradcam:aligned=true"]
LESIONS = 30


def centre_of_mass(values: Tensor) -> Tensor:
    """Return where the mass of a map `(*S)` has its centre, in voxels along each axis."""
    places = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in values.shape], indexing="ij")
    return torch.stack([(place * values).sum() for place in places]) / values.sum()


def main() -> None:
    """Print, for each method, the mean distance along each axis from a planted lesion to the middle of its map."""
    network, scan = load_network(), load_scan(0)
    beside: dict[str, list[Tensor]] = {method: [] for method in METHODS}
    for seed in range(LESIONS):
        planted, lesion = plant(scan, seed)
        for method, attribution in zip(METHODS, medviz.explain(network, planted, METHODS, 1), strict=True):
            if attribution.values.any():
                beside[method].append(centre_of_mass(attribution.values[0, 0].double()) - torch.tensor(lesion.center))
    for method, found in beside.items():
        mean = ", ".join(f"{distance:+.2f}" for distance in torch.stack(found).mean(0).tolist())
        click.echo(f"{method}: {mean} voxels, of {len(found)} lesions")


if __name__ == "__main__":
    main()
