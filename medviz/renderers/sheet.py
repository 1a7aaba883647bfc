"""The arithmetic of a sheet of slices: a volume to frames, frames to one array."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def as_frames(volume: Any, frame_dim: int = -3, channel_dim: int | None = None) -> np.ndarray:
    """Return the slices of `volume` in order: `(T, H, W)`, or `(T, C, H, W)` with a `channel_dim`.

    Arguments as in `medviz.renderers.matshow3d.matshow3d`.
    """
    if channel_dim not in (None, 0, 1):
        raise ValueError(f"`channel_dim` is None, 0 or 1; got {channel_dim!r}.")
    if isinstance(volume, Sequence) and not isinstance(volume, str):
        items = [_as_array(item, f"volume[{i}]") for i, item in enumerate(volume)]
        array = _padded(items, channel_dim is not None)
        channel_dim = None if channel_dim is None else 1
    else:
        array = _as_array(volume, "volume")
        array = array.reshape((1,) * (3 - array.ndim) + array.shape)
    if not array.size:
        raise ValueError(f"`volume` is empty, its shape is {array.shape}.")
    return _flat(array, frame_dim) if channel_dim is None else _coloured(array, frame_dim, channel_dim)


def limits(frames: np.ndarray, vmin: float | None, vmax: float | None) -> tuple[float, float]:
    """Return the values of the first and the last colour: those given, else the smallest and largest of all."""
    if (vmin is None or vmax is None) and np.isnan(frames).all():
        raise ValueError("`volume` holds nothing but NaN; there is nothing to show.")
    return (
        float(np.nanmin(frames)) if vmin is None else vmin,
        float(np.nanmax(frames)) if vmax is None else vmax,
    )


def as_sheet(frames: np.ndarray, frames_per_row: int | None, margin: int, fill_value: Any, dtype: Any) -> np.ndarray:
    """Return the frames `(T, [C,] H, W)` row by row on one sheet `(H', W')` or `(H', W', C)`."""
    if frames_per_row is not None and (not isinstance(frames_per_row, int) or frames_per_row < 0):
        raise ValueError(
            f"`frames_per_row` is a whole number, or None or 0 for a square sheet; got {frames_per_row!r}."
        )
    if not isinstance(margin, int) or margin < 0:
        raise ValueError(f"`margin` is a whole number of voxels from 0; got {margin!r}.")
    if not np.issubdtype(np.dtype(dtype), np.floating) and not np.isfinite(fill_value):
        raise ValueError(f"`fill_value` {fill_value} does not fit into `dtype` {np.dtype(dtype)}; set fill_value=0.")
    columns = min(len(frames), frames_per_row or math.ceil(math.sqrt(len(frames))))
    rows = math.ceil(len(frames) / columns)
    around = [(0, rows * columns - len(frames)), *[(0, 0)] * (frames.ndim - 3), (margin, margin), (margin, margin)]
    tiles = np.pad(frames.astype(dtype, copy=False), around, constant_values=fill_value)
    tiles = tiles.reshape(rows, columns, *tiles.shape[1:])
    tiles = np.moveaxis(tiles, 2, -1) if frames.ndim == 4 else tiles  # (rows, columns, H, W[, C])
    height, width = tiles.shape[2:4]
    sheet: np.ndarray = tiles.swapaxes(1, 2).reshape(rows * height, columns * width, *tiles.shape[4:])
    return sheet


def _as_array(item: Any, name: str) -> np.ndarray:
    if hasattr(item, "detach"):
        from medviz.tensors import numpy_of

        item = numpy_of(item)
    array = np.asarray(item)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"`{name}` holds {array.dtype}; expected an array or tensor of real numbers.")
    return array


def _padded(items: list[np.ndarray], coloured: bool) -> np.ndarray:
    """The items padded to one size: one after the other along their first axis, or along a new one if coloured."""
    shapes = [item.shape for item in items]
    if not items or len({len(shape) for shape in shapes}) > 1 or len(shapes[0]) not in (2, 3, 4):
        raise ValueError(f"`volume` is a list of the shapes {shapes}; expected channel-first arrays (C, H[, W, D]).")
    if coloured and len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"`volume` is a list of the shapes {shapes}; with `channel_dim` all need as many channels.")
    size = np.max(shapes, axis=0)[1:]
    padded = []
    for item in items:
        missing = size - item.shape[1:]
        padded.append(np.pad(item, [(0, 0), *((int(m // 2), int(m - m // 2)) for m in missing)]))
    array = np.stack(padded) if coloured else np.concatenate(padded)
    return array.reshape((1,) * (3 - array.ndim) + array.shape)


def _flat(array: np.ndarray, frame_dim: int) -> np.ndarray:
    _check_frame_dim(array, frame_dim)
    moved = np.moveaxis(array, frame_dim, -3)
    return moved.reshape(-1, *moved.shape[-2:])


def _coloured(array: np.ndarray, frame_dim: int, channel_dim: int) -> np.ndarray:
    if array.ndim == channel_dim + 3 and array.shape[channel_dim] in (1, 3, 4):
        array = np.expand_dims(array, channel_dim + 1)  # a 2-D picture in colours is a volume of one slice
        frame_dim = -3
    if array.ndim != channel_dim + 4 or array.shape[channel_dim] not in (1, 3, 4):
        raise ValueError(
            f"`volume` is {array.shape} with channel_dim={channel_dim}; expected (C, H, W, D) with channel_dim=0 or "
            "(B, C, H, W, D) with channel_dim=1, and 1, 3 or 4 channels."
        )
    _check_frame_dim(array, frame_dim)
    if frame_dim % array.ndim == channel_dim:
        raise ValueError(f"`frame_dim` {frame_dim} is the channel axis; name a spatial axis: -1, -2 or -3.")
    moved = np.moveaxis(array, frame_dim, -4)
    return moved.reshape(-1, *moved.shape[-3:])


def _check_frame_dim(array: np.ndarray, frame_dim: int) -> None:
    if not isinstance(frame_dim, int) or not -array.ndim <= frame_dim < array.ndim:
        raise ValueError(f"`frame_dim` is {frame_dim!r}; the volume has {array.ndim} axes; name one of -1, -2 and -3.")
