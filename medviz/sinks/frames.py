"""From values to what a screen shows: clipped, or stretched over its range."""

from __future__ import annotations

from typing import Any

import numpy as np


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
    array = array if array.dtype == np.uint8 else array.astype(np.float32)
    if not array.size or not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(f"the image {array.shape} is empty or holds {bad} values that are NaN, infinite or too large.")
    return array


def clipped(values: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Return `values` times `scale` as bytes: what lies below 0 is 0, what lies above 255 is 255."""
    shown: np.ndarray = (values * np.float32(scale)).clip(0, 255).astype(np.uint8)
    return shown


def stretched(values: np.ndarray) -> np.ndarray:
    """Return `values` mapped linearly from their own range to [0, 1], float32; a constant becomes 0."""
    wide = values.astype(np.float32)
    low, high = wide.min(), wide.max()
    scaled: np.ndarray = (wide - low) / (high - low) if high > low else np.zeros_like(wide)
    return scaled


def displayable(values: np.ndarray) -> np.ndarray:
    """Return colours as they are where a screen can show them, bytes or [0, 1]; else stretched, all channels alike."""
    fits = values.dtype == np.uint8 or (values.min() >= 0 and values.max() <= 1)
    return values if fits else stretched(values)


def movie(volume: np.ndarray, frame_dim: int) -> np.ndarray:
    """Return the slices of bytes `(C, H, W, D)`, C 1 or 3, along the axis `frame_dim` as frames `(T, h, w, 3)`."""
    frames = np.moveaxis(np.moveaxis(volume, frame_dim, 0), 1, -1)
    return np.broadcast_to(frames, (*frames.shape[:-1], 3))
