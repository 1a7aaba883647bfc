"""The parts of the benchmarks work; nothing is timed here."""

from __future__ import annotations

import logging
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from helpers_cli import invoke
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import __main__ as command
from benchmarks import alone, machine, methods, pages, plots, report, resident, runner, subjects
from benchmarks.agreement import DisagreementError, agree, error
from benchmarks.networks import NETWORKS, Network
from benchmarks.options import Options
from benchmarks.records import Record, read
from benchmarks.rows import LINES, TIMES, Case, Line, Point, Row
from benchmarks.subjects.gif import volume
from benchmarks.subjects.occlusion import MASK, STEP, Untraceable, heard, region
from benchmarks.timing import Spread, interleaved, ratio
from medviz.explainers.occlusion import Occlusion
from medviz.incremental import Incremental

ENVIRONMENT = machine.environment(Options(quick=True))


def spread(median: float) -> Spread:
    return Spread(median, median / 2, median * 2)


# ---------------------------------------------------------------------------------------------------------- times


def test_a_ratio_is_taken_round_by_round() -> None:
    assert ratio({"slow": [2.0, 40.0, 9.0], "fast": [1.0, 20.0, 3.0]}, "slow", "fast") == Spread(2.0, 2.0, 3.0)


def test_ratios_of_unequally_many_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio({"a": [1.0, 2.0], "b": [1.0]}, "a", "b")


def test_no_values_have_no_spread() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        Spread.of([])


def test_ways_take_turns_after_a_round_that_does_not_count() -> None:
    said: list[str] = []
    clocked: list[str] = []

    def clock(way: Any, device: str) -> float:
        way()
        clocked.append(said[-1] + device)
        return float(len(clocked))

    times = interleaved({"a": lambda: said.append("a"), "b": lambda: said.append("b")}, 2, "cpu", clock=clock)
    assert said == ["a", "b"] * 3
    assert clocked == ["acpu", "bcpu", "acpu", "bcpu"]
    assert times == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


# ------------------------------------------------------------------------------------------------------ agreement


def test_what_differs_is_refused_by_name() -> None:
    map_ = torch.tensor([1.0, -4.0])
    assert agree({"medviz": map_, "MONAI": map_.clone()}, 0.0) == 0
    assert agree({"medviz": map_, "MONAI": map_ + 0.02}, 0.01) == pytest.approx(0.02 / 3.98)
    with pytest.raises(DisagreementError, match=r"medviz and captum differ by 2\.5e-01 of the largest value"):
        agree({"medviz": map_, "MONAI": map_, "captum": torch.tensor([0.0, -4.0])}, 0.1)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (torch.zeros(2), "zero everywhere"),
        (torch.tensor([1.0, float("nan")]), "not finite"),
        (torch.ones(2, 1), "shapes differ"),
    ],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_what_cannot_be_compared_is_refused(theirs: torch.Tensor, message: str, scaled: bool) -> None:
    with pytest.raises(DisagreementError, match=f"medviz and MONAI: .*{message}"):
        agree({"medviz": torch.tensor([1.0, 2.0]), "MONAI": theirs}, 1.0, scaled)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_a_constant_factor_is_no_difference_where_that_is_said(mine: float, theirs: float) -> None:
    map_ = torch.tensor([0.25, 1.0, -3.0])
    assert agree({"medviz": mine * map_, "peer": theirs * map_}, 1e-6, scaled=True) <= 1e-6
    assert error(mine * map_, mine * map_) == 0
    if abs(mine / theirs - 1) > 0.01:
        with pytest.raises(DisagreementError, match="differ"):
            agree({"medviz": mine * map_, "peer": theirs * map_}, 1e-3)


# ------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("line", "value", "kept"),
    [
        (Line("", "≤", 1.1), 1.1, True),
        (Line("", "≤", 1.1), 1.11, False),
        (Line("", "≥", 3.5), 3.5, True),
        (Line("", "≥", 3.5), 3.49, False),
    ],
)
def test_a_promise_is_kept_or_not(line: Line, value: float, kept: bool) -> None:
    assert line.holds(value) is kept
    assert (line.margin(value) >= 1) is kept


def test_the_verdict_of_a_row() -> None:
    assert Row("cam", "", spread(12.0)).kept is True
    assert Row("cam", "", spread(9.0)).kept is False
    assert Row("memory", "", spread(1.2), met=True).kept is True
    assert Row("cam", "", failed="no memory").kept is False
    assert Row("", "for information", spread(9.0)).kept is None


@pytest.mark.parametrize("quick", [False, True])
def test_every_promise_is_measured_by_some_subject(quick: bool) -> None:
    """Three come along: the fastest peer with Grad-CAM, memory with time over the edge, error with occlusion."""
    lines = {case.line for name in subjects.TITLES for case in subjects.cases(name, Options(quick=quick))}
    assert set(LINES) - lines == {"gradcam peers", "parallel memory", "occlusion error"}
    assert lines - set(LINES) == {""}


def test_a_gpu_is_not_asked_for_what_runs_on_the_cpu() -> None:
    assert set(subjects.names(Options("cuda"))) == set(subjects.TITLES) - subjects.CPU_ONLY
    asked = {case.line for name in subjects.CPU_ONLY for case in subjects.cases(name, Options())}
    assert not asked & {key for key, _ in report.promises([], "cuda")}
    assert {key for key, _ in report.promises([], "cpu")} == set(LINES)


# ---------------------------------------------------------------------------------------------------------- peers


def test_a_peer_that_is_not_installed_is_said() -> None:
    assert machine.missing(lambda name: None if name == "torchcam" else "1.0") == ["torchcam"]
    assert machine.version("no-such-distribution") is None
    record = Record("cam", ENVIRONMENT | {"missing": ["captum", "torchcam"]}, complete=True)
    assert "- not installed: captum, torchcam" in report.page([record], "cpu", [])


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "missing", lambda: ["MONAI", "grad-cam", "torchcam", "captum"])
    assert list(methods.gradcams(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)), "0")) == ["medviz"]


def test_every_peer_has_its_grad_cam() -> None:
    assert list(methods.PEERS) == list(machine.PEERS)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # MONAI's own
def test_the_installed_peers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them are enough for a test; the benchmarks check all."""
    pytest.importorskip("monai")
    pytest.importorskip("captum")
    monkeypatch.setattr(machine, "missing", lambda: ["grad-cam", "torchcam"])
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)]
    found = methods.gradcams(torch.nn.Sequential(*layers).eval(), "0")
    image = torch.rand(1, 1, 9, 8)
    maps = {name: method.raw(image) for name, method in found.items()}
    assert list(maps) == ["medviz", "MONAI", "captum"]
    assert agree(maps, 1e-5, scaled=True) <= 1e-5
    assert {tuple(getattr(m.run(image), "shape", (1, 1, 9, 8))) for m in found.values()} == {(1, 1, 9, 8)}


def test_an_unknown_method() -> None:
    with pytest.raises(ValueError, match="'gradcamp' is no method; expected inference, medviz or one of MONAI"):
        methods.single("gradcamp", torch.nn.Identity(), "layer4")


# -------------------------------------------------------------------------------------------------------- results


def failing() -> Iterator[Row]:
    yield Row("cam", "before", spread(11.0))
    raise MemoryError("no | room")


def cases() -> Iterator[Case]:
    yield Case("fails", failing, "cam")
    yield Case("works", lambda: [Row("cam", "after", spread(12.0))], "cam")
    yield Case("points", lambda: [Point("medviz", 64, 0.5, spread(1.0), 100.0), Point("captum", 64, failed="killed")])


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return runner.measure(Record("cam", ENVIRONMENT), cases(), tmp_path / "cam.json")


def test_a_case_that_fails_costs_the_others_nothing(record: Record, tmp_path: Path) -> None:
    assert [(row.case, row.kept) for row in record.rows] == [("before", True), ("fails", False), ("after", True)]
    assert record.rows[1].failed == "MemoryError: no | room"
    assert record.complete
    assert read(tmp_path / "cam.json") == record


def test_what_was_measured_before_a_crash_is_kept(tmp_path: Path) -> None:
    def crash() -> Iterator[Row]:
        yield Row("cam", "before", spread(11.0))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.measure(Record("cam", ENVIRONMENT), [Case("crash", crash)], tmp_path / "cam.json")
    kept = read(tmp_path / "cam.json")
    assert [row.case for row in kept.rows] == ["before"]
    assert not kept.complete
    assert "**Not finished: CAM.**" in report.page([kept], "cpu", [])


def table_lines(text: str) -> Iterator[list[str]]:
    """Yield the lines of each table of a page."""
    for block in text.split("\n\n"):
        if block.startswith("|"):
            yield block.splitlines()


def test_the_page_says_the_worst_case_of_every_promise_and_hides_no_miss(record: Record) -> None:
    record.items.append(Row("blend", "128³", Spread(2.4, 2.0, 2.6), {"medviz": 0.1, "MONAI": 0.24}, "9 rounds"))
    text = report.page([record], "cpu-quick", [("a plot", "cpu-quick/edges.svg")])
    lines = text.replace(TIMES, "x").splitlines()
    (cam,) = [line for line in lines if line.startswith("| MONAI / medviz, CAM")]
    assert cam.endswith("| ≥ 10.0 x | failed: MemoryError: no \\| room | **no** | fails |")
    (blend,) = [line for line in lines if line.startswith("| MONAI / medviz, `blend_images`")]
    assert blend.endswith("| ≥ 2.50 x | 2.40 x (2.00 to 2.60) | **no** | 128³ |")
    assert "| 128³ | 2.40 x (2.00 to 2.60) | ≥ 2.50 x | **no** | medviz 100 ms, MONAI 240 ms | 9 rounds |" in lines
    assert sum("| not measured |" in line for line in lines) == len(LINES) - 2
    assert "| medviz | 500 ms (1.00 x), 100 MB |" in lines
    assert "- killed" in lines
    assert "A quick run" in text
    assert "![a plot](cpu-quick/edges.svg)" in lines
    for table in table_lines(text):
        cells = {len(re.split(r"(?<!\\)\|", line)) for line in table}
        assert len(cells) == 1, table[0]


def test_of_two_that_are_kept_the_nearer_to_the_target_is_the_worst(record: Record) -> None:
    kept = [row for row in record.rows if not row.failed]
    found = dict(report.promises([attrs.evolve(record, items=kept)]))
    assert found["cam"] is not None
    assert found["cam"].case == "before"


def test_a_missed_promise_is_worse_than_one_that_is_kept_in_another_way() -> None:
    rows = [Row("memory", "with room to spare", spread(1.4), met=True), Row("memory", "missed", spread(1.2))]
    found = dict(report.promises([Record("memory", ENVIRONMENT, [*rows])]))
    assert found["memory"] is rows[1]


def test_what_was_measured_elsewhere_is_told_apart(record: Record) -> None:
    other = Record("blend", ENVIRONMENT | {"machine": "Another one"}, complete=True)
    text = report.page([record, other], "cpu", [])
    assert "CAM:\n\n- " in text
    assert "Blending:\n\n- Another one" in text


def test_the_page_and_the_plot_are_made_of_what_is_on_disk(record: Record, tmp_path: Path) -> None:
    record.write(tmp_path / "cpu" / "cam.json")
    page = pages.write(tmp_path, "cpu")
    assert "(cpu/edges.svg)" in page.read_text(encoding="utf-8")
    ElementTree.parse(tmp_path / "cpu" / "edges.svg")
    before = (tmp_path / "cpu" / "edges.svg").read_bytes()
    pages.write(tmp_path, "cpu")
    assert (tmp_path / "cpu" / "edges.svg").read_bytes() == before
    said = pages.summary(tmp_path, "cpu")
    assert said.startswith(
        f"0 of {len(LINES)} promises kept, {len(LINES) - 1} not measured\nmissed: MONAI / medviz, CAM"
    )


def test_nothing_measured_is_a_page_but_no_plot(tmp_path: Path) -> None:
    text = pages.write(tmp_path, "cpu").read_text(encoding="utf-8")
    assert text.count("not measured") == len(LINES)
    assert "![" not in text
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.edges([Point("medviz", 64, failed="killed")], tmp_path / "edges.svg", "")


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2."""
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", [plots.INK, *(style[0] for style in plots.STYLES.values())])
@pytest.mark.parametrize("page", ["#ffffff", "#0d1117", "#1e2129"])
def test_plots_stand_out_from_light_and_dark_pages(colour: str, page: str) -> None:
    low, high = sorted((luminance(colour), luminance(page)))
    assert (high + 0.05) / (low + 0.05) >= 3  # what WCAG 2 asks of graphics and large text


def test_every_method_has_its_own_line() -> None:
    assert {"inference", "medviz", "medviz, six methods", *machine.PEERS} == set(plots.STYLES)
    assert len({style[:2] for style in plots.STYLES.values()}) == len(plots.STYLES)


# ----------------------------------------------------------------------------------------------------- the subjects


def test_a_case_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("monai")
    options = Options(quick=True)
    case, *_ = subjects.cases("cam", options)
    (row,) = runner.measure(Record("cam", machine.environment(options)), [case], tmp_path / "cam.json").rows
    assert row.failed == ""
    assert set(row.seconds) == {"medviz", "MONAI"}
    assert "2 rounds" in row.note


@pytest.mark.parametrize(("edge", "nd", "rows"), [(96, 3, 2), (224, 2, 3), (48, 3, 1)])
def test_occlusion_is_measured_on_as_many_windows_as_are_said(edge: int, nd: int, rows: int) -> None:
    windows = Occlusion(MASK, 0.5, region=region(edge, nd, rows)).windows((edge,) * nd)
    along = (edge - MASK) // STEP + 1
    assert len(windows) == rows * along
    corners = windows.corners.unique(dim=0)
    assert len(corners) == len(windows)
    assert corners[:, -1].unique().tolist() == list(range(0, edge - MASK + 1, STEP))


def test_the_model_that_cannot_be_traced_cannot_be_traced() -> None:
    inner = torch.nn.Conv2d(1, 2, 1)
    image = torch.rand(1, 1, 4, 4)
    assert torch.equal(Untraceable(inner)(image), inner(image))
    with pytest.raises(Exception, match="control flow"):
        Incremental(Untraceable(inner), image)


def test_a_number_does_not_hide_that_whole_passes_were_made() -> None:
    inner = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    level = logging.getLogger("medviz").level
    with heard() as reasons:
        Occlusion(MASK, 0.5)(Untraceable(inner).eval(), torch.rand(1, 1, 64, 64), 0)
    assert len(reasons) == 1
    assert reasons[0].startswith("whole passes, for the model cannot be traced")
    assert logging.getLogger("medviz").level == level
    with heard() as reasons:
        Occlusion(MASK, 0.5, incremental=False)(inner.eval(), torch.rand(1, 1, 64, 64), 0)
    assert reasons == []


@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_movies_are_volumes_in_the_unit_range(kind: str) -> None:
    made = volume(kind, 5)
    assert made.shape == (1, 5, 128, 128)
    assert 0 <= made.min() < 0.1
    assert 0.9 < made.max() <= 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_extra_memory_is_that_of_the_call() -> None:
    held = torch.ones(4_000_000)
    assert resident.extra(lambda: torch.ones(16_000_000)) == pytest.approx(64, abs=8)
    assert resident.extra(lambda: held.sum()) < 8


def test_one_method_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [torch.nn.Conv2d(1, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2, 3)]
    monkeypatch.setitem(NETWORKS, "light", Network(lambda: torch.nn.Sequential(*layers), 2, "0"))
    for method in ("medviz", "medviz, automatic layer"):
        found = alone.measure(alone.Question("time", "light", 64, method, rounds=1))
        assert set(found) == {"seconds", "ratio"}
        assert 0 < found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "Traceback …\nRuntimeError: out of memory\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(RuntimeError, match="captum on 3-D DenseNet121 at 160: RuntimeError: out of memory"):
        alone.answer(alone.Question("memory", "3-D DenseNet121", 160, "captum"))


# ----------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "gpu"], "'gpu' is no device; expected cpu, cuda or cuda:1"),
        (["--device", "meta"], "'meta' can't be measured"),
        (["--device", "cuda"], "sees no CUDA device here"),
        (["--only", "occlusions"], "'occlusions' is not one of"),
    ],
)
def test_wrong_options(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = invoke(*words, "--out", str(tmp_path), of=command.main)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_what_runs_on_the_cpu_only_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    done = invoke("--device", "cuda", "--only", "gif", "--out", str(tmp_path), of=command.main)
    assert done.exit_code == 2
    assert "gif runs on the CPU only" in done.stderr


def test_a_process_that_was_killed_stands_in_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def killed(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if words[0] == "git":
            return subprocess.CompletedProcess(words, 1, "", "")
        Record("cam", ENVIRONMENT, [Row("cam", "before", spread(11.0))]).write(Path(words[4]))
        return subprocess.CompletedProcess(words, -9)

    monkeypatch.setattr(subprocess, "run", killed)
    done = invoke("--quick", "--only", "cam", "--out", str(tmp_path), of=command.main)
    assert done.exit_code == 1
    assert "not measured: CAM" in done.stderr
    text = (tmp_path / "cpu-quick.md").read_text(encoding="utf-8").replace(TIMES, "x")
    assert "| CAM | failed: its process ended with -9 |" in text
    assert "| before | 11.0 x (5.50 to 22.0) | ≥ 10.0 x | yes |" in text
    assert "**Not finished: CAM.**" in text
