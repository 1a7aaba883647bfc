"""A colour bar that looks as the map looks on a dark scan: it fades where the map is transparent."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from medviz.renderers.annotate import FAINT, TEXT, add_axes
from medviz.renderers.scene import Scene, three_digits, to_uint8

_WIDTH = 0.17
_MOST = 3.2
_LEAST = 0.9
_LINE = 0.2


def draw_colour_bar(
    figure: Any, scene: Scene, x: float, y: float, height: float, contours: tuple[float, ...] = ()
) -> None:
    """Draw the colours and the raw values that they mean, `x`, `y` inches from the lower left corner.

    Args:
        height: the height of the room; the bar is centred in it.
        contours: fractions to draw as lines instead of the whole bar of colours.
    """
    length = min(_MOST, max(_LEAST, height))
    axes = add_axes(figure, x, y + (height - length) / 2, _WIDTH, length, label="colour bar")
    axes.set_axis_on()
    low = -1.0 if scene.signed else 0.0
    scaled = torch.linspace(1, low, 512, device="cpu")[:, None]
    backdrop = torch.full((1, 512, 1), 0.07, device="cpu")
    bar = to_uint8(backdrop.expand(3, -1, -1) if contours else scene.wash(backdrop, scaled))
    axes.imshow(bar, extent=(0, 1, low, 1), origin="upper", aspect="auto")
    levels = np.array(sorted({sign * f for f in contours for sign in ((1, -1) if scene.signed else (1,))}))
    if contours:
        axes.hlines(levels, 0, 1, colors=scene.colours(levels), linewidth=2)
    ticks = levels if contours else np.linspace(low, 1, 5)
    axes.set_yticks(ticks, _labels(scene, ticks, length / (1 - low)), usetex=False)
    axes.set(xlim=(0, 1), ylim=(low, 1), xticks=[])
    axes.yaxis.tick_right()
    axes.tick_params(axis="y", length=0, pad=5, labelcolor=TEXT, labelsize=10)
    for spine in axes.spines.values():
        spine.set(color=FAINT, linewidth=0.6)


def _labels(scene: Scene, ticks: np.ndarray, inches: float) -> list[str]:
    """The raw value at each tick; none at one that stands closer to the last than a line of text is high."""
    labels, last = [], -np.inf
    for tick in ticks:
        free = (tick - last) * inches >= _LINE
        labels.append(_tick(scene, float(tick)) if free else "")
        last = tick if free else last
    return labels


def _tick(scene: Scene, fraction: float) -> str:
    """The raw value at a fraction of the bar; at its ends "≥" and "≤" where the map goes on."""
    beyond = fraction == 1 and float(scene.values.max()) > scene.top
    below = fraction == -1 and float(scene.values.min()) < -scene.top
    return f"{'≥ ' if beyond else '≤ ' if below else ''}{three_digits(fraction * scene.top)}"
