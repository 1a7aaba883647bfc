"""Where the planes of one picture go, in inches."""

from __future__ import annotations

import attrs

from medviz.renderers.scene import Scene

GUTTER = 0.3  # room for a letter around each panel
_HEADING = 0.32
_GAP = 0.25
_ROOM = (3.6, 3.9)  # the largest panel of three, width and height
_ALONE = (6.4, 6.4)
_SMALLEST = 0.5  # a panel whose shorter side would be less than this gets a scale of its own


@attrs.frozen
class Panel:
    """One plane: the display axis that is fixed, its lower left corner, its size, and the room for its heading."""

    axis: int
    x: float
    y: float
    width: float
    height: float
    room: float


def arrange(scene: Scene, axes: tuple[int, ...]) -> tuple[list[Panel], float, float]:
    """Return the panels side by side, all at one scale where that leaves none too small, and the size of the whole.

    Each panel's sides are in the proportion of millimetres.
    """
    extents = [
        [scene.shape[i] * scene.orientation.spacing[i] for i in (2, 1, 0) if i != axis] for axis in axes
    ]  # width, height
    room = _ALONE if len(axes) == 1 else _ROOM
    scales = [min(r / e for r, e in zip(room, extent, strict=True)) for extent in extents]
    common = min(scales)
    if min(min(extent) for extent in extents) * common >= _SMALLEST:
        scales = [common] * len(axes)
    sizes = [(w * s, h * s) for (w, h), s in zip(extents, scales, strict=True)]
    tallest = max(height for _, height in sizes)
    panels, x = [], GUTTER
    for axis, (width, height) in zip(axes, sizes, strict=True):
        cell = max(width, 1.9)  # a heading needs as much
        panels.append(Panel(axis, x + (cell - width) / 2, GUTTER + tallest - height, width, height, cell))
        x += cell + 2 * GUTTER + _GAP
    return panels, x - GUTTER - _GAP, tallest + 2 * GUTTER + _HEADING
