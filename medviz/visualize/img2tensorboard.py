"""Images and volumes in TensorBoard, as documented."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from medviz.sinks.frames import as_array, clipped, displayable, movie, span_of, stretched
from medviz.sinks.tensorboard import library_of, summary

__all__ = ["add_animated_gif", "make_animated_gif_summary", "plot_2d_or_3d_image"]

_log = logging.getLogger("medviz")
_FPS = 10.0
_NO_WRITER = "`writer` is a {}; expected a SummaryWriter of torch or tensorboardX."


def make_animated_gif_summary(
    tag: str,
    image: np.ndarray | Tensor,
    writer: Any = None,
    max_out: int = 3,
    frame_dim: int = -3,
    scale_factor: float = 1.0,
) -> list[Any]:
    """Return one summary for each channel of a volume: its slices as an animated GIF, of true height and width.

    Args:
        tag: name in TensorBoard; "/image" and the channel's number are put behind it.
        image: `(C, H, W, D)`.
        writer: whose kind of summary is made, torch's or tensorboardX's; None: torch's.
        max_out: the most channels.
        frame_dim: the axis of `image` that becomes the frames, counted with the channel axis; -3: the first spatial.
        scale_factor: the values times this are bytes; what lies beyond 0 to 255 is clipped. 255 for values in [0, 1].

    Raises:
        ValueError: another shape, a wrong axis, or values that are not finite.
    """
    _check_channels("max_out", max_out)
    volume = as_array(image)
    if volume.ndim != 4:
        raise ValueError(f"`image` has shape {volume.shape}; expected (C, H, W, D).")
    axis = _axis(frame_dim, leading=1)
    shown = clipped(volume[:max_out], scale_factor)
    if shown.max(initial=0) <= 1 and volume.max() > 0:
        _log.warning("%r: all values times `scale_factor` %g lie below 2 of 255: black.", tag, scale_factor)
    return _movies(tag, shown, writer, axis, max_out)


def add_animated_gif(
    writer: Any,
    tag: str,
    image_tensor: np.ndarray | Tensor,
    max_out: int = 3,
    frame_dim: int = -3,
    scale_factor: float = 1.0,
    global_step: int | None = None,
) -> None:
    """Write a volume's slices, channel by channel, as animated GIFs.

    Args:
        writer: an open `SummaryWriter` of torch or tensorboardX, or anything with their `file_writer`.
        tag: as in `make_animated_gif_summary`, like the following.
        image_tensor: `(C, H, W, D)`.
        max_out: the most channels.
        frame_dim: the axis that becomes the frames.
        scale_factor: the values times this are bytes.
        global_step: the training step.
    """
    file_writer = _file_writer(writer)
    for one in make_animated_gif_summary(tag, image_tensor, writer, max_out, frame_dim, scale_factor):
        file_writer.add_summary(one, global_step)


def plot_2d_or_3d_image(
    data: Any,
    step: int,
    writer: Any,
    index: int = 0,
    max_channels: int = 1,
    frame_dim: int = -3,
    max_frames: int = 24,
    tag: str = "output",
) -> None:
    """Write one image of a batch: a picture in 2-D, an animated GIF in 3-D.

    Each channel is a picture of its own, stretched over its range. With `max_channels=3` three channels are colours,
    in 2-D and 3-D and with both libraries: as they are where they are bytes or in [0, 1], else stretched together.

    Args:
        data: `(N, C, H, W[, D])`, or a list of `(C, H, W[, D])`.
        step: the training step.
        writer: an open `SummaryWriter` of torch or tensorboardX.
        index: which image of the batch.
        max_channels: the most channels.
        frame_dim: in 3-D the axis of `data` that becomes the frames, counted with batch and channel axes; -3: the
            first spatial.
        max_frames: in 3-D, with colours, the frames per second.
        tag: name in TensorBoard; what it shows is put behind it.
    """
    if not hasattr(writer, "add_image"):
        raise TypeError(_NO_WRITER.format(type(writer).__name__))
    _check_channels("max_channels", max_channels)
    image = as_array(data[index])
    if image.ndim == 2:
        writer.add_image(f"{tag}_HW", stretched(image), step, dataformats="HW")
    elif image.ndim == 3 and max_channels == len(image) == 3:
        writer.add_image(f"{tag}_CHW", displayable(image), step, dataformats="CHW")
    elif image.ndim == 3:
        for i, channel in enumerate(image[:max_channels]):
            writer.add_image(f"{tag}_HW_{i}", stretched(channel), step, dataformats="HW")
    else:
        _plot_3d(image.reshape(-1, *image.shape[-3:]), step, writer, max_channels, frame_dim, max_frames, tag)


def _plot_3d(
    image: np.ndarray, step: int, writer: Any, max_channels: int, frame_dim: int, max_frames: int, tag: str
) -> None:
    axis = _axis(frame_dim, leading=2)
    if max_channels == len(image) == 3:
        shown = displayable(image)
        frames = movie(shown if shown.dtype == np.uint8 else clipped(shown, 255), axis)
        made = summary(library_of(writer) or "torch", tag, frames, max_frames)
        _file_writer(writer).add_summary(made, step)
        return
    grey = np.stack([clipped(channel, 255, span_of(channel)) for channel in image[:max_channels]])
    file_writer = _file_writer(writer)
    for one in _movies(f"{tag}_HWD", grey, writer, axis, len(grey)):
        file_writer.add_summary(one, step)


def _check_channels(name: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"`{name}` is how many channels are shown, at least 1; got {number!r}.")


def _movies(tag: str, volume: np.ndarray, writer: Any, axis: int, max_out: int) -> list[Any]:
    """Return a summary for each channel of bytes `(C, H, W, D)`; the tags are numbered unless one was asked for."""
    library, suffix = library_of(writer) or "torch", "/image" if max_out == 1 else "/image/{}"
    return [summary(library, tag + suffix.format(i), movie(one[None], axis), _FPS) for i, one in enumerate(volume)]


def _axis(frame_dim: int, leading: int) -> int:
    """Return the spatial axis that is meant as -3, -2 or -1; positive ones count `leading` axes in front."""
    axis = frame_dim - leading - 3 if frame_dim >= 0 else frame_dim
    if axis not in (-3, -2, -1):
        spatial: Sequence[int] = (-3, -2, -1, *range(leading, leading + 3))
        raise ValueError(f"`frame_dim` is {frame_dim}; the spatial axes are {', '.join(map(str, spatial))}.")
    return axis


def _file_writer(writer: Any) -> Any:
    if not hasattr(writer, "file_writer"):
        raise TypeError(_NO_WRITER.format(type(writer).__name__))
    if writer.file_writer is None:
        raise ValueError("`writer` is closed; give an open SummaryWriter.")
    return writer.file_writer
