"""Frames as the bytes of a PNG or of an animated GIF."""

from __future__ import annotations

import io
import logging
import struct

import numpy as np

from medviz.sinks.lzw import BITS, compressed
from medviz.sinks.palette import shared_palette

_log = logging.getLogger("medviz")

_LOOP = b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
_MOST = 65535
_KEEP = 1 << 2  # a frame stays when the next is laid over it


def png_bytes(picture: np.ndarray) -> bytes:
    """Return the PNG of `picture` `(H, W, 3)`, or `(H, W)` in grey, uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def gif_bytes(frames: np.ndarray, fps: float) -> bytes:
    """Return the GIF of `frames` `(T, H, W, 3)`, or `(T, H, W)` in grey, uint8; one palette for all, looping for ever.

    The container is written here, because Pillow's own writer drops a frame that equals the one before it; frame
    numbers would no longer be slice numbers. Only the region that changed is stored.

    Source: GIF89a specification, https://www.w3.org/Graphics/GIF/spec-gif89a.txt.

    Raises:
        ValueError: a side is longer than the format's 65,535 pixels.
    """
    height, width = frames.shape[1:3]
    if max(height, width) > _MOST:
        raise ValueError(f"frames of {height} x {width} pixels do not fit into a GIF, {_MOST} is the longest side.")
    palette, indices = shared_palette(np.ascontiguousarray(frames))
    boxes = _changes(indices)
    regions = [index[b[0] : b[2], b[1] : b[3]] for index, b in zip(indices, boxes, strict=True)]
    head = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0xF7, 0, 0)
    parts: list[bytes | memoryview] = [head, palette.tobytes(), _LOOP]
    for box, delay, pixels in zip(boxes, _delays(len(frames), fps), compressed(regions), strict=True):
        parts += _head(box, delay), pixels, b"\0"
    return b"".join([*parts, b";"])


def _head(box: tuple[int, int, int, int], delay: int) -> bytes:
    """Return what stands before a frame's pixels: how long it stands, and where it lies on the one before."""
    top, left, bottom, right = box
    control = struct.pack("<3sBHBB", b"!\xf9\x04", _KEEP, delay, 0, 0)
    return control + struct.pack("<cHHHHBB", b",", left, top, right - left, bottom - top, 0, BITS)


def _changes(indices: np.ndarray) -> np.ndarray:
    """Return the smallest box that holds every change from frame to frame, one pixel if there is none.

    Args:
        indices: `(T, H, W)`, contiguous.

    Returns:
        `(T, 4)`: top, left, bottom, right; the first box is the whole frame.
    """
    differs = indices[1:] != indices[:-1]
    words = differs.view(np.uint64) if differs.shape[2] % 8 == 0 else differs  # eight truth values in one step
    rows, columns = words.any(2), np.bitwise_or.reduce(words, axis=1).view(bool)
    (top, bottom), (left, right) = _ends(rows), _ends(columns)
    changed = np.where(rows.any(1), [top, left, bottom, right], [[0], [0], [1], [1]])
    boxes: np.ndarray = np.column_stack([[0, 0, *indices.shape[1:]], changed]).T
    return boxes


def _ends(differs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the first truth value of each row stands, and the place behind the last."""
    return differs.argmax(1), differs.shape[1] - differs[:, ::-1].argmax(1)


def _delays(count: int, fps: float) -> list[int]:
    """Return how long each frame stands, in 1/100 s; rounded so that the whole movie keeps its frame rate."""
    step = 100 / fps
    if step < 2 and count > 1:
        _log.warning("a GIF shows at most 50 frames per second; %g are asked for, 50 are written.", fps)
    step = min(max(step, 2), _MOST)
    return [round((i + 1) * step) - round(i * step) for i in range(count)]
