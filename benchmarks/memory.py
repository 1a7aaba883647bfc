"""How much memory Grad-CAM takes in comparison with one inference: `python -m benchmarks.memory`.

Extra memory is the peak resident memory of a call, less the resident memory before it. Each call is made in a process
of its own, after the same call on a small volume, so that libraries, threads and code are loaded by then. The
allocator gives freed memory back at once there: what it keeps otherwise differs from run to run by more than the call.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

import medviz

ALLOWED_RATIO, ALLOWED_MB = 1.10, 8.0
_LAYERS = {"DenseNet121": "class_layers.relu", "resnet18": "layer4"}
_SMALL = 64  # large enough for a spatial extent at the deepest layer


def network(name: str) -> nn.Module:
    """Return a 3-D network of MONAI with one channel and two classes, in eval mode."""
    from monai.networks import nets

    torch.manual_seed(0)
    if name == "DenseNet121":
        return nets.DenseNet121(3, 1, 2).eval()
    return nets.resnet18(spatial_dims=3, n_input_channels=1, num_classes=2).eval()


def _forward(model: nn.Module, image: Tensor) -> Any:
    with torch.no_grad():
        return model(image)


def call(name: str, mode: str) -> Callable[[nn.Module, Tensor], Any]:
    """Return what is measured: "forward", "gradcam" at the deepest layer by name, or "automatic"."""
    if mode == "forward":
        return _forward
    explainer = medviz.get_explainer("medviz-xai/gradcam", layer=_LAYERS[name] if mode == "gradcam" else None)
    return lambda model, image: explainer(model, image, 1)


MODES = ("forward", "gradcam", "automatic")


def measure(name: str, edge: int, mode: str) -> float:
    """Return the extra memory of one call in this process, in MB of 10⁶ bytes."""
    model, run = network(name), call(name, mode)
    run(model, torch.rand(1, 1, _SMALL, _SMALL, _SMALL))
    image = torch.rand(1, 1, edge, edge, edge)
    gc.collect()
    _reset_peak()
    before = _status("VmRSS")
    result = run(model, image)
    extra = (_peak() - before) / 1e6
    del result
    return extra


def _status(key: str) -> int:
    """Return a value of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


_can_reset = True


def _reset_peak() -> None:
    global _can_reset
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not permitted in some containers: the peak since the process began, which the small call is below
        _can_reset = False


def _peak() -> int:
    if _can_reset:
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_own_process(name: str, edge: int, mode: str) -> float:
    """Return `measure` of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--one", name, str(edge), mode]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}  # for glibc
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return float(done.stdout.split()[-1])


def row(name: str, edge: int, repeats: int) -> list[str]:
    """Return one row of the table: medians over `repeats` processes for each way, interleaved."""
    runs: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(repeats):
        for mode in MODES:
            runs[mode].append(in_own_process(name, edge, mode))
    median = {mode: statistics.median(values) for mode, values in runs.items()}
    forward = median["forward"]
    kept = all(median[mode] <= ALLOWED_RATIO * forward + ALLOWED_MB for mode in MODES)
    cells = [f"{median[mode]:.0f} ({min(runs[mode]):.0f} to {max(runs[mode]):.0f})" for mode in MODES]
    ratios = [f"{median[mode] / forward:.2f}" for mode in MODES[1:]]
    return [name, f"{edge}³", cells[0], cells[1], ratios[0], cells[2], ratios[1], "yes" if kept else "**no**"]


HEADER = ["network", "volume", "inference, MB", "Grad-CAM, MB", "ratio", "automatic layer, MB", "ratio", "within"]


def main() -> None:
    """Print a table of the extra memory of one inference and of Grad-CAM."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--edges", nargs="+", type=int, default=[96, 128], help="edges of the volumes")
    parser.add_argument("--repeats", type=int, default=5, help="processes for each number")
    parser.add_argument("--one", nargs=3, metavar=("NETWORK", "EDGE", "MODE"), help="one measurement in this process")
    given = parser.parse_args()
    if given.one:
        click.echo(measure(given.one[0], int(given.one[1]), given.one[2]))
        return
    click.echo(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, one channel, one volume;")
    click.echo(f"medians of {given.repeats} processes (smallest to largest); within: at most")
    click.echo(f"{ALLOWED_RATIO} times the inference, plus {ALLOWED_MB:.0f} MB\n")
    click.echo(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    for name in _LAYERS:
        for edge in given.edges:
            click.echo(f"| {' | '.join(row(name, edge, given.repeats))} |")


if __name__ == "__main__":
    main()
