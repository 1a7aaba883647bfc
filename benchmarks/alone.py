"""One method in a process of its own, so that nothing that another left behind counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Literal

import attrs

from benchmarks import machine, resident
from benchmarks.methods import single
from benchmarks.networks import NETWORKS, inference, own
from benchmarks.timing import interleaved, medians, ratio

_SMALL = 64  # the first call loads libraries and code; large enough for a spatial extent at the deepest layer


@attrs.frozen
class Question:
    """What is asked of the other process.

    Args:
        what: "memory": of one call; "time": of the method and of inference, in turns.
        network: a key of `NETWORKS`.
        edge: of the image.
        method: as in `methods.single`.
        layer: None: the deepest.
        device: "cpu" or "cuda".
        rounds: for "time".
    """

    what: Literal["memory", "time"]
    network: str
    edge: int
    method: str
    layer: str | None = None
    device: str = "cpu"
    rounds: int = 3


def answer(question: Question) -> dict[str, Any]:
    """Ask a fresh process.

    Returns:
        "megabytes"; or "seconds" and "ratio" (median, low, high) to inference.

    Raises:
        RuntimeError: the process failed; with the end of what it said.
    """
    command = [sys.executable, "-m", "benchmarks.alone", json.dumps(attrs.asdict(question))]
    environment = os.environ | (resident.ENVIRONMENT if question.what == "memory" else {})
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or f"the process ended with {done.returncode}"
        raise RuntimeError(f"{question.method} on {question.network} at {question.edge}: {said[-300:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(question: Question) -> dict[str, Any]:
    """Measure in this process; see `answer`."""
    network, device = NETWORKS[question.network], question.device
    model = network.model(device)
    run = single(question.method, own(model), question.layer or network.deepest)
    if question.what == "memory":
        small, image = network.image(_SMALL, device), network.image(question.edge, device)
        run(small)
        return {"megabytes": resident.extra(lambda: run(image), device)}
    image = network.image(question.edge, device)
    ways = {"inference": lambda: inference(model, image), "method": lambda: run(image)}
    times = interleaved(ways, question.rounds, device)
    return {"seconds": medians(times)["method"], "ratio": attrs.asdict(ratio(times, "method", "inference"))}


def main() -> None:
    """Answer the question of the command line in JSON."""
    machine.full_precision()
    sys.stdout.write(json.dumps(measure(Question(**json.loads(sys.argv[1])))) + "\n")


if __name__ == "__main__":
    main()
