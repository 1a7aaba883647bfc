"""The conformance kit as its users meet it: rows, tests of pytest, known failures, examples, wrong use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import helpers_mutants_explainers as maps
import helpers_mutants_files as files
import helpers_mutants_others as others
import numpy as np
import pytest
import torch

import medviz
import medviz.testing
from medviz import hookimpl
from medviz.testing import cases
from medviz.testing.checks import renderer_places
from medviz.testing.examples import EXAMPLES

torch.set_num_threads(1)
FAILS = "check_hides"


def statuses(rows: list[medviz.testing.Row]) -> dict[str, str]:
    return {row.check: row.status for row in rows}


def test_rows_of_a_right_plugin() -> None:
    rows = medviz.testing.check(others.RightOccluder())
    assert [row.check for row in rows] == [one.__name__ for one in medviz.testing.checks_for(others.RightOccluder())]
    assert {row.status for row in rows} == {"passed", "skipped"}
    assert [row.message for row in rows if row.status == "passed"] == [""] * (len(rows) - 1)
    assert [row.message for row in rows if row.status == "skipped"] == ["it declares no random numbers."]


def test_rows_of_a_wrong_plugin_and_of_one_whose_failure_is_known() -> None:
    failed = medviz.testing.check(others.Glass())
    known = medviz.testing.check(others.Glass(), {FAILS: "it is made of glass"})
    assert [row.check for row in failed if row.status == "failed"] == [FAILS]
    assert statuses(known) == {**statuses(failed), FAILS: "xfailed"}
    (row,) = (row for row in known if row.check == FAILS)
    assert row.message.startswith("it is made of glass (Glass hid 2-D windows of 4 by 3 voxels, full of noise: ")


def test_a_failure_that_no_longer_happens_is_a_failure() -> None:
    (row,) = (r for r in medviz.testing.check(others.RightOccluder(), {FAILS: "once upon a time"}) if r.check == FAILS)
    assert (row.status, row.message) == (
        "failed",
        "it passes, but was expected to fail: once upon a time. Remove it from the list.",
    )


def test_whatever_a_plugin_raises_is_a_row() -> None:
    class Explodes(others.RightOccluder):
        def weight(self, mask_size: Any, **options: Any) -> Any:
            raise ZeroDivisionError("of all things")

        @hookimpl
        def occlude(self, patches: Any) -> Any:
            raise KeyError("patches")

    rows = {row.check: row for row in medviz.testing.check(Explodes())}
    assert rows["check_weight"].status == rows["check_shape"].status == "failed"
    assert "ZeroDivisionError: of all things" in rows["check_weight"].message
    assert "KeyError: 'patches'" in rows["check_shape"].message


@pytest.mark.parametrize(
    ("expected", "error", "message"),
    [
        ({"check_hide": "why"}, ValueError, "'check_hide', which is not a check; did you mean 'check_hides'"),
        ({FAILS: ""}, TypeError, "expected the reason"),
        ({FAILS: None}, TypeError, "expected the reason"),
        ([FAILS], TypeError, "expected a dict from checks to reasons"),
    ],
)
def test_wrong_expected_failures(expected: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        medviz.testing.check(others.RightOccluder(), expected)
    with pytest.raises(error, match=message):
        medviz.testing.conformance([others.RightOccluder()], expected)


@pytest.mark.parametrize("thing", [others.RightOccluder, "gaussian", None])
def test_only_instances_are_checked(thing: Any) -> None:
    with pytest.raises(TypeError, match="checks instances of plugins"):
        medviz.testing.check(thing)
    with pytest.raises(TypeError, match="checks instances of plugins"):
        medviz.testing.conformance([thing])


def test_instances_are_a_list() -> None:
    with pytest.raises(TypeError, match=r"`instances` is a list; write \[RightOccluder\(\)\]"):
        medviz.testing.conformance(others.RightOccluder())


def test_no_instances_are_an_error() -> None:
    with pytest.raises(ValueError, match="`instances` is empty"):
        medviz.testing.conformance([])


USER = """
import helpers_mutants_others as others
import medviz.testing

@medviz.testing.conformance([others.Glass(), others.NegativeWeight()], {"check_hides": "half of them do"})
def test_conformance(check, instance):
    check(instance)

@medviz.testing.conformance([others.Glass()], {"check_hides": "made of glass"})
def test_known(check, instance):
    check(instance)
"""


def test_pytest_gets_one_test_for_each_check(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(USER, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "test_user.py"]
    environment = {"PYTHONPATH": str(Path(__file__).parent), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    number = len(medviz.testing.checks_for(others.Glass()))
    assert lines[-1].startswith(f"2 failed, {3 * number - 7} passed, 3 skipped, 2 xfailed in "), done.stdout[-3000:]
    assert any("FAILED test_user.py::test_conformance[negativeweight-check_weight]" in line for line in lines)
    assert any("FAILED test_user.py::test_conformance[negativeweight-check_hides]" in line for line in lines)
    assert "XPASS(strict)" in done.stdout
    assert any("XFAIL test_user.py::test_known[glass-check_hides] - made of glass" in line for line in lines)


WITHOUT = """
import sys
sys.modules["pytest"] = sys.modules["hypothesis"] = None
import helpers_mutants_explainers as maps, medviz.testing
print([row.status for row in medviz.testing.check(maps.Right())].count("passed"))
for call in (lambda: medviz.testing.conformance([maps.Right()]), lambda: medviz.testing.strategies):
    try:
        call()
    except ImportError as err:
        print(err)
"""


def test_neither_pytest_nor_hypothesis_is_needed() -> None:
    environment = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "26",
        "medviz.testing.conformance makes tests of pytest: python -m pip install pytest. "
        "medviz.testing.check(instance) needs none.",
        "medviz.testing.strategies needs hypothesis: python -m pip install hypothesis",
    ], done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'medviz\.testing' has no attribute 'chek'"):
        _ = medviz.testing.chek  # type: ignore[attr-defined]


@attrs.frozen(eq=False)
class Csv(medviz.Reader):
    suffixes = (".kitcsv",)

    @hookimpl
    def read(self, path: Path) -> medviz.Image:
        return medviz.Image(np.loadtxt(path, delimiter=",", ndmin=2)[None], path=path)


def test_a_reader_of_a_format_of_its_own_is_shown_an_example() -> None:
    rows = {row.check: row for row in medviz.testing.check(Csv())}
    assert rows["check_geometry"].status == "skipped"
    assert rows["check_geometry"].message == (
        "the kit cannot write .kitcsv; show it how with @medviz.testing.example(suffix)."
    )
    try:

        @medviz.testing.example(".kitcsv")
        def table(path: Path) -> medviz.Image:
            path.write_text("1,2,3\n4,5,6\n", encoding="utf-8")
            return medviz.Image([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])

        assert {row.status for row in medviz.testing.check(Csv())} == {"passed"}
    finally:
        del EXAMPLES[".kitcsv"]


@pytest.mark.parametrize("suffixes", [(), ("csv",), (".CSV",), (".",), (None,)])
def test_an_example_needs_a_suffix(suffixes: Any) -> None:
    with pytest.raises(ValueError, match="expected endings such as"):
        medviz.testing.example(*suffixes)


@pytest.mark.parametrize(
    "name", ["medviz-xai/gradcam:layer=no.such.layer", "medviz-xai/gradcam:layer=['features.0', 'features.3']"]
)
def test_a_layer_of_the_users_network_does_not_matter(name: str) -> None:
    assert {row.status for row in medviz.testing.check(medviz.get_explainer(name))} == {"passed", "skipped"}


def test_a_plugin_without_attrs_is_checked_too() -> None:
    class Plain(medviz.Explainer):
        signed = stochastic = True

        def __init__(self, seed: int | None = None) -> None:
            self.seed = seed

        @hookimpl
        def explain(self, probe: Any, target: Any) -> Any:
            noise = torch.rand(probe.inputs.shape[1:], generator=torch.Generator().manual_seed(self.seed))
            return probe.input_gradient(target) * (1 + 0.1 * noise)

    failed = {row.check: row.message for row in medviz.testing.check(Plain(3)) if row.status == "failed"}
    assert set(failed) <= {"check_stochastic"}, failed
    made = cases.changed(Plain(3), seed=4, layer=None)
    assert (made.seed, hasattr(made, "layer")) == (4, False)


def test_what_declares_neither_2_nor_3_axes_is_skipped() -> None:
    class Lines(maps.Right):
        ndim = (1,)

    rows = medviz.testing.check(Lines())
    assert "failed" not in {row.status for row in rows}
    assert "the toy networks have 2 or 3 spatial axes; Lines declares (1,)." in {row.message for row in rows}


def test_a_volume_method_is_checked_on_volumes() -> None:
    class Volumes(maps.Right):
        ndim = (3,)

    assert set(statuses(medviz.testing.check(Volumes())).values()) == {"passed", "skipped"}


class Chart(files.RightRenderer):
    """Two bars: how much speaks for the target, and how much against it."""

    def scaled(self, attribution: medviz.Attribution) -> torch.Tensor:
        values = attribution.values
        sums = torch.stack([values.clamp(min=0).sum(), -values.clamp(max=0).sum()])
        first = values[..., : values.shape[-1] // 2].sum()  # so that a flipped map is another chart
        bars = (torch.arange(50)[:, None] < torch.stack([*sums, first])).double()
        return bars + 0.5 * torch.tanh(sums.sum())


def test_a_chart_has_known_failures_and_no_others() -> None:
    reasons = dict.fromkeys(("check_aspect", "check_orientation"), "a chart has no place for a voxel")
    assert {row.check for row in medviz.testing.check(Chart()) if row.status == "failed"} == reasons.keys()
    assert "failed" not in {row.status for row in medviz.testing.check(Chart(), reasons)}


@pytest.mark.parametrize("name", ["planes:dpi=30,contour=true", "blend:size=1", "matshow3d:dpi=20,frames_per_row=1"])
def test_marks_are_found_in_contours_in_small_pictures_and_in_sheets(name: str) -> None:
    (check,) = (one for one in medviz.testing.checks_for(Chart()) if one.__name__ == "check_orientation")
    check(medviz.get_renderer(f"medviz-xai/{name}"))
    for turn in renderer_places._TURNS[1:]:
        with pytest.raises(medviz.testing.ConformanceError, match="the first of two axes down the picture"):
            check(Turned(medviz.get_renderer(f"medviz-xai/{name}"), turn))


@attrs.frozen(eq=False)
class Turned(medviz.Renderer):
    """Another renderer's pictures, swapped, flipped or mirrored."""

    inner: Any
    turn: renderer_places.Turn

    @hookimpl
    def render(self, attribution: medviz.Attribution) -> medviz.Rendering:
        drawn = self.inner(attribution)
        frames = np.stack(
            [[self.turn.apply(channel) for channel in frame] for frame in drawn.frames.transpose(0, 3, 1, 2)]
        )
        return medviz.Rendering(frames.transpose(0, 2, 3, 1), title="turned", attribution=attribution)


def test_a_call_of_the_kit_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    for instance in (maps.Global(), others.RightOccluder(), files.RightRenderer()):
        medviz.testing.check(instance)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index]
