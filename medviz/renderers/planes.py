"""`planes`: three orthogonal planes through the map's peak."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np

from medviz.attribution import Attribution
from medviz.hookspecs import hookimpl
from medviz.renderers.annotate import BACKGROUND, FAINT, TEXT, add_axes, new_figure, rasterise, write
from medviz.renderers.colour_bar import draw_colour_bar
from medviz.renderers.map_renderer import MapRenderer, as_plain, describe
from medviz.renderers.orientation import to_mm
from medviz.renderers.panels import GUTTER, Panel, arrange
from medviz.renderers.scene import Scene, millimetres, three_digits
from medviz.rendering import Rendering
from medviz.validators import of_type, whole

_CONTOURS = (0.3, 0.5, 0.7, 0.9)
_TITLE = 1.05  # inches above the panels
_BAR = 1.3  # inches to their right
_EDGE = 0.3
_LEAST_WIDTH = 6.0
_TILTED = 5.0  # degrees
_OPEN = 0.14  # inches of the cross-hair that are left out on each side of the place


def _as_fractions(contour: Any) -> Any:
    if contour is None or contour is False:
        return ()
    if contour is True:
        return _CONTOURS
    fractions = as_plain(contour)
    return fractions if isinstance(fractions, tuple) else (fractions,)


@attrs.frozen(eq=False, kw_only=True)
class Planes(MapRenderer):
    """Three orthogonal planes through the map's peak, with a colour bar of the raw values.

    With an affine the planes are upright, in true proportion, in radiological convention and lettered; an oblique scan
    is cut along its own axes, that are named after the nearest of the patient's. Without an affine nothing is turned
    and no side is named. A 2-D image has one plane.

    Args:
        voxel: where the planes cross, in voxels of the image; None: at the map's largest magnitude.
        crosshair: draw where the planes cross.
        contour: draw contours at these fractions of the last colour's magnitude, in place of the colour wash; True: at
            0.3, 0.5, 0.7 and 0.9.
        dpi: pixels in an inch; the picture is about 12 inches wide.
    """

    voxel: tuple[int, ...] | None = attrs.field(default=None, converter=as_plain)
    crosshair: bool = attrs.field(default=True, validator=of_type(bool))
    contour: Any = attrs.field(default=(), converter=_as_fractions)
    dpi: int = attrs.field(default=120, validator=whole(20))

    @voxel.validator
    def _check_voxel(self, _: Any, value: Any) -> None:
        if value is None:
            return
        if not isinstance(value, tuple) or not all(
            isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value
        ):
            raise ValueError(f"`voxel` holds one index for each spatial axis, whole numbers from 0; got {value!r}.")

    @contour.validator
    def _check_contour(self, _: Any, value: Any) -> None:
        if not all(isinstance(v, int | float) and 0 < v <= 1 for v in value):
            raise ValueError(f"`contour` is true, false or fractions above 0, at most 1; got {value!r}.")

    @hookimpl
    def render(self, attribution: Attribution) -> Rendering:
        """Draw the planes."""
        scene = self.scene(attribution)
        shape = tuple(attribution.image.shape[2:])
        peak = scene.peak()
        at = peak if self.voxel is None else self._place(scene, shape)
        panels, width, height = arrange(scene, (0,) if len(shape) == 2 else (0, 1, 2))
        across = max(_LEAST_WIDTH, width + 2 * _EDGE + (_BAR if scene.top else 0))
        figure = new_figure(across, height + _TITLE + _EDGE, self.dpi, BACKGROUND)
        for panel in panels:
            self._draw(figure, scene, panel, at, attribution)
        if scene.top:
            draw_colour_bar(figure, scene, _EDGE + width + 0.35, _EDGE + GUTTER, height - 3 * GUTTER, self.contour)
        title, top = describe(attribution), height + _TITLE + _EDGE
        write(figure, _EDGE, top - 0.28, title, size=15, weight="bold", va="top")
        write(figure, _EDGE, top - 0.66, _caption(scene, attribution, peak), size=11, color=FAINT, va="top")
        return Rendering(frames=rasterise(figure)[None, ..., :3], title=title, figure=figure, attribution=attribution)

    def _place(self, scene: Scene, shape: tuple[int, ...]) -> tuple[int, int, int]:
        voxel = tuple(int(v) for v in self.voxel or ())
        if len(voxel) != len(shape) or any(v >= n for v, n in zip(voxel, shape, strict=True)):
            raise ValueError(f"`voxel` {voxel} does not lie in the image, whose spatial size is {shape}.")
        return scene.orientation.to_display(voxel, shape)

    def _draw(
        self, figure: Any, scene: Scene, panel: Panel, at: tuple[int, int, int], attribution: Attribution
    ) -> None:
        left, bottom = _EDGE + panel.x, _EDGE + panel.y
        axes = add_axes(figure, left, bottom, panel.width, panel.height, label=f"plane {panel.axis}")
        rows, columns = (scene.shape[i] for i in range(3) if i != panel.axis)
        extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)  # voxel centres lie at whole numbers
        pixels = math.ceil(max(panel.width, panel.height) * self.dpi)
        size = scene.size(panel.axis, pixels, 2 * pixels)
        picture = scene.picture(panel.axis, at[panel.axis], size, wash=not self.contour)
        axes.imshow(picture, extent=extent, origin="upper", aspect="auto", interpolation="antialiased")
        if self.contour:
            _, scaled = scene.slices(panel.axis, [at[panel.axis]], size)
            _draw_contours(axes, scene, scaled[0].numpy(), extent, self.contour)
        if self.crosshair:
            _draw_crosshair(axes, panel, [at[i] for i in range(3) if i != panel.axis], extent)
        axes.set(xlim=extent[:2], ylim=extent[2:])
        _draw_letters(figure, scene, panel, left, bottom)
        heading = _heading(scene, panel.axis, at, attribution)
        write(
            figure, left, bottom + panel.height + GUTTER, heading, size=11, color=FAINT, va="bottom", width=panel.room
        )


def _draw_contours(
    axes: Any, scene: Scene, scaled: np.ndarray, extent: tuple[float, ...], fractions: tuple[float, ...]
) -> None:
    rows, columns = scaled.shape
    if min(rows, columns) < 2:
        return  # a single row of pixels has no contour
    sides = ((extent[0], extent[1], columns), (extent[3], extent[2], rows))
    across, down = (np.linspace(first, last, count + 1) for first, last, count in sides)
    levels = sorted({*fractions, *(-f for f in fractions)} if scene.signed else set(fractions))
    inside = [level for level in levels if scaled.min() < level < scaled.max()]
    if inside:
        colours = scene.colours(np.array(inside))
        middle = [(edges[:-1] + edges[1:]) / 2 for edges in (across, down)]
        axes.contour(*middle, scaled, levels=inside, colors=colours, linewidths=1.6, linestyles="solid")


def _draw_crosshair(axes: Any, panel: Panel, at: list[int], extent: tuple[float, ...]) -> None:
    """Two lines that leave the place itself open."""
    row, column = at
    left, right, bottom, top = extent
    across = _OPEN * (right - left) / panel.width
    down = _OPEN * (bottom - top) / panel.height
    style = {"color": "#7fd4ff", "linewidth": 0.9, "alpha": 0.75}
    axes.hlines([row, row], [left, column + across], [column - across, right], **style)
    axes.vlines([column, column], [top, row + down], [row - down, bottom], **style)


def _draw_letters(figure: Any, scene: Scene, panel: Panel, left: float, bottom: float) -> None:
    down, across = (scene.orientation.letters(i) for i in range(3) if i != panel.axis)
    middle, centre, gap = left + panel.width / 2, bottom + panel.height / 2, GUTTER / 2
    for letter, x, y in (
        (across[0], left - gap, centre),
        (across[1], left + panel.width + gap, centre),
        (down[0], middle, bottom + panel.height + gap),
        (down[1], middle, bottom - gap),
    ):
        if letter:
            write(figure, x, y, letter, size=12, weight="bold", ha="center", va="center", width=GUTTER, color=TEXT)


def _heading(scene: Scene, axis: int, at: tuple[int, int, int], attribution: Attribution) -> str:
    """Name a panel by what is fixed in it: "axial  z = 12.5 mm"."""
    orientation = scene.orientation
    plane = orientation.plane(axis)
    if len(orientation.order) == 2:
        return plane
    shape = tuple(attribution.image.shape[2:])
    image_axis = orientation.image_axis(axis)
    voxel = orientation.to_image(at, shape)
    if attribution.affine is None or orientation.tilt > _TILTED:
        return f"{plane or f'axis {image_axis}'}  slice {voxel[image_axis]} (0 to {shape[image_axis] - 1})"
    world = orientation.world[axis]
    return f"{plane}  {'xyz'[world]} = {millimetres(to_mm(attribution.affine[0], voxel)[world])} mm"


def _caption(scene: Scene, attribution: Attribution, peak: tuple[int, int, int]) -> str:
    if not scene.top:
        return "the map is 0 everywhere"
    voxel = scene.orientation.to_image(peak, tuple(attribution.image.shape[2:]))
    place = f"{'pixel' if len(voxel) == 2 else 'voxel'} ({', '.join(map(str, voxel))})"
    if attribution.affine is not None:
        world = ", ".join(map(millimetres, to_mm(attribution.affine[0], voxel)))
        place = f"({world}) mm RAS  ·  {place}"
    tilt = scene.orientation.tilt
    oblique = f"  ·  oblique by {tilt:.0f}°" if tilt > _TILTED else ""
    return f"peak {three_digits(float(scene.values[peak]))} at {place}{oblique}"
