"""Letters on pictures, drawn without pyplot, so that no figure is left open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_EDGES = {
    "top": (0.5, 0.985, "center", "top"),
    "bottom": (0.5, 0.015, "center", "bottom"),
    "left": (0.015, 0.5, "left", "center"),
    "right": (0.985, 0.5, "right", "center"),
}
BACKGROUND = "#0e1116"
TEXT = "#f2f4f8"
FAINT = "#9aa4b2"
_DPI = 100
_SMALLEST = 64  # pixels; on a smaller picture a letter would hide what it names


def new_figure(width: float, height: float, dpi: float = _DPI, facecolor: Any = "none") -> Any:
    """Return a matplotlib figure of `width` × `height` inches that can draw itself and that pyplot knows nothing of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor=facecolor)
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Any, x: float, y: float, width: float, height: float, label: str = "") -> Any:
    """Return new axes without frame or ticks, `x`, `y` inches from the lower left corner."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((x / across, y / down, width / across, height / down), label=label)
    axes.set_axis_off()
    return axes


def rasterise(figure: Any) -> np.ndarray:
    """Return the picture of a figure, `(H, W, 4)` uint8."""
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())


def write(figure: Any, x: float, y: float, text: str, *, size: float, width: float | None = None, **style: Any) -> Any:
    """Write one line at `x`, `y` inches from the lower left corner, no longer than `width` inches.

    A line that is too long gets smaller letters, down to two thirds, and then an ellipsis. A dollar sign starts no
    formula.

    Args:
        width: None: as far as the figure's right edge.
        **style: matplotlib's properties of a text.
    """
    across, down = figure.get_size_inches()
    width = across - x - 0.2 if width is None else width
    plain = {"parse_math": False, "usetex": False, "color": TEXT}
    label = figure.text(x / across, y / down, text, size=size, **{**plain, **style})

    def length() -> float:
        pixels: float = label.get_window_extent(figure.canvas.get_renderer()).width
        inches: float = pixels / figure.dpi
        return inches

    if length() > width:
        label.set_size(size * max(2 / 3, width / length()))
    while length() > width and len(text) > 1:
        text = text[: max(1, min(len(text) - 1, int(len(text) * width / length())))]
        label.set_text(text.rstrip(" ·") + "…")
    return label


def draw_letters(frames: np.ndarray, letters: Mapping[str, str]) -> np.ndarray:
    """Return `frames` `(T, H, W, 3)` uint8 with letters at the edges "top", "bottom", "left", "right".

    Frames too small to be read, and empty letters, are left as they are.
    """
    height, width = frames.shape[1:3]
    if min(height, width) < _SMALLEST or not any(letters.values()):
        return frames
    overlay = _letters(height, width, letters).astype(np.float32) / 255
    inked = overlay[..., 3] > 0
    colour, opacity = overlay[inked, :3], overlay[inked, 3:]
    written: np.ndarray = frames.copy()
    written[:, inked] = np.rint(frames[:, inked] * (1 - opacity) + colour * opacity * 255)
    return written


def _letters(height: int, width: int, letters: Mapping[str, str]) -> np.ndarray:
    from matplotlib.patheffects import withStroke

    figure = new_figure(width / _DPI, height / _DPI)
    points = min(max(0.055 * min(height, width), 9), 22) * 72 / _DPI
    for edge, letter in letters.items():
        x, y, horizontal, vertical = _EDGES[edge]
        style = {"color": "white", "size": points, "weight": "bold", "usetex": False}
        text = figure.text(x, y, letter, ha=horizontal, va=vertical, **style)
        text.set_path_effects([withStroke(linewidth=points / 5, foreground=(0, 0, 0, 0.8))])
    picture = rasterise(figure)
    return picture[:height, :width]
