"""Windows: where they lie, and the map that is made of their values."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medviz import windows as module
from medviz.windows import Grid, Windows, cut_out


def box(windows: Windows, i: int) -> tuple[slice, ...]:
    """Where a window lies."""
    return tuple(slice(c, c + n) for c, n in zip(windows.corners[i].tolist(), windows.size, strict=True))


def over(shape: tuple[int, ...], size: tuple[int, ...], overlap: float = 0.0, region: object = None) -> Windows:
    return Grid.over(shape, size, overlap, region or [(0, s) for s in shape]).windows()  # type: ignore[arg-type]


def starts(extent: int, size: int, overlap: float, first: int = 0, end: int | None = None) -> list[int]:
    return over((extent,), (size,), overlap, [(first, extent if end is None else end)]).corners[:, 0].tolist()


@pytest.mark.parametrize(
    ("extent", "size", "overlap", "expected"),
    [
        (12, 4, 0.0, [0, 4, 8]),
        (13, 4, 0.0, [0, 4, 8, 9]),  # the last one ends with the image
        (12, 4, 0.5, [0, 2, 4, 6, 8]),
        (10, 5, 0.3, [0, 3, 5]),  # a step of 3.5 voxels is 3
        (20, 10, 0.8, [0, 2, 4, 6, 8, 10]),  # a step of 2, which is 1.9999… in binary
        (6, 5, 0.8, [0, 1]),
        (4, 4, 0.5, [0]),
        (3, 1, 0.0, [0, 1, 2]),
        (3, 1, 0.99, [0, 1, 2]),
        (5, 2, 0.9, [0, 1, 2, 3]),
    ],
)
def test_places(extent: int, size: int, overlap: float, expected: list[int]) -> None:
    assert starts(extent, size, overlap) == expected


def test_a_region_is_slid_over_with_half_a_window_around_it() -> None:
    assert starts(30, 5, 0.0, 10, 20) == [8, 13, 17]  # from 10 - 2 to 20 + 2
    assert starts(30, 5, 0.0, 0, 4) == [0, 1]


@pytest.mark.parametrize(("first", "end", "start"), [(0, 1, 0), (28, 30, 14), (29, 30, 14), (10, 11, 3), (0, 2, 0)])
def test_a_small_region_does_not_make_the_window_smaller(first: int, end: int, start: int) -> None:
    windows = over((30,), (16,), 0.6, [(first, end)])
    assert windows.size == (16,)
    assert windows.corners[0] == start


def test_a_window_that_is_larger_than_the_image_is_cut_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="medviz"):
        windows = over((6, 9), (16, 4))
    assert windows.size == (6, 4)
    assert "(16, 4)" in caplog.text
    assert "(6, 4)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="medviz"):
        over((6, 9), (6, 4))
    assert not caplog.text


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 14), min_size=1, max_size=3),
    size=st.integers(1, 16),
    overlap=st.floats(0, 0.99),
    data=st.data(),
)
def test_every_voxel_of_the_region_is_hidden_and_no_window_leaves_the_image(
    shape: list[int], size: int, overlap: float, data: st.DataObject
) -> None:
    region = []
    for extent in shape:
        first = data.draw(st.integers(0, extent - 1))
        region.append((first, data.draw(st.integers(first + 1, extent))))
    windows = Grid.over(shape, (size,) * len(shape), overlap, region).windows()
    counts = torch.zeros(shape)
    for i in range(len(windows)):
        assert counts[box(windows, i)].shape == windows.size
        counts[box(windows, i)] += 1
    assert windows.size == tuple(min(size, extent) for extent in shape)
    assert (counts[tuple(slice(first, end) for first, end in region)] >= 1).all()
    assert len({tuple(corner) for corner in windows.corners.tolist()}) == len(windows)
    assert not windows.corners.is_floating_point()


def by_hand(windows: Windows, values: Tensor, weight: Tensor) -> Tensor:
    """The mean at each voxel, voxel by voxel."""
    result = torch.full(windows.shape, float("nan"), dtype=torch.float64)
    for voxel in torch.cartesian_prod(*(torch.arange(s) for s in windows.shape)).reshape(-1, len(windows.shape)):
        total = weights = 0.0
        for value, corner in zip(values.tolist(), windows.corners, strict=True):
            inside = voxel - corner
            if (inside >= 0).all() and (inside < torch.tensor(windows.size)).all():
                w = float(weight[tuple(inside.tolist())])
                total, weights = total + w * value, weights + w
        if weights:
            result[tuple(voxel.tolist())] = total / weights
    return result


@pytest.mark.parametrize(("shape", "size"), [((7, 5), (3, 2)), ((4, 5, 3), (2, 3, 3))])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.6])
def test_the_blend_is_the_weighted_mean_of_the_windows_over_a_voxel(
    shape: tuple[int, ...], size: tuple[int, ...], overlap: float
) -> None:
    windows = over(shape, size, overlap)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(windows), 2, generator=generator)
    weight = torch.rand(size, generator=generator) + 0.1
    blended = windows.blend(values, weight)
    assert blended.dtype == torch.float64
    for i in range(2):
        assert torch.allclose(blended[i], by_hand(windows, values[:, i].double(), weight.double()))


def test_a_blend_of_equal_values_is_that_value_and_nan_where_nothing_is_hidden() -> None:
    windows = over((12, 5), (4, 2), 0.5, [(4, 8), (0, 5)])
    blended = windows.blend(torch.full((len(windows), 1), 3.0), torch.rand(4, 2))[0]
    inside = blended[4:8]
    assert torch.allclose(inside, torch.full((), 3.0, dtype=torch.float64))
    assert blended[0].isnan().all()
    assert blended[-1].isnan().all()


def test_a_voxel_that_only_weightless_edges_reach_still_gets_their_value() -> None:
    windows = over((6,), (3,))
    blended = windows.blend(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 1.0, 0.0]))[0]
    assert torch.allclose(blended, torch.tensor([1.0, 1, 1, 2, 2, 2], dtype=torch.float64))


def test_cut_out() -> None:
    image = torch.arange(2 * 5 * 4.0).view(2, 5, 4)
    patches = cut_out(image, torch.tensor([[0, 1], [3, 0]]), (2, 3))
    assert torch.equal(patches[0], image[:, 0:2, 1:4])
    assert torch.equal(patches[1], image[:, 3:5, 0:3])
    patches.zero_()  # a copy
    assert image.sum() == math.comb(40, 2)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 15), min_size=1, max_size=3),
    size=st.integers(1, 9),
    overlap=st.floats(0, 0.95),
    level=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_coarser_grids_lie_in_finer_ones_and_leave_no_voxel_out(
    shape: list[int], size: int, overlap: float, level: int, seed: int
) -> None:
    grid = Grid.over(shape, (size,) * len(shape), overlap, [(0, s) for s in shape])
    places, finer = grid.every(2 << level), grid.every(1 << level)
    assert grid.every(1).all()
    assert (finer | ~places).all()
    assert grid.held(places).equal(grid.held(finer))
    assert grid.held(places).all()
    assert (
        grid.windows().corners.tolist()
        == Grid.over(shape, grid.size, overlap, [(0, s) for s in shape]).windows().corners.tolist()
    )
    chosen = torch.rand(grid.counts, generator=torch.Generator().manual_seed(seed)) < 0.2
    voxels = torch.zeros(shape, dtype=torch.bool)
    windows = grid.windows(chosen)
    for i in range(len(windows)):
        voxels[box(windows, i)] = True
    assert grid.held(chosen).equal(voxels)
    some = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.1
    every = grid.windows()
    holds = torch.tensor([bool(some[box(every, i)].any()) for i in range(len(grid))]).view(grid.counts)
    assert grid.holding(some).equal(holds)


def test_an_axis_may_have_more_voxels_than_a_byte_counts() -> None:
    grid = Grid.over((600,), (3,), 0.7, [(0, 600)])
    assert grid.holding(torch.ones(600, dtype=torch.bool)).all()
    assert grid.held(torch.ones(grid.counts, dtype=torch.bool)).all()


@pytest.mark.parametrize("at_once", [1, 40, 1 << 20])
def test_both_ways_of_adding_windows_up_give_the_same_to_the_last_bit(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows, generator = over((9, 8, 7), (4, 3, 5), 0.6), torch.Generator().manual_seed(0)
    values, weight = torch.randn(len(windows), 3, generator=generator), torch.rand(4, 3, 5, generator=generator)
    monkeypatch.setattr(module, "_SMALL", 0)
    one_by_one = windows.blend(values, weight)
    monkeypatch.setattr(module, "_SMALL", 60)
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    assert torch.equal(windows.blend(values, weight), one_by_one)
