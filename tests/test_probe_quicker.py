"""Where only a clock can tell which way is quicker, the first rows tell it, and no result is lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks import DEVICES
from torch import Tensor, nn

import medviz
from medviz.explainers.occlusion import Occlusion
from medviz.occluders.constant import Constant
from medviz.probe import perturbed, quicker
from medviz.probe.patched import PatchedPasses
from medviz.probe.quicker import Quicker

pytestmark = pytest.mark.usefixtures("boxes_at_no_cost")


class Clock:
    """A clock that only stands for what was run: nothing is timed in a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(quicker.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Ways:
    """Two ways to the same results, and how long each takes: for each row, for each pass, and for the first pass."""

    def __init__(self, clock: Clock, whole: float, incremental: float | None, each: float = 0.0) -> None:
        self.clock, self.paces, self.each = clock, {"w": whole, "i": incremental}, each
        self.went, self.ready, self.memory = "", 0.0, {"w": 1000, "i": 1000}
        self.quicker = Quicker()

    def way(self, name: str) -> quicker.Way:
        def run(some: slice) -> Tensor:
            rows = some.stop - some.start
            if rows > self.memory[name]:
                raise torch.OutOfMemoryError("memory")
            self.clock.now += (self.paces[name] or 0.0) * rows + self.each + 100 * (name not in self.went)
            self.went += name
            return torch.arange(1000)[some]

        return run

    def prepare(self) -> quicker.Way | None:
        self.clock.now += self.ready
        return None if self.paces["i"] is None else self.way("i")

    def results(self, rows: int, full: int) -> Iterator[Tensor]:
        done = yield from self.quicker.first(rows, full, self.way("w"), self.prepare)
        yield from quicker.after(done, self.way("i" if self.quicker.incremental else "w"), rows, full)

    def run(self, rows: int, full: int) -> str:
        """Run rows; return which way each slice went: w or i."""
        before = len(self.went)
        assert torch.equal(torch.cat(list(self.results(rows, full))), torch.arange(rows))
        return self.went[before:]


def test_the_quicker_way_is_taken(clock: Clock) -> None:
    ways = Ways(clock, whole=1.0, incremental=0.5)
    assert ways.run(25, 3) == "wwiiiiiii"
    assert ways.quicker.incremental is True
    assert ways.run(6, 3) == "ii"


def test_whole_passes_are_taken_again_where_the_others_are_slower(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="medviz")
    ways = Ways(clock, whole=1.0, incremental=1.5)
    assert ways.run(25, 3) == "wwiiwwwww"
    assert ways.quicker.incremental is False
    assert "take 1.5 times as long" in caplog.text
    assert ways.run(6, 3) == "ww"


def test_where_there_is_little_the_other_way_is_not_made_ready(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="medviz")
    clock.now, ways = 0.0, Ways(clock, whole=0.01, incremental=0.001)
    ways.went = "wi"  # both are warm
    assert ways.run(25, 3) == "w" * 9
    assert ways.run(25, 3) == "w" * 9
    assert ways.quicker.incremental is None
    assert caplog.text.count("whole passes, for they take") == 1


def test_many_images_with_few_rows_are_many_rows(clock: Clock) -> None:
    ways = Ways(clock, whole=0.1, incremental=0.01)
    ways.went = "wi"
    assert [ways.run(6, 3) for _ in range(8)] == ["ww", "ww", "ww", "ii", "ii", "ii", "ii", "ii"]
    one = Ways(clock, whole=0.3, incremental=0.01)
    one.went = "wi"
    assert [one.run(3, 64) for _ in range(8)] == ["w", "w", "i", "i", "i", "i", "i", "i"]


def test_what_it_takes_to_make_the_other_way_ready_counts(clock: Clock) -> None:
    ways = Ways(clock, whole=1.0, incremental=0.5)
    ways.ready = 10.0
    assert ways.run(16, 3) == "wwiiww"  # 10 s for 16 rows
    ways = Ways(clock, whole=1.0, incremental=0.5)
    ways.ready = 10.0
    assert ways.run(24, 3) == "wwiiiiii"


def test_there_may_be_no_other_way(clock: Clock) -> None:
    ways = Ways(clock, whole=1.0, incremental=None)
    assert ways.run(25, 3) == "w" * 9
    assert ways.quicker.incremental is None  # it may be ready for other rows


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 9, 10, 12])
def test_few_slices(clock: Clock, rows: int) -> None:
    slices = -(-rows // 3)
    assert Ways(clock, whole=10.0, incremental=1.0).run(rows, 3) == "wwii"[:slices]


def test_a_short_slice_is_not_compared_with_long_ones(clock: Clock) -> None:
    ways = Ways(clock, whole=1.0, incremental=0.1, each=50.0)
    assert ways.run(3 * 64 + 1, 64) == "wwii"  # the last one has a single row
    assert ways.quicker.incremental is None
    assert ways.run(256, 64) == "iiii"
    assert ways.quicker.incremental is True


def test_slices_of_another_length_start_anew(clock: Clock) -> None:
    ways = Ways(clock, whole=1.0, incremental=0.1)
    assert ways.run(6, 3) == "ww"
    assert ways.run(20, 5) == "wwii"


def test_whole_passes_that_memory_does_not_hold(clock: Clock) -> None:
    ways = Ways(clock, whole=1.0, incremental=0.1)
    ways.memory["w"] = 2
    assert ways.run(20, 8) == "wwww" + "ww" + "ii" + "i"  # a slice of 8 in parts; slices of 2; then what is left
    assert ways.quicker.incremental is True


def test_incremental_passes_that_memory_does_not_hold(clock: Clock) -> None:
    ways = Ways(clock, whole=1.0, incremental=0.1)
    ways.memory["i"] = 0
    assert ways.run(25, 3) == "w" * 9
    assert ways.quicker.incremental is False


def test_another_error_comes_through(clock: Clock) -> None:
    ways = Ways(clock, whole=1.0, incremental=0.1)

    def broken(some: slice) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(ways.quicker.first(25, 3, ways.way("w"), lambda: broken))


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
    assert timed.count("prepared") == (3 if quick else 1)


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


def test_rows_at_once_are_those_of_the_windows_that_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of another size run in between: what they took says nothing of these."""
    sizes: list[int] = []
    prepared = PatchedPasses.prepared

    def noted(self: PatchedPasses, *args: Any) -> Any:
        part = prepared(self, *args)
        assert part is not None
        sizes.append(part.row_bytes)
        return part

    monkeypatch.setattr(PatchedPasses, "prepared", noted)
    methods = [Occlusion(size, 0.5, Constant(0.0)) for size in (8, 3, 8)]
    medviz.explain(network(), torch.rand(1, 1, 24, 24), methods, 0)
    assert sizes[0] == sizes[2] > sizes[1]
