"""Frames, and the one picture of all of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from medviz.rendering import Rendering


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 3, 4, 3)),
        np.zeros((3, 4, 3), np.uint8),
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((0, 3, 4, 3), np.uint8),
        np.zeros((1, 0, 4, 3), np.uint8),
        "frames",
    ],
)
def test_what_is_no_frames(frames):
    with pytest.raises(ValueError, match="`frames` must be uint8"):
        Rendering(frames)


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_the_frame_rate_is_positive(fps):
    with pytest.raises(ValueError, match="fps"):
        Rendering(np.zeros((1, 2, 2, 3), np.uint8), fps=fps)


def test_one_frame_is_its_own_montage():
    frame = np.random.default_rng(0).integers(0, 256, (1, 5, 7, 3), dtype=np.uint8)
    assert np.array_equal(Rendering(frame).montage(), frame[0])


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12))
def test_every_frame_stands_in_the_montage_row_by_row(count, height, width):
    frames = np.random.default_rng(count).integers(1, 256, (count, height, width, 3), dtype=np.uint8)
    sheet = Rendering(frames).montage()
    columns, rows = sheet.shape[1] // width, sheet.shape[0] // height
    for i in range(columns * rows):
        row, column = divmod(i, columns)
        cell = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
        assert np.array_equal(cell, frames[i]) if i < count else not cell.any()
    assert columns * (rows - 1) < count


def test_a_montage_is_about_as_high_as_wide():
    for shape in ((24, 64, 64), (24, 96, 48), (10, 30, 60)):
        height, width = Rendering(np.zeros((*shape, 3), np.uint8)).montage().shape[:2]
        assert 0.5 <= height / width <= 2


def test_it_shows_itself_in_a_notebook():
    rendering = Rendering(np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8))
    with PilImage.open(io.BytesIO(rendering._repr_png_())) as picture:
        assert np.array_equal(np.asarray(picture), rendering.montage())
