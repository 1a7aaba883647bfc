"""Train the demo's network: `python tools/train_demo.py`; it takes 758 s of processor time, spread over two cores.

It learns from volume 1 of the scan. Volume 0, which the demo shows, and the seeds that it is tested with are held out.
Both volumes show one head, two seconds apart: what this network can do is find what `medviz.demo.scan.plant` plants in
this head, and no more.

It is told where the lesion lies, not only that there is one: the evidence of each cell of the last feature maps is
drawn towards the share of the cell that is lesion. So it is known what the network looks at, and a map can be held
against it.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np
import torch
from demo_examples import CALIBRATION, head_of, pool
from demo_report import report
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from medviz.demo.network import WEIGHTS, LesionNet
from medviz.demo.scan import load_scan

CHANNELS = LesionNet().fc.in_features
ENOUGH = 1.5  # cells of evidence that speak for a lesion; the smallest lesion fills three


def losses(network: LesionNet, images: Tensor, lesions: Tensor, quiet: float) -> tuple[Tensor, Tensor]:
    """Return how far each cell's evidence is from the lesion's share of the cell, and the cross entropy of the answer.

    Lesion cells weigh together about as much as all others. Both the evidence and its positive part are drawn there, so
    that methods that keep positive parts only see the same.

    Args:
        network: in training mode; the weights of its class "lesion" add up the evidence.
        images: `(B, 1, *S)`.
        lesions: how much of each voxel is lesion, `(B, 1, *S)`.
        quiet: how much evidence costs where there is no lesion.
    """
    features = network.features(images)
    share = F.adaptive_avg_pool3d(lesions, features.shape[2:])
    weight = network.fc.weight[1][:, None, None, None]
    place = features.new_zeros(())
    for part in (weight, weight.clamp(min=0)):
        miss = (features * part).sum(1, keepdim=True) - share
        place = place + ((1 + 1000 * share) * miss**2).mean() + quiet * miss.abs().mean()
    found = (features * weight).sum((1, 2, 3, 4))
    planted = (lesions.amax((1, 2, 3, 4)) > 0.5).float()
    return place, F.binary_cross_entropy_with_logits(1.5 * (found - ENOUGH), planted)


def train(scans: Tensor, lesions: Tensor, steps: int, batch: int, seed: int) -> LesionNet:
    """Return the network after `steps` batches of scans and lesions `(N, 1, *S)`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = LesionNet().train()
    torch.nn.init.constant_(network.layer4[1].bias, -1.0)  # silent from the start but for a few cells
    torch.nn.init.constant_(network.fc.weight, 1 / CHANNELS)
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    start = time.monotonic()
    for step in range(steps):
        rows = torch.from_numpy(rng.permutation(len(scans))[:batch])
        flips = [axis for axis in (2, 4) if rng.random() < 0.5]
        images, masks = (part[rows].float().flip(flips) for part in (scans, lesions))
        done = step / steps
        place, answer = losses(network, images, masks, quiet=0.3 + 30 * done**2)
        loss = place + (0.01 * answer if done > 0.5 else 0)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            seconds = time.monotonic() - start
            click.echo(f"step {step:4}  place {place.item():.4f}  answer {answer.item():7.3f}  {seconds:4.0f} s")
    return network.eval()


@torch.no_grad()
def calibrate(network: LesionNet, scans: Tensor, lesions: Tensor, cells: int) -> None:
    """Turn the evidence into logits, by a logistic regression with two parameters on scans and lesions `(N, 1, *S)`.

    Args:
        network: its linear layer is replaced; its features stay.
        scans: not those that it was trained on, of which it is too sure.
        lesions: how much of each voxel is lesion.
        cells: the cells of the last feature maps of a whole scan, over which the pooling averages.
    """
    weight = network.fc.weight[1].clone()
    sums = torch.cat([network.features(part.float()).sum((2, 3, 4)) for part in scans.split(8)])
    planted = (lesions.float().amax((1, 2, 3, 4)) > 0.5).float()
    slope, offset = logistic(sums @ weight, planted)
    network.fc.weight.copy_(torch.stack([-weight, weight]) * slope * cells / 2)
    network.fc.bias.copy_(torch.tensor([-offset, offset]) / 2)


@torch.enable_grad()
def logistic(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return slope and offset of the logit of `y` `(N,)` in `x` `(N,)`; the slope is held to what scans can show."""
    line = torch.tensor([1.0, -ENOUGH], requires_grad=True)
    optimiser = torch.optim.LBFGS([line], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(line[0] * x + line[1], y) + 1e-3 * line[0] ** 2
        loss.backward()
        return loss

    optimiser.step(closure)
    slope, offset = line.tolist()
    return slope, offset


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default=WEIGHTS, show_default=True)
@click.option("--steps", type=int, default=2400, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--train/--no-train", "training", default=True, help="Report on the weights that there are.")
def main(output: Path, steps: int, seed: int, training: bool) -> None:
    """Train, write the weights, and report what the network can do on what was held out."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    start, cpu = time.monotonic(), time.process_time()
    if training:
        scan = load_scan(1)
        scans, lesions = pool(scan, 1000)
        click.echo(f"{len(scans)} examples of {head_of(scan)} after {time.monotonic() - start:.0f} s")
        torch.set_num_threads(2)
        network = train(scans, lesions, steps, 6, seed)
        with torch.no_grad():
            cells = network.features(scan.data[None])[0, 0].numel()
        torch.set_num_threads(1)
        fresh = pool(scan, 300, CALIBRATION)
        torch.set_num_threads(2)
        calibrate(network, *fresh, cells)
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, output)
        output.chmod(0o644)  # safetensors keeps it from everybody else, and so would a wheel
        seconds, busy = time.monotonic() - start, time.process_time() - cpu
        click.echo(f"trained in {seconds:.0f} s ({busy:.0f} s of processor time); {output.stat().st_size:,} bytes")
    report(output, click.echo)


if __name__ == "__main__":
    main()
