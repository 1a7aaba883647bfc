"""From coarse to fine: which windows are run, and that each voxel has the value of one whole grid."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ASKED, REAL, Classifier, UNet, check_close, explain, images
from torch import Tensor, nn

import medviz
from medviz.explainers.refinement import Answers, Refinement, refined
from medviz.windows import Grid, Windows

SIZES = {2: (26, 22), 3: (8, 9, 8)}


def grid_over(shape: Sequence[int], size: int, overlap: float) -> Grid:
    return Grid.over(shape, (size,) * len(shape), overlap, [(0, s) for s in shape])


ROWS: list[int] = []  # of each pass; not on the network, whose attributes are put back after each call


class Linear(nn.Module):
    """score = Σ w · x, so that behind zeros each window's fall is the sum of w · x inside of it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        score: Tensor = (x * self.weight).flatten(1).sum(1, keepdim=True)
        ROWS.append(len(x))
        return score


def passes(run: Any) -> tuple[int, Any]:
    """Return how many images `run` sends through a network, and what it returns."""
    ROWS.clear()
    result = run()
    return sum(ROWS), result


def spot(*shape: int, at: Sequence[slice]) -> Linear:
    weight = torch.zeros(1, *shape, dtype=torch.float64)
    weight[(0, *at)] = 1
    return Linear(weight)


def whole_grid(model: Linear, image: Tensor, size: int, overlap: float, step: int) -> Tensor:
    """The map `(*S)` of the windows at every `step`-th place, by hand: means of what is inside of each window."""
    shape, seen = image.shape[1:], (image * model.weight.detach())[0]
    grid = grid_over(shape, size, overlap)
    total, count = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    axes = [sorted({*starts[::step], starts[-1]}) for starts in grid.starts]
    for corner in torch.cartesian_prod(*map(torch.tensor, axes)).reshape(-1, len(shape)).tolist():
        box = tuple(slice(c, c + s) for c, s in zip(corner, grid.size, strict=True))
        total[box] += seen[box].sum()
        count[box] += 1
    return total / count


@pytest.mark.parametrize("refine", [0, 1, 2, 3])
@pytest.mark.parametrize("above", [0.1, 0.5, 0.9])
def test_each_voxel_has_the_value_of_one_whole_grid_and_what_matters_that_of_the_finest(
    refine: int, above: float
) -> None:
    model, image = spot(40, 34, at=(slice(9, 14), slice(20, 23))), images(1, 1, 40, 34).double().abs() + 1
    got = explain("occlusion", model, image, 0, mask_size=8, overlap=0.875, occluder="constant", refine=refine,
                  refine_above=above).values[0, 0]  # fmt: skip
    grids = torch.stack([whole_grid(model, image[0], 8, 0.875, 1 << level) for level in range(refine + 1)])
    assert ((got - grids).abs().amin(0) <= 1e-9).all()
    matters = got >= above * got.max()
    assert ((got - grids[0]).abs()[matters] <= 1e-9).all()
    if refine:
        assert ((got - grids[0]).abs() > 1e-3).any()  # elsewhere it is coarse: passes were saved


@pytest.mark.parametrize("ndim", SIZES)
def test_what_is_saved_is_counted_and_told(ndim: int, caplog: pytest.LogCaptureFixture) -> None:
    shape = SIZES[ndim]
    model, image = spot(*shape, at=(slice(1, 3),) * ndim), images(2, 1, *shape).double().abs() + 1
    explainer: Any = medviz.get_explainer(
        "medviz-xai/occlusion", mask_size=4, overlap=0.75, occluder="constant", refine=2, incremental=False
    )
    with caplog.at_level(logging.INFO, logger="medviz"):
        took, _ = passes(lambda: explainer(model, image, 0, batch_size=16))
    most, took = explainer.passes(image.shape), took - 2 - ASKED  # without the clean images
    assert took < 0.6 * most
    assert f"occlusion needs at most {most} forward passes" in caplog.text
    assert f"`refine` took {took} of {most} forward passes: {most - took} saved" in caplog.text


@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    size=st.lists(st.integers(5, 8), min_size=2, max_size=3),
    mask=st.integers(4, 8),
    overlap=st.sampled_from([0.75, 0.8]),
    refine=st.integers(0, 2),
    per_channel=st.booleans(),
    incremental=st.booleans(),
    region=st.booleans(),
)
def test_where_everything_matters_it_is_the_finest_grid(
    size: list[int], mask: int, overlap: float, refine: int, per_channel: bool, incremental: bool, region: bool
) -> None:
    model, image = Classifier(len(size), width=3).double(), images(1, 2, *size, dtype=torch.float64)
    common: dict[str, Any] = {"mask_size": mask, "overlap": overlap, "per_channel": per_channel}
    common |= {"occluder": "mean_img", "region": [(1, s - 1) for s in size] if region else None}
    expected = explain("occlusion", model, image, 1, **common).values
    got = explain("occlusion", model, image, 1, refine=refine, refine_above=0, incremental=incremental, **common)
    check_close(got.values, expected, 1e-9)


@pytest.mark.parametrize("device", REAL)
@pytest.mark.parametrize("ndim", SIZES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_batch_equals_single_images_and_no_batch_size_matters(ndim: int, per_channel: bool, device: str) -> None:
    model = Classifier(ndim).double().to(device)
    image = images(3, 2, *SIZES[ndim], dtype=torch.float64).to(device)
    classes = torch.tensor([2, 0, 1])
    few: dict[str, Any] = {"mask_size": 4, "overlap": 0.75, "refine": 2, "refine_above": 0.6}
    few |= {"per_channel": per_channel, "occluder": "constant"}
    together = explain("occlusion", model, image, classes, **few).values
    for batch_size, incremental in ((2, True), (3, False)):
        got = explain(
            "occlusion", model, image, classes, **few, batch_size=batch_size, incremental=incremental
        ).values  # fmt: skip
        check_close(got, together, 1e-9)
    for i in range(3):
        got = explain("occlusion", model, image[i : i + 1], int(classes[i]), **few).values
        check_close(got, together[i : i + 1], 1e-9)


def test_channels_are_refined_by_the_largest_of_all() -> None:
    """The second channel hardly counts: it is looked at with the coarse windows, and no finer."""
    weight = torch.zeros(2, 24, 24, dtype=torch.float64)
    weight[0, 8:12, 8:12], weight[1, 14:18, 14:18] = 1, 0.1
    model, image = Linear(weight), torch.ones(1, 2, 24, 24, dtype=torch.float64)
    few: dict[str, Any] = {"mask_size": 6, "overlap": 5 / 6, "occluder": "constant", "per_channel": True}
    few |= {"refine": 2, "incremental": False}
    took, got = passes(lambda: explain("occlusion", model, image, 0, **few).values)
    more, alone = passes(lambda: explain("occlusion", model, image, 0, refine_above=0.05, **few).values)
    assert took < more
    assert got[0, 1].max() < 0.3 * got[0, 0].max()
    assert not torch.equal(got[0, 1], alone[0, 1])


def test_segmentation_outputs() -> None:
    model, image = UNet(2).double(), images(2, 1, 20, 18, dtype=torch.float64)
    few: dict[str, Any] = {"mask_size": 5, "overlap": 0.8, "occluder": "constant"}
    target = medviz.SegmentationTarget(1)
    fine = explain("occlusion", model, image, target, **few).values
    check_close(explain("occlusion", model, image, target, refine=2, refine_above=0, **few).values, fine, 1e-9)
    got = explain("occlusion", model, image, target, refine=1, refine_above=0.5, **few).values
    for one, expected in zip(got, fine, strict=True):
        matters = one.abs() >= 0.5 * one.abs().max()
        check_close(one[matters], expected[matters], 1e-9)
    assert not torch.allclose(got, fine)


def test_targets_share_their_windows_and_each_has_the_map_that_it_has_alone() -> None:
    class Two(Linear):
        def forward(self, x: Tensor) -> Tensor:
            ROWS.append(len(x))
            return torch.stack([(x * w).flatten(1).sum(1) for w in self.weight], 1)

    weight = torch.zeros(2, 1, 24, 24, dtype=torch.float64)
    weight[0, 0, 2:5, 2:5], weight[1, 0, 15:18, 14:17] = 1, 1
    model, image = Two(weight), images(1, 1, 24, 24).double().abs() + 1
    explainer: Any = medviz.get_explainer(
        "medviz-xai/occlusion", mask_size=6, overlap=5 / 6, occluder="constant", refine=2, incremental=False
    )
    alone, rows = [], []
    for target in (0, 1):
        took, one = passes(lambda target=target: explainer(model, image, target))
        alone.append(one.values)
        rows.append(took)
    took, together = passes(lambda: explainer(model, image, [0, 1]))
    for one, expected in zip(together, alone, strict=True):
        assert torch.equal(one.values, expected)
    assert max(rows) < took < sum(rows)


def test_what_lies_outside_of_the_region_is_no_measure_of_what_matters() -> None:
    """The strongest voxel lies outside, within reach of the region's windows."""
    weight = torch.zeros(1, 40, 40, dtype=torch.float64)
    weight[0, 6, 20], weight[0, 22, 20] = 100, 1
    model, image = Linear(weight), torch.ones(1, 1, 40, 40, dtype=torch.float64)
    few: dict[str, Any] = {"mask_size": 8, "overlap": 0.875, "occluder": "constant", "region": [(8, 40), (0, 40)]}
    expected = explain("occlusion", model, image, 0, **few).values
    got = explain("occlusion", model, image, 0, refine=1, **few).values
    matters = got >= 0.3 * got.max()
    check_close(got[matters], expected[matters], 1e-9)


def test_a_constant_network_is_not_refined() -> None:
    model = Linear(torch.zeros(1, 16, 16))
    few: dict[str, Any] = {"mask_size": 4, "overlap": 0.75, "refine": 1, "incremental": False}
    took, got = passes(lambda: explain("occlusion", model, images(1, 1, 16, 16), 0, batch_size=16, **few))
    assert not got.values.any()
    assert took == 1 + 7**2 + ASKED


def test_negative_values_matter_too() -> None:
    model, image = spot(24, 24, at=(slice(5, 8), slice(5, 8))), torch.ones(1, 1, 24, 24, dtype=torch.float64)
    few: dict[str, Any] = {"mask_size": 6, "overlap": 5 / 6, "occluder": "constant", "refine": 2}
    values = explain("occlusion", model, image, 0, **few).values
    model.weight.data.neg_()
    assert torch.equal(explain("occlusion", model, image, 0, **few).values, -values)


def test_ties_are_refined_together_whatever_rounding_says() -> None:
    """Two equal spots, one of them smaller by what rounding does: both are refined, though only one is the largest."""
    weight = torch.zeros(1, 12, 60, dtype=torch.float64)
    weight[0, 4:7, 12:15], weight[0, 4:7, 36:39] = 1, 1 - 1e-9
    image = torch.ones(1, 1, 12, 60, dtype=torch.float64)
    values = explain("occlusion", Linear(weight), image, 0, mask_size=6, overlap=5 / 6, occluder="constant", refine=2,
                     refine_above=0.99).values  # fmt: skip
    check_close(values[..., 6:22], values[..., 30:46], 1e-8)


@pytest.mark.parametrize("mask", [1, 2, 3, 9, 20])
def test_windows_that_cannot_come_further_apart(mask: int) -> None:
    """The grids of several levels are one and the same: there is nothing to refine, and an end to it."""
    model, image = Classifier(2).double(), images(1, 2, 9, 8, dtype=torch.float64)
    few: dict[str, Any] = {"mask_size": mask, "overlap": 0.9, "occluder": "constant"}
    expected = explain("occlusion", model, image, 1, **few).values
    for above in (0, 0.3):
        got = explain("occlusion", model, image, 1, refine=3, refine_above=above, **few).values
        matters = expected.abs() >= max(above, 0.9 * (above > 0)) * expected.abs().max()
        check_close(got[matters], expected[matters], 1e-9)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"refine": -1}, "`refine` is an int ≥ 0; got -1"),
        ({"refine": True}, "`refine` is an int ≥ 0; got True"),
        ({"refine": 1.0}, "`refine` is an int ≥ 0; got 1.0"),
        ({"refine": 2}, "`refine` 2 needs an `overlap` of at least 0.75, so that windows do not come apart"),
        ({"refine": 1, "overlap": 0.4}, "`refine` 1 needs an `overlap` of at least 0.5"),
        ({"refine": 5000}, "`refine` 5000 needs an `overlap` of at least 1"),
        ({"refine": 1, "refine_above": 1}, "`refine_above` is a finite number ≥ 0 and < 1; got 1"),
        ({"refine": 1, "refine_above": -0.1}, "`refine_above` is a finite number ≥ 0 and < 1; got -0.1"),
        ({"refine": 1, "refine_above": "half"}, "`refine_above` is a finite number ≥ 0 and < 1; got 'half'"),
    ],
)
def test_wrong_parameters_say_what_is_wrong(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(medviz.PluginError, match=re.escape(message)):
        medviz.get_explainer("medviz-xai/occlusion", **parameters)


def test_the_scores_of_every_class_are_not_refined() -> None:
    explainer: Any = medviz.get_explainer("medviz-xai/occlusion", mask_size=3, refine=1)
    with medviz.Probe(Classifier(2), images(1, 2, 8, 8)) as probe, pytest.raises(ValueError, match="`refine` is 1"):
        explainer.scores(probe)


def test_it_can_be_asked_for_in_a_plugin_string() -> None:
    model, image = Classifier(2), images(1, 2, 12, 12)
    got = medviz.explain(model, image, "medviz-xai/occlusion:mask_size=4,overlap=.75,refine=2,refine_above=.5", 1)
    assert got.provenance["parameters"]["refine"] == 2  # type: ignore[union-attr]
    assert got.provenance["parameters"]["refine_above"] == 0.5  # type: ignore[union-attr]


def refined_by(answers: Answers, above: float) -> Tensor:
    part = Refinement(answers, lambda rows: rows, torch.ones(4, 4), 2)
    return refined([part], torch.ones(24, 24, dtype=torch.bool), above)


def test_what_was_asked_for_another_target_changes_no_map() -> None:
    def run(windows: Windows) -> Tensor:
        return (-(windows.corners.double() - 9).square().sum(1) / 9).exp()

    grid = grid_over((24, 24), 4, 0.75)
    answers = Answers(grid, run)
    refined_by(answers, 0)
    assert torch.equal(refined_by(answers, 0.7), refined_by(Answers(grid, run), 0.7))
    assert not torch.equal(refined_by(answers, 0.7), refined_by(answers, 0))


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_where_everything_matters_zeros_are_refined_too(first: float) -> None:
    """Coarse windows see nothing, or only the first of them does."""

    def run(windows: Windows) -> Tensor:
        return (windows.corners % 4).any(1).double() + first * (windows.corners == 0).all(1)

    answers = Answers(grid_over((24, 24), 4, 0.75), run)
    refined_by(answers, 0)
    assert (answers.rows >= 0).all()


def test_all_that_ties_is_refined_and_not_the_first_of_it() -> None:
    answers = Answers(grid_over((24, 24), 4, 0.75), lambda windows: 1 - 1e-9 * windows.corners.sum(1).double())
    refined_by(answers, 1)
    assert (answers.rows >= 0).all()


def test_no_window_is_run_twice() -> None:
    seen: list[tuple[int, ...]] = []

    def run(windows: Windows) -> Tensor:
        seen.extend(map(tuple, windows.corners.tolist()))
        middle = windows.corners.double() + 2 - torch.tensor([9.0, 12.0])
        return (-middle.square().sum(1) / 9).exp()

    grid = grid_over((24, 22), 4, 0.75)
    answers = Answers(grid, run)
    for above in (0.7, 0.2):  # as for two targets
        part = Refinement(answers, lambda rows: rows, torch.ones(4, 4), 2)
        refined([part], torch.ones(24, 22, dtype=torch.bool), above)
    assert len(seen) == len(set(seen)) == int(part.wanted.sum()) < len(grid)
