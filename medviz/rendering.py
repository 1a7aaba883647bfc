"""What a renderer makes: frames, ready to be shown or written."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from medviz.attribution import Attribution
    from medviz.hookspecs import Renderer

DEFAULT_RENDERER = "medviz-xai/planes"


def _as_frames(frames: Any) -> np.ndarray:
    array = np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"`frames` must be uint8 (T, H, W, 3), not empty; got {array.dtype} {array.shape}.")
    return array


@attrs.frozen(eq=False, repr=False)
class Rendering:
    """Frames of one attribution.

    Args:
        frames: `(T, H, W, 3)` uint8, RGB, square pixels; T is 1 for a still picture.
        fps: frames per second.
        title: one line that says what is seen.
        figure: the matplotlib figure that the one frame was drawn with, or None.
        attribution: what was drawn.
    """

    frames: np.ndarray = attrs.field(converter=_as_frames)
    fps: float = attrs.field(default=10.0, validator=attrs.validators.gt(0))
    title: str = ""
    figure: Figure | None = None
    attribution: Attribution | None = None

    def __repr__(self) -> str:
        return f"<Rendering: {self.title or 'no title'}, {len(self.frames)} frames {self.frames.shape[1:3]}>"

    def montage(self) -> np.ndarray:
        """Return all frames side by side in one picture `(H', W', 3)` uint8, row by row, about as high as wide."""
        count, height, width, _ = self.frames.shape
        columns = min(count, max(1, round(math.sqrt(count * height / width))))
        rows = math.ceil(count / columns)
        sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
        sheet[:count] = self.frames
        rows_of_pictures = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
        picture: np.ndarray = rows_of_pictures.reshape(rows * height, columns * width, 3)
        return picture

    def _repr_png_(self) -> bytes:
        import imageio.v3 as iio

        buffer = io.BytesIO()
        iio.imwrite(buffer, self.montage(), extension=".png")
        return buffer.getvalue()


def default_renderer() -> Renderer:
    """Return the renderer that draws where nobody named one: in a notebook, and in a sink given an undrawn map."""
    from medviz import registry

    return registry.get_renderer(DEFAULT_RENDERER)
