"""Where only a clock can tell which way is quicker, the first rows tell it, and no result is lost."""

from __future__ import annotations

import logging

import pytest
import torch
from networks import DEVICES
from torch import Tensor, nn

from medviz.explainers.occlusion import Occlusion
from medviz.occluders.constant import Constant
from medviz.probe import perturbed, quicker
from medviz.probe.batching import in_batches
from medviz.probe.patched import PatchedPasses
from medviz.probe.quicker import Quicker


class Clock:
    """A clock that only stands for what was run: nothing is timed in a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(quicker.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def run(clock: Clock, rows: int, size: int, whole: float, incremental: float | None) -> tuple[str, Quicker]:
    """Run rows, where a way takes so many seconds for each; return which way each slice went: w or i."""
    went = []

    def way(name: str, pace: float) -> quicker.Way:
        def some(part: slice) -> Tensor:
            taken = torch.arange(rows)[part]
            clock.now += pace * len(taken) + 100 * (name not in went)  # the first time takes long
            went.append(name)
            return taken

        return some

    chosen = Quicker(rows, way("w", whole), lambda: None if incremental is None else way("i", incremental))
    results = list(in_batches(rows, size, chosen))
    assert torch.equal(torch.cat(results), torch.arange(rows))
    return "".join(went), chosen


def test_the_quicker_way_is_taken(clock: Clock) -> None:
    went, chosen = run(clock, 25, 3, whole=1.0, incremental=0.5)
    assert (went, chosen.incremental) == ("wwiiiiiii", True)


def test_whole_passes_are_taken_again_where_the_others_are_slower(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="medviz")
    went, chosen = run(clock, 25, 3, whole=1.0, incremental=1.5)
    assert (went, chosen.incremental) == ("wwiiwwwww", False)
    assert "take 1.5 times as long" in caplog.text


def test_where_little_is_left_the_other_way_is_not_made_ready(clock: Clock) -> None:
    went, chosen = run(clock, 25, 3, whole=0.1, incremental=0.01)
    assert (went, chosen.incremental) == ("w" * 9, None)


def test_there_may_be_no_other_way(clock: Clock) -> None:
    went, chosen = run(clock, 25, 3, whole=1.0, incremental=None)
    assert (went, chosen.incremental) == ("w" * 9, None)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 9, 10])
def test_few_slices(clock: Clock, rows: int) -> None:
    went, _ = run(clock, rows, 3, whole=10.0, incremental=1.0)
    assert went == "wwii"[: -(-rows // 3)]


def test_a_slice_that_memory_does_not_hold_is_not_counted(clock: Clock) -> None:
    def whole(some: slice) -> Tensor:
        if some.stop - some.start > 2:
            raise torch.OutOfMemoryError("memory")
        clock.now += 1.0 * (some.stop - some.start)
        return torch.arange(20)[some]

    def incremental(some: slice) -> Tensor:
        clock.now += 0.1 * (some.stop - some.start)
        return torch.arange(20)[some]

    chosen = Quicker(20, whole, lambda: incremental)
    assert torch.equal(torch.cat(list(in_batches(20, 8, chosen))), torch.arange(20))
    assert chosen.incremental


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Decide by the clock on every device, also for little work; collect which way each pass went."""
    monkeypatch.setattr(perturbed, "is_timed", lambda device: True)
    monkeypatch.setattr(quicker, "_LEAST", -1.0)
    went: list[str] = []
    rows, prepared = PatchedPasses._rows, PatchedPasses.prepared

    def noted(self: PatchedPasses, *args: object) -> Tensor:
        went.append("i")
        return rows(self, *args)  # type: ignore[arg-type]

    def made(self: PatchedPasses, *args: object) -> object:
        went.append("prepared")
        return prepared(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(PatchedPasses, "_rows", noted)
    monkeypatch.setattr(PatchedPasses, "prepared", made)
    return went


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quick", [True, False])
def test_the_map_is_the_same_whichever_way_is_quicker(
    timed: list[str], quick: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def perf_counter() -> float:
        nonlocal now
        now += 1.0 if "i" not in timed or not quick else 0.1
        return now

    monkeypatch.setattr(quicker.time, "perf_counter", perf_counter)
    model = network().to(device)
    images = torch.rand(2, 1, 24, 24, device=device)
    made = Occlusion(4, 0.5, Constant(0.0))(model, images, 0, batch_size=8)
    whole = Occlusion(4, 0.5, Constant(0.0), incremental=False)(model, images, 0, batch_size=8)
    torch.testing.assert_close(made.values, whole.values, rtol=1e-4, atol=1e-6)
    windows = len(Occlusion(4, 0.5).windows((24, 24)))
    slices = -(-windows // 8)
    assert timed.count("i") == (2 * slices - 2 if quick else 2)  # the second image needs no more trials
    assert timed.count("prepared") == (2 if quick else 1)


def test_boxes_that_stop_growing_are_asked_for_and_not_chosen(timed: list[str]) -> None:
    images = torch.rand(1, 1, 24, 24)
    Occlusion(4, 0.5, Constant(0.0), growth=0.5)(network(), images, 0, batch_size=8)
    windows = len(Occlusion(4, 0.5).windows((24, 24)))
    assert timed.count("i") == -(-windows // 8)


def test_who_asks_for_deterministic_algorithms_gets_no_clock() -> None:
    gpu = torch.device("cuda")
    assert quicker.is_timed(gpu)
    assert not quicker.is_timed(torch.device("cpu"))
    torch.use_deterministic_algorithms(True)
    try:
        assert not quicker.is_timed(gpu)
    finally:
        torch.use_deterministic_algorithms(False)
