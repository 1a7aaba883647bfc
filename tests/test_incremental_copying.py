"""Boxes are cut out of maps and written into them in the same way one by one and all together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers_copying import WAYS, copied
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import DEVICES
from torch import Tensor

from medviz.incremental import copying


@st.composite
def places(draw: Any, reach: int) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray]:
    """The shape of a map, the size of boxes, and where they begin: up to `reach` voxels outside of the map."""
    nd = draw(st.integers(2, 3))
    shape = tuple(draw(st.integers(1, 6)) for _ in range(nd))
    size = tuple(draw(st.integers(1, n + reach)) for n in shape)
    begin = [st.integers(min(-reach, n - k), max(n - k + reach, 0)) for n, k in zip(shape, size, strict=True)]
    starts = draw(st.lists(st.tuples(*begin), min_size=1, max_size=4))
    return shape, size, np.array(starts)


def voxels(start: np.ndarray, size: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[tuple, tuple]]:
    """Every voxel of a box that lies in the map: where it is in the box, and where in the map."""
    for place in itertools.product(*map(range, size)):
        there = tuple((start + place).tolist())
        if all(0 <= t < n for t, n in zip(there, shape, strict=True)):
            yield (..., *place), (..., *there)


def box_of(one: Tensor, start: np.ndarray, size: tuple[int, ...], outside: float) -> Tensor:
    """A box of one map `(C, *S)`, voxel by voxel."""
    box = one.new_full((len(one), *size), outside)
    for here, there in voxels(start, size, tuple(one.shape[1:])):
        box[here] = one[there]
    return box


def with_block(one: Tensor, block: Tensor, start: np.ndarray) -> Tensor:
    """A map `(C, *S)` with a block in it, voxel by voxel."""
    one = one.clone()
    for here, there in voxels(start, tuple(block.shape[1:]), tuple(one.shape[1:])):
        one[there] = block[here]
    return one


@WAYS
@pytest.mark.parametrize("device", DEVICES)
@given(case=places(reach=3), outside=st.sampled_from([0.0, float("-inf")]))
@settings(deadline=None, derandomize=True)
def test_boxes_of_one_map(by_index: bool, device: str, case: Any, outside: float) -> None:
    shape, size, starts = case
    clean = torch.rand(1, 2, *shape)
    with copied(by_index):
        made = copying.cut(clean.to(device), starts, size, outside)
    assert torch.equal(made.cpu(), torch.stack([box_of(clean[0], start, size, outside) for start in starts]))


@WAYS
@pytest.mark.parametrize("device", DEVICES)
@given(case=places(reach=3), data=st.data())
@settings(deadline=None, derandomize=True)
def test_boxes_of_changed_copies(by_index: bool, device: str, case: Any, data: st.DataObject) -> None:
    shape, size, starts = case
    block_size = tuple(data.draw(st.integers(1, n)) for n in shape)
    at = np.array([[data.draw(st.integers(0, n - k)) for n, k in zip(shape, block_size, strict=True)] for _ in starts])
    clean, block = torch.rand(1, 2, *shape), torch.rand(len(starts), 2, *block_size)
    changed = [with_block(clean[0], *one) for one in zip(block, at, strict=True)]
    expected = torch.stack([box_of(*one, size, 0.0) for one in zip(changed, starts, strict=True)])
    with copied(by_index):
        made = copying.cut_changed(clean.to(device), block.to(device), at, starts, size)
    assert torch.equal(made.cpu(), expected)


@WAYS
@pytest.mark.parametrize("device", DEVICES)
@given(case=places(reach=2))
@settings(deadline=None, derandomize=True)
def test_blocks_are_written_and_what_hangs_over_is_left_out(by_index: bool, device: str, case: Any) -> None:
    shape, size, starts = case
    maps, block = torch.rand(len(starts), 2, *shape), torch.rand(len(starts), 2, *size)
    made = maps.to(device, copy=True)
    with copied(by_index):
        copying.put(made, block.to(device), starts)
    assert torch.equal(made.cpu(), torch.stack([with_block(*one) for one in zip(maps, block, starts, strict=True)]))


@WAYS
@pytest.mark.parametrize("device", DEVICES)
@given(case=places(reach=0))
@settings(deadline=None, derandomize=True)
def test_one_box_of_each_map(by_index: bool, device: str, case: Any) -> None:
    shape, size, starts = case
    maps = torch.rand(len(starts), 2, *shape)
    expected = [box_of(one, start, size, 0.0) for one, start in zip(maps, starts, strict=True)]
    with copied(by_index):
        made = copying.parts(maps.to(device), starts, size)
    assert torch.equal(made.cpu(), torch.stack(expected))


@WAYS
@pytest.mark.parametrize("device", DEVICES)
def test_blocks_are_written_by_deterministic_algorithms_too(by_index: bool, device: str) -> None:
    maps, block = torch.zeros(3, 2, 9, 9, device=device), torch.rand(3, 2, 3, 3, device=device)
    starts = np.array([[0, 0], [1, 2], [3, 4]])
    torch.use_deterministic_algorithms(True)
    try:
        with copied(by_index):
            copying.put(maps, block, starts)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(copying.parts(maps, starts, (3, 3)), block)
    assert int(maps.count_nonzero()) == int(block.count_nonzero())


@WAYS
@pytest.mark.parametrize("device", DEVICES)
def test_parts_of_a_matrix(by_index: bool, device: str) -> None:
    matrix = torch.arange(30.0, device=device).reshape(5, 6)
    with copied(by_index):
        made = copying.rectangles(matrix, np.array([[0, 0], [1, 2], [3, 4]]), (2, 2))
    assert torch.equal(made, torch.stack([matrix[:2, :2], matrix[1:3, 2:4], matrix[3:, 4:]]))


@WAYS
@pytest.mark.parametrize("device", DEVICES)
def test_a_block_of_another_precision_is_cast(by_index: bool, device: str) -> None:
    maps, block = torch.zeros(2, 1, 5, 5, device=device), torch.rand(2, 1, 2, 2, dtype=torch.float64)
    starts = np.array([[0, 0], [1, 2]])
    with copied(by_index):
        copying.put(maps, block, starts)
        assert torch.equal(copying.parts(maps, starts, (2, 2)).cpu(), block.float())
