"""Where the planes of one picture go, in inches."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from medviz.renderers.scene import Scene

GUTTER = 0.3  # room for a letter around each panel
_HEADING = 0.32
_GAP = 0.25
_ROOM = (10.6, 4.6)  # inches that three planes share
_ALONE = (7.0, 7.2)
_LEAST_CELL = 1.9  # a heading needs as much
_SMALLEST = 0.5  # a panel whose shorter side would be less than this gets a scale of its own

_Columns = Sequence[Sequence[int]]


@attrs.frozen
class Panel:
    """One plane: the display axis that is fixed, its lower left corner, its size, and the room for its heading."""

    axis: int
    x: float
    y: float
    width: float
    height: float
    room: float


def arrange(scene: Scene, axes: Sequence[int]) -> tuple[list[Panel], float, float]:
    """Return the panels and the size of the whole, each panel's sides in the proportion of millimetres.

    Three planes stand side by side, or, where that shows them larger, the second above the third. All have one scale,
    unless it left one too small.
    """
    extents = {axis: _extent(scene, axis) for axis in axes}
    layouts: list[_Columns] = [[[axis] for axis in axes]]
    if len(axes) == 3:
        layouts.append([axes[:1], axes[1:]])
    room = _ALONE if len(axes) == 1 else _ROOM
    scale, best = max(((_scale(layout, extents, room), -i) for i, layout in enumerate(layouts)))
    columns = layouts[-best]
    if scale * min(min(extent) for extent in extents.values()) < _SMALLEST:
        columns = layouts[0]
        cell = ((room[0] - _GAP * (len(axes) - 1)) / len(axes) - 2 * GUTTER, room[1] - 2 * GUTTER - _HEADING)
        scales = {axis: min(cell[0] / w, cell[1] / h) for axis, (w, h) in extents.items()}
    else:
        scales = dict.fromkeys(axes, scale)
    sizes = {axis: (w * scales[axis], h * scales[axis]) for axis, (w, h) in extents.items()}
    return _place(columns, sizes)


def _extent(scene: Scene, axis: int) -> tuple[float, float]:
    width, height = (scene.shape[i] * scene.orientation.spacing[i] for i in (2, 1, 0) if i != axis)
    return width, height


def _scale(columns: _Columns, extents: dict[int, tuple[float, float]], room: tuple[float, float]) -> float:
    """The largest scale at which all panels fit into the room."""
    across = room[0] - 2 * GUTTER * len(columns) - _GAP * (len(columns) - 1)
    widths = sum(max(extents[axis][0] for axis in column) for column in columns)
    downs = (
        (room[1] - (2 * GUTTER + _HEADING) * len(column)) / sum(extents[axis][1] for axis in column)
        for column in columns
    )
    return min(across / widths, *downs)


def _place(columns: _Columns, sizes: dict[int, tuple[float, float]]) -> tuple[list[Panel], float, float]:
    around = 2 * GUTTER + _HEADING
    total = max(sum(sizes[axis][1] + around for axis in column) for column in columns)
    panels, x = [], GUTTER
    for column in columns:
        cell = max(_LEAST_CELL, *(sizes[axis][0] for axis in column))
        top = total
        for axis in column:
            width, height = sizes[axis]
            panels.append(Panel(axis, x, top - _HEADING - GUTTER - height, width, height, cell))
            top -= height + around
        x += cell + 2 * GUTTER + _GAP
    return panels, x - GUTTER - _GAP, total
