"""Pictures and movies in a TensorBoard log."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from medviz import registry
from medviz.attribution import Attribution
from medviz.files import check_folder
from medviz.hookspecs import Renderer, Sink, hookimpl
from medviz.rendering import DEFAULT_RENDERER, Rendering
from medviz.results import ResultKey, as_template
from medviz.sinks.encoding import gif_bytes, png_bytes

_PROTOCOL = {"torch": "tensorboard.compat.proto.summary_pb2", "tensorboardX": "tensorboardX.proto.summary_pb2"}


def _check_writer(sink: TensorBoard, _: Any, writer: Any) -> None:
    if writer is not None and library_of(writer) is None:
        raise TypeError(f"`writer` is a {type(writer).__name__}; expected a SummaryWriter of torch or tensorboardX.")
    if (writer is None) == (sink.path is None):
        raise ValueError("give either `path`, a log folder, or `writer`, an open SummaryWriter.")


@attrs.frozen(eq=False)
class TensorBoard(Sink):
    """Write one frame as an image summary, several as an animated GIF in an image summary; in colour, with true size.

    Both libraries' `add_image` takes still pictures only, `add_video` needs moviepy, and tensorboardX rewrites tags.
    So the summary is built here and handed to `writer.file_writer.add_summary`, which both libraries offer.

    Args:
        path: the log folder; may hold the placeholders of file names. Each result becomes an event file of its own:
            TensorBoard stops following an older file of the folder, so join a running training with `writer`.
        writer: an open `SummaryWriter` of `torch.utils.tensorboard` or `tensorboardX`; it is flushed and stays open.
            torch's has then written; tensorboardX writes from a queue of its own, for certain when it is closed.
        renderer: draws an attribution that comes undrawn.
    """

    path: Path | None = attrs.field(default=None, converter=attrs.converters.optional(as_template))
    writer: Any = attrs.field(default=None, kw_only=True, validator=_check_writer)
    renderer: Renderer = registry.field(kind="renderers", default=DEFAULT_RENDERER, kw_only=True)

    @hookimpl
    def write(self, rendering: Rendering, attribution: Attribution | None, tag: str | None, step: int) -> str:
        """Write one image summary and flush it; return the log folder."""
        key = ResultKey.of(attribution, tag, step)
        with self._open(key) as writer:
            made = summary(
                library_of(writer) or "", _tag(key) or rendering.title or "medviz", rendering.frames, rendering.fps
            )
            writer.file_writer.add_summary(made, step)
            writer.flush()
            return str(writer.file_writer.get_logdir())

    def check(self, keys: Sequence[ResultKey]) -> None:
        """Refuse a closed writer, a log folder that cannot be written to, and results that would hide one another."""
        if self.writer is not None and self.writer.file_writer is None:
            raise ValueError("`writer` is closed; give an open SummaryWriter, or `path`.")
        taken = set()
        for key in keys:
            folder = None if self.path is None else key.expand(self.path)
            if folder is not None:
                check_folder(folder)
            named = folder, _tag(key), key.step
            if named[1] and named in taken:
                raise ValueError(
                    f"two results would have the tag {named[1]!r} at step {key.step}; tell them apart by tags."
                )
            taken.add(named)

    @contextlib.contextmanager
    def _open(self, key: ResultKey) -> Iterator[Any]:
        if self.writer is not None:
            yield self.writer
            return
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(key.expand(str(self.path))) as writer:
            yield writer


def _tag(key: ResultKey) -> str:
    """Return the user's tag or "explainer/target", with the image's index behind it where it is not the first."""
    tag = key.tag or "/".join(part for part in (key.explainer, key.target) if part)
    return f"{tag}/{key.index}" if key.index else tag


def library_of(writer: Any) -> str | None:
    """Return which library wrote the class of `writer`, or a class that it inherits from."""
    homes = {cls.__module__.partition(".")[0] for cls in type(writer).__mro__ if cls.__name__ == "SummaryWriter"}
    return next((library for library in _PROTOCOL if library in homes), None)


def summary(library: str, tag: str, frames: np.ndarray, fps: float) -> Any:
    """Return the image summary of a picture, or of a movie as a GIF.

    Args:
        library: "torch" or "tensorboardX"; the two do not take each other's summaries.
        tag: the name in TensorBoard.
        frames: `(T, H, W, 3)`, or `(T, H, W)` in grey, uint8.
        fps: frames per second.
    """
    encoded = png_bytes(frames[0]) if len(frames) == 1 else gif_bytes(frames, fps)
    made = importlib.import_module(_PROTOCOL[library]).Summary()
    height, width, *channels = frames.shape[1:]
    image = made.value.add(tag=tag).image  # in its place: a message that is handed to another one is copied
    image.height, image.width, image.colorspace = height, width, (*channels, 1)[0]
    image.encoded_image_string = encoded
    return made
