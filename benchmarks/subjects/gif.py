"""A movie of 128 frames for TensorBoard beside MONAI's."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import medviz.visualize
from benchmarks.agreement import agree, said
from benchmarks.options import Options
from benchmarks.rows import Case, Row
from benchmarks.timing import interleaved, medians, ratio

_FRAMES, _EDGE = 128, 128


def cases(options: Options) -> Iterator[Case]:
    """Return one for noise, which cannot be packed, and one for smooth values, as scans have them."""
    for kind in ("smooth", "noise"):
        yield Case(kind, partial(_compare, kind, options), "gif")


def volume(kind: str, frames: int) -> np.ndarray:
    """Return one channel of values in [0, 1], `(1, frames, 128, 128)`."""
    if kind == "noise":
        return np.random.default_rng(0).random((1, frames, _EDGE, _EDGE), dtype=np.float32)
    grids = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in (frames, _EDGE, _EDGE)), indexing="ij")
    ball: np.ndarray = np.clip(1.2 - np.sqrt(sum(grid**2 for grid in grids)), 0, 1)
    return ball[None]


def _compare(kind: str, options: Options) -> Iterator[Row]:
    import monai.visualize
    from torch.utils.tensorboard import SummaryWriter

    frames = 32 if options.quick else _FRAMES
    data = volume(kind, frames)
    packages = {"medviz": medviz.visualize, "MONAI": monai.visualize}
    movies = {
        name: _decoded(package.make_animated_gif_summary("movie", data, max_out=1, scale_factor=255.0)[0])
        for name, package in packages.items()
    }
    found = agree(movies, 1e-6)
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(str(Path(folder) / "log")) as writer:

        def way(package: Any) -> None:
            package.add_animated_gif(writer, "movie", data, max_out=1, scale_factor=255.0, global_step=0)

        rounds = options.rounds(41)
        ways = {name: partial(way, package) for name, package in packages.items()}
        times = interleaved(ways, rounds, after=writer.flush)
    title = f"{frames} frames of {_EDGE}², {kind}"
    note = (
        f"the call; TensorBoard's own writing, the same for both, comes after it; frames {said(found)}; {rounds} rounds"
    )
    yield Row("gif", title, ratio(times, "MONAI", "medviz"), medians(times), note)


def _decoded(summary: Any) -> Tensor:
    with Image.open(io.BytesIO(summary.value[0].image.encoded_image_string)) as movie:
        frames = []
        for i in range(getattr(movie, "n_frames", 1)):
            movie.seek(i)
            frames.append(np.asarray(movie.convert("L")))
    return torch.from_numpy(np.stack(frames))
