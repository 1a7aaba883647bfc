"""Time several ways of doing one thing in turns, and compare them round by round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

Way = Callable[[], Any]
Times = Mapping[str, Sequence[float]]


@attrs.frozen
class Spread:
    """A median with the smallest and the largest of what was measured."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        if not values:
            raise ValueError("nothing was measured: a spread needs at least one value.")
        return cls(statistics.median(values), min(values), max(values))


def seconds(way: Way, device: str = "cpu") -> float:
    """Return how long one call takes; on an accelerator between two of its own events."""
    gc.collect()
    if device.startswith("cuda"):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        stream = torch.cuda.current_stream(device)
        start.record(stream)
        kept = way()  # let go of only when the clock has stopped
        end.record(stream)
        end.synchronize()
        took = start.elapsed_time(end) / 1000
    else:
        begun = time.perf_counter()
        kept = way()
        took = time.perf_counter() - begun
    del kept
    return took


def interleaved(
    ways: Mapping[str, Way],
    rounds: int,
    device: str = "cpu",
    warm: bool = False,
    clock: Callable[[Way, str], float] = seconds,
    after: Way | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of each way in each round, in the order A B C A B C …, after one round that does not count.

    Args:
        ways: what is called, by name.
        rounds: how often each is timed.
        device: whose clock counts.
        warm: each way has been called just now, so that the first round counts.
        clock: how one call is timed.
        after: called after each call, and not timed.
    """
    after = after or (lambda: None)
    if not warm:
        for way in ways.values():
            way()
            after()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(clock(way, device))
            after()
    return taken


def ratio(times: Times, above: str, below: str) -> Spread:
    """Return `above / below`, round by round: what slows the machine down for a while slows both."""
    return Spread.of([a / b for a, b in zip(times[above], times[below], strict=True)])


def medians(times: Times) -> dict[str, float]:
    """Return the median seconds of each way."""
    return {name: statistics.median(taken) for name, taken in times.items()}
