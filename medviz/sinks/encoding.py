"""Frames as the bytes of a PNG or of an animated GIF."""

from __future__ import annotations

import io
import logging
import struct

import numpy as np

from medviz.sinks.palette import shared_palette

_log = logging.getLogger(__name__)

_LOOP = b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
_MOST = 65535


def png_bytes(picture: np.ndarray) -> bytes:
    """Return the PNG of `picture` `(H, W, 3)` uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def gif_bytes(frames: np.ndarray, fps: float) -> bytes:
    """Return the GIF of `frames` `(T, H, W, 3)` uint8, one palette for all, looping for ever.

    The container is written here, because Pillow's own writer drops a frame that equals the one before it; frame
    numbers would no longer be slice numbers. Only the region that changed is stored.

    Source: GIF89a specification, https://www.w3.org/Graphics/GIF/spec-gif89a.txt.

    Raises:
        ValueError: a side is longer than the format's 65,535 pixels.
    """
    from PIL import GifImagePlugin, Image

    height, width = frames.shape[1:3]
    if max(height, width) > _MOST:
        raise ValueError(f"frames of {height} x {width} pixels do not fit into a GIF, {_MOST} is the longest side.")
    palette, indices = shared_palette(frames)
    parts = [b"GIF89a", struct.pack("<HHBBB", width, height, 0xF7, 0, 0), palette.tobytes(), _LOOP]
    for i, (index, delay) in enumerate(zip(indices, _delays(len(frames), fps), strict=True)):
        top, left, region = (0, 0, index) if i == 0 else _changed(indices[i - 1], index)
        picture = Image.fromarray(np.ascontiguousarray(region))
        parts += GifImagePlugin.getdata(picture, (left, top), duration=10 * delay, disposal=1)
    return b"".join([*parts, b";"])


def _changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Return the corner and the content of the smallest box that holds every change; one pixel if there is none."""
    differs = before != after
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    if not len(rows):
        return 0, 0, after[:1, :1]
    top, left = int(rows[0]), int(columns[0])
    return top, left, after[top : rows[-1] + 1, left : columns[-1] + 1]


def _delays(count: int, fps: float) -> list[int]:
    """Return how long each frame stands, in 1/100 s; rounded so that the whole movie keeps its frame rate."""
    step = 100 / fps
    if step < 2 and count > 1:
        _log.warning("a GIF shows at most 50 frames per second; %g are asked for, 50 are written.", fps)
    step = min(max(step, 2), _MOST)
    return [round((i + 1) * step) - round(i * step) for i in range(count)]
