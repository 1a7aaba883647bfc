"""PNG, GIF and npz: what comes back from the file is what went in."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_results import Tiny, attribution, colourful_movie
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as PilImage

from medviz.attribution import Attribution
from medviz.errors import PluginError
from medviz.rendering import Rendering
from medviz.sinks import encoding
from medviz.sinks.gif import Gif
from medviz.sinks.nifti import Nifti
from medviz.sinks.npz import Npz
from medviz.sinks.png import Png

DELAY = 100  # ms, at ten frames per second


def gif_frames(encoded: bytes | Path) -> tuple[np.ndarray, list[int], dict]:
    """Return frames (T, H, W, 3), the milliseconds of each, and what the file says of itself."""
    with PilImage.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as movie:
        frames, delays = [], []
        for i in range(movie.n_frames):
            movie.seek(i)
            delays.append(movie.info["duration"])
            frames.append(np.asarray(movie.convert("RGB")))
        return np.stack(frames), delays, dict(movie.info)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def png(path: Path) -> np.ndarray:
    with PilImage.open(path) as picture:
        return np.asarray(picture)


movies = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9).map(lambda s: (*s, 3)))


# PNG


def test_a_png_holds_the_frame_exactly(tmp_path):
    frame = colourful_movie(1)
    path = Png(tmp_path / "a.png", renderer=Tiny())(Rendering(frame))
    assert np.array_equal(png(path), frame[0])


def test_several_frames_become_one_montage(tmp_path):
    rendering = Rendering(colourful_movie(6, 16))
    path = Png(tmp_path / "a.png", renderer=Tiny())(rendering)
    assert np.array_equal(png(path), rendering.montage())
    assert png(path).shape == (48, 32, 3)


# GIF


@settings(derandomize=True, deadline=None)
@given(movies)
def test_up_to_256_colours_are_exact(frames):
    frames = frames // 64 * 64  # at most 64 colours
    decoded, delays, _ = gif_frames(encoding.gif_bytes(frames, fps=10))
    assert np.array_equal(decoded, frames)
    assert delays == [DELAY] * len(frames)


def test_what_few_colours_leave_goes_to_the_greys():
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    red = np.zeros((64, 3), np.uint8)
    red[:, 0] = 4 * np.arange(64) + 3
    frames = np.concatenate([greys, red]).reshape(1, 16, 20, 3)
    decoded, _, _ = gif_frames(encoding.gif_bytes(frames, 10))
    assert np.abs(decoded.astype(int) - frames).max() <= 1
    assert decoded[0, 0, 0].tolist() == [0, 0, 0]
    assert decoded[0, 12, 15].tolist() == [255, 255, 255]


def test_greys_take_no_tint_from_colours_that_lie_nearer():
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    tinted = np.concatenate([greys[:-1] + np.array([a, b, 1], np.uint8) for a, b in ((0, 0), (1, 0))])
    frames = np.concatenate([greys, tinted, tinted[:2]]).reshape(1, 16, 48, 3)
    decoded, _, _ = gif_frames(encoding.gif_bytes(frames, 10))
    assert np.ptp(decoded[np.ptp(frames, -1) == 0], -1).max() == 0


def test_all_greys_are_exact():
    frames = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, -1)
    assert np.array_equal(gif_frames(encoding.gif_bytes(frames, 10))[0], frames)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.sampled_from([0, 9, 255]))
)
def test_a_grey_movie_of_one_byte_for_each_pixel_is_exact(frames):
    decoded, delays, _ = gif_frames(encoding.gif_bytes(frames, fps=10))
    assert np.array_equal(decoded, np.repeat(frames[..., None], 3, -1))
    assert delays == [DELAY] * len(frames)
    assert np.array_equal(gif_frames(encoding.gif_bytes(np.repeat(frames[..., None], 3, -1), fps=10))[0], decoded)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    st.tuples(st.integers(2, 5), st.integers(1, 12), st.sampled_from([1, 7, 8, 16, 20])),
    st.permutations(range(3)),
    st.integers(0, 9999),
)
def test_a_movie_of_a_few_changes_is_exact_whatever_its_width_and_its_order_in_memory(shape, order, seed):
    numbers = np.random.default_rng(seed)
    changes = numbers.integers(1, 256, shape) * (numbers.random(shape) < 0.05)
    frames = changes.cumsum(0).astype(np.uint8)
    elsewhere = np.ascontiguousarray(frames.transpose(order)).transpose(np.argsort(order))
    encoded = encoding.gif_bytes(frames, fps=10)
    assert np.array_equal(gif_frames(encoded)[0], np.repeat(frames[..., None], 3, -1))
    assert encoding.gif_bytes(elsewhere, fps=10) == encoded


def test_only_what_changes_is_stored():
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64), np.uint8)
    frames = np.repeat(noise, 9, 0)
    frames[4, 20:23, 40:44] += 1
    alone, movie = len(encoding.gif_bytes(noise, 10)), len(encoding.gif_bytes(frames, 10))
    assert movie - alone < 8 * 50


def test_a_colourful_movie_stays_close_and_its_grey_grey():
    frames = colourful_movie()
    assert len(np.unique(frames.reshape(-1, 3), axis=0)) > 5000
    decoded, _, _ = gif_frames(encoding.gif_bytes(frames, 10))
    error = np.abs(decoded.astype(int) - frames)
    assert error.mean() < 3
    assert error.max() < 24
    grey = np.ptp(frames, -1) == 0
    assert np.ptp(decoded[grey], -1).max() == 0
    assert error[grey].max() <= 2


def test_a_small_spot_keeps_its_colours_beside_a_large_background():
    frame = np.zeros((1, 256, 256, 3), np.uint8)
    frame[0] = np.random.default_rng(0).integers(0, 60, (256, 256, 3))
    frame[0, :2, :2] = [[(255, 0, 0), (255, 250, 0)], [(0, 0, 255), (0, 255, 0)]]
    decoded, _, _ = gif_frames(encoding.gif_bytes(frame, 10))
    assert np.abs(decoded[0, :2, :2].astype(int) - frame[0, :2, :2]).max() < 16


def test_equal_frames_are_kept():
    frames = np.zeros((5, 4, 6, 3), np.uint8)
    frames[3:] = 200
    decoded, delays, _ = gif_frames(encoding.gif_bytes(frames, 10))
    assert np.array_equal(decoded, frames)
    assert delays == [DELAY] * 5


def test_colours_do_not_flicker():
    frames = colourful_movie(4)
    frames[:, :8, :8] = frames[0, :8, :8]
    decoded, _, _ = gif_frames(encoding.gif_bytes(frames, 10))
    assert (decoded[:, :8, :8] == decoded[0, :8, :8]).all()


def test_it_loops_for_ever(tmp_path):
    path = Gif(tmp_path / "a.gif", renderer=Tiny())(Rendering(colourful_movie(3)))
    assert gif_frames(path)[2]["loop"] == 0
    assert path.read_bytes()[-1:] == b";"


def test_a_movie_of_one_frame(tmp_path):
    path = Gif(tmp_path / "a.gif", renderer=Tiny())(Rendering(np.full((1, 3, 5, 3), 9, np.uint8)))
    assert np.array_equal(gif_frames(path)[0], np.full((1, 3, 5, 3), 9))


@pytest.mark.parametrize(("fps", "seconds"), [(10, 3), (30, 1), (7.5, 4), (50, 0.6), (0.5, 60)])
def test_the_whole_movie_keeps_its_frame_rate(fps, seconds):
    _, delays, _ = gif_frames(encoding.gif_bytes(np.zeros((30, 2, 2, 3), np.uint8), fps))
    assert sum(delays) == pytest.approx(1000 * seconds, abs=10)
    assert max(delays) - min(delays) <= 10


def test_a_rate_that_the_format_cannot_hold_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        _, delays, _ = gif_frames(encoding.gif_bytes(np.zeros((3, 2, 2, 3), np.uint8), 60))
    assert delays == [20, 20, 20]
    assert "60 are asked for" in caplog.text


def test_the_rate_is_the_renderers(tmp_path):
    path = Gif(tmp_path / "a.gif", renderer=Tiny(frames=4, fps=5))(attribution())
    frames, delays, _ = gif_frames(path)
    assert (len(frames), delays) == (4, [200] * 4)


def test_a_side_that_the_format_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="do not fit into a GIF"):
        encoding.gif_bytes(np.zeros((1, 1, 65536, 3), np.uint8), 10)


# npz


def test_npz_reloads_equal_in_everything(tmp_path):
    before = attribution(
        2,
        maps=3,
        signed=True,
        classes=(1, 2),
        scores=(0.25, -3.5),
        raw=torch.rand(2, 3, 2, 2, 2),
        affine=np.stack([np.diag([1, 2, 3, 1.0])] * 2),
        provenance={"method": "é", "parameters": {"layer": ["a", "b"], "seed": None}, "versions": {"torch": "2"}},
    )[1]
    after = Attribution.load(Npz(tmp_path / "a.npz")(before))
    for name in ("values", "image", "raw"):
        assert torch.equal(getattr(before, name), getattr(after, name))
        assert getattr(before, name).dtype == getattr(after, name).dtype
    assert np.array_equal(before.affine, after.affine)
    for name in ("signed", "target", "classes", "scores", "index", "provenance"):
        assert getattr(before, name) == getattr(after, name)


# what all have in common


@pytest.mark.parametrize(
    ("sink", "name"),
    [(Png, "a.jpg"), (Gif, "a.png"), (Npz, "a.npy"), (Png, "png"), (Gif, "{index}")],
)
def test_a_wrong_suffix_is_refused_when_the_sink_is_made(sink, name):
    with pytest.raises(ValueError, match=f"must end in .*{sink.__name__} writes"):
        sink(name, **({} if sink is Npz else {"renderer": Tiny()}))


@pytest.mark.parametrize("sink", [Png, Gif])
def test_undrawn_attributions_are_drawn_one_file_each(tmp_path, sink):
    suffix = sink.suffixes[0]
    sink(tmp_path / f"{{index}}{suffix}", renderer=Tiny())(attribution(3))
    assert files(tmp_path) == [f"{i}{suffix}" for i in range(3)]
    for i in range(3):
        with PilImage.open(tmp_path / f"{i}{suffix}") as picture:
            assert picture.convert("RGB").getpixel((0, 0)) == (10 * (i + 1), 0, 0)


def test_drawn_and_undrawn_in_one_list(tmp_path):
    drawn = Tiny()(attribution(target="class 0"))
    Png(tmp_path / "{target}.png", renderer=Tiny())([drawn, attribution()])
    assert files(tmp_path) == ["class-0.png", "class-2.png"]


def test_values_are_taken_from_a_drawn_attribution(tmp_path):
    path = Npz(tmp_path / "a.npz")(Tiny()(attribution()))
    assert torch.equal(Attribution.load(path).values, attribution().values)


def test_values_cannot_be_taken_from_a_bare_picture(tmp_path):
    with pytest.raises(ValueError, match="Npz writes values"):
        Npz(tmp_path / "a.npz")(Rendering(colourful_movie(1)))
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("sink", "breaks"),
    [(Png, "medviz.sinks.png.png_bytes"), (Gif, "medviz.sinks.gif.gif_bytes"), (Npz, "numpy.savez_compressed")],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_failing_encoder_leaves_nothing_behind(tmp_path, monkeypatch, sink, breaks, old):
    path = tmp_path / f"a{sink.suffixes[0]}"
    made = sink(path, overwrite=True, **({} if sink is Npz else {"renderer": Tiny()}))
    if old:
        made(attribution())
    before = path.read_bytes() if old else b""

    def fail(*_, **__):
        raise RuntimeError("disk full")

    monkeypatch.setattr(breaks, fail)
    with pytest.raises(RuntimeError, match="disk full"):
        made(attribution())
    assert files(tmp_path) == ([path.name] if old else [])
    assert not old or path.read_bytes() == before


@pytest.mark.parametrize("sink", [Png, Gif, Npz])
def test_an_existing_file_is_replaced_only_on_demand(tmp_path, sink):
    path = tmp_path / "deep" / f"a{sink.suffixes[0]}"
    options = {} if sink is Npz else {"renderer": Tiny()}
    sink(path, **options)(attribution())
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        sink(path, **options)(attribution(2)[1])
    assert path.read_bytes() == before
    sink(path, overwrite=True, **options)(attribution(2)[1])
    assert path.read_bytes() != before


@pytest.mark.parametrize("sink", [Png, Gif, Npz, Nifti])
def test_a_file_that_came_after_the_check_is_kept(tmp_path, monkeypatch, sink):
    path = tmp_path / f"a{sink.suffixes[0]}"
    path.write_text("theirs")
    monkeypatch.setattr(sink, "check", lambda *_: None)
    with pytest.raises(FileExistsError):
        sink(path, **({"renderer": Tiny()} if sink in (Png, Gif) else {}))(attribution())
    assert path.read_text() == "theirs"


def test_what_a_sink_does_not_take(tmp_path):
    sink = Png(tmp_path / "a.png", renderer=Tiny())
    for wrong in (np.zeros((4, 4)), "a", [1]):
        with pytest.raises(TypeError, match="a sink takes a Rendering, an Attribution or a list"):
            sink(wrong)
    with pytest.raises(PluginError, match="Renderer"):
        Png(tmp_path / "a.png", renderer=5)
    assert files(tmp_path) == []
