"""From values to what a screen shows: clipped, or stretched over its range."""

from __future__ import annotations

from typing import Any

import numpy as np

_AT_ONCE = 1 << 16  # values: they stay in the processor's cache from one operation to the next


def as_array(values: Any) -> np.ndarray:
    """Return a tensor or array as a float32 array, bytes as bytes.

    Raises:
        TypeError: not real numbers.
        ValueError: empty, or values that are not finite.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an image of {array.dtype} was given; expected a tensor or array of real numbers.")
    array = array if array.dtype == np.uint8 else array.astype(np.float32, copy=False)
    if not array.size or not np.isfinite([array.min(), array.max()]).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(f"the image {array.shape} is empty or holds {bad} values that are NaN, infinite or too large.")
    return array


def clipped(values: np.ndarray, scale: float = 1.0, span: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Return `values` as bytes: `span` becomes 0 to `scale`, and what lies below 0 or above 255 is clipped."""
    low, width = np.float32(span[0]), np.float32(span[1]) - np.float32(span[0])
    shown, flat = np.empty(values.size, np.uint8), values.reshape(-1)
    room = np.empty(min(values.size, _AT_ONCE), np.float32)  # for every part: fresh memory is what costs time
    for start in range(0, values.size, _AT_ONCE):
        given = flat[start : start + _AT_ONCE]
        part = room[: len(given)]
        if span != (0.0, 1.0):
            given = np.divide(np.subtract(given, low, out=part, dtype=np.float32), width, out=part)
        np.multiply(given, np.float32(scale), out=part, dtype=np.float32)
        shown[start : start + _AT_ONCE] = part.clip(0, 255, out=part)
    return shown.reshape(values.shape)


def span_of(values: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest value; of a constant a span that begins there, so that it becomes 0."""
    low, high = float(values.min()), float(values.max())
    return low, high if high > low else np.inf


def stretched(values: np.ndarray) -> np.ndarray:
    """Return `values` mapped linearly from their own range to [0, 1], float32; a constant becomes 0."""
    low, high = span_of(values)
    scaled: np.ndarray = (values.astype(np.float32) - np.float32(low)) / (np.float32(high) - np.float32(low))
    return scaled


def displayable(values: np.ndarray) -> np.ndarray:
    """Return colours as they are where a screen can show them, bytes or [0, 1]; else stretched, all channels alike."""
    fits = values.dtype == np.uint8 or (values.min() >= 0 and values.max() <= 1)
    return values if fits else stretched(values)


def movie(volume: np.ndarray, frame_dim: int) -> np.ndarray:
    """Return the slices of bytes `(C, H, W, D)`, C 1 or 3, along the axis `frame_dim` as frames `(T, h, w[, 3])`."""
    if len(volume) == 1:
        return np.moveaxis(volume[0], frame_dim, 0)
    return np.moveaxis(np.moveaxis(volume, frame_dim, 0), 1, -1)
