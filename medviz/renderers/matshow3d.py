"""`matshow3d`: the slices of a volume side by side, as the documented function and as a renderer."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np

from medviz.attribution import Attribution
from medviz.hookspecs import hookimpl
from medviz.renderers.annotate import BACKGROUND, FAINT, add_axes, new_figure, rasterise, write
from medviz.renderers.blend import view
from medviz.renderers.map_renderer import MapRenderer, as_plain, describe
from medviz.renderers.scene import Scene, frame_places, pick_axis
from medviz.renderers.sheet import as_frames, as_sheet, limits
from medviz.rendering import Rendering
from medviz.validators import as_python, of_type, whole

_MOST_TILES = 64
_WIDTH = 10.0  # inches of the sheet's longer side
_BAND = 0.9  # inches of the title above it


def matshow3d(
    volume: Any,
    fig: Any = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = (10, 10),
    frames_per_row: int | None = None,
    frame_dim: int = -3,
    channel_dim: int | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    every_n: int = 1,
    interpolation: str = "none",
    show: bool = False,
    fill_value: Any = np.nan,
    margin: int = 1,
    dtype: Any = np.float32,
    **kwargs: Any,
) -> tuple[Any, np.ndarray]:
    """Show a volume as a sheet of slices.

    Source: the text and results of `monai.visualize.matshow3d` 1.6.1. Differs: no pyplot figure is opened unless `show`
    asks for one; lists work with `channel_dim`; colours outside [0, 1] are scaled by `vmin` and `vmax`.

    Args:
        volume: array or tensor `(H, W, D)`, `(C, H, W, D)` or `(B, C, H, W, D)`; or a list of channel-first arrays
            `(C, H[, W, D])`, that are padded with zeros to one size and shown after each other.
        fig: matplotlib figure or axes to draw on; None: a new figure.
        title: title of the figure.
        figsize: its size in inches; None: as it is.
        frames_per_row: slices in a row; None: as many as there are rows.
        frame_dim: the axis of `volume` (of a list's items) that becomes the frames: -1, -2 or -3.
        channel_dim: 0 or 1, the axis that holds 1, 3 or 4 colour channels; None: channels are shown one by one.
        vmin: the value of the first colour; None: the smallest.
        vmax: the value of the last colour; None: the largest.
        every_n: show every n-th slice only.
        interpolation: matplotlib's.
        show: open a window with `matplotlib.pyplot.show`.
        fill_value: the value of the margins and of empty places.
        margin: width of the margin around each slice, in voxels.
        dtype: dtype of the returned sheet.
        **kwargs: for `Axes.matshow`.

    Returns:
        `fig` (the axes, if they were given) and the sheet, `(H', W')` or, with `channel_dim`, `(H', W', C)`.

    Raises:
        TypeError, ValueError: not a volume, or arguments that do not fit it.
    """
    every_n, frames_per_row, margin, frame_dim = map(as_python, (every_n, frames_per_row, margin, frame_dim))
    if not isinstance(every_n, int) or every_n < 1:
        raise ValueError(f"`every_n` is a whole number from 1; got {every_n!r}.")
    frames = as_frames(volume, frame_dim, channel_dim)
    vmin, vmax = limits(frames, vmin, vmax)
    sheet = as_sheet(frames[::every_n], frames_per_row, margin, fill_value, dtype)
    axes, fig = _axes(fig, show)
    shown = sheet if channel_dim is None else _colours(sheet, vmin, vmax)
    axes.matshow(shown, vmin=vmin, vmax=vmax, interpolation=interpolation, **kwargs)
    axes.axis("off")
    if title is not None:
        axes.set_title(title)
    if figsize is not None and hasattr(fig, "set_size_inches"):
        fig.set_size_inches(figsize)
    if show:
        from matplotlib import pyplot

        pyplot.show()
    return fig, sheet


def _axes(fig: Any, show: bool) -> tuple[Any, Any]:
    from matplotlib.axes import Axes

    if isinstance(fig, Axes):
        return fig, fig
    if fig is None and show:
        from matplotlib import pyplot

        fig = pyplot.figure(layout="tight")
    elif fig is None:
        fig = new_figure(10, 10, facecolor="white")
        fig.set_layout_engine("tight")
    if not hasattr(fig, "add_subplot"):
        raise TypeError(f"`fig` is a {type(fig).__name__}; expected a matplotlib figure, axes or None.")
    return (fig.axes[0] if fig.axes else fig.add_subplot(111)), fig


def _colours(sheet: np.ndarray, vmin: float, vmax: float) -> np.ndarray:
    """What matplotlib draws without complaint: colours in [0, 1], transparent where there are none."""
    if sheet.shape[-1] == 1:
        return sheet[..., 0]
    colours = sheet.astype(np.float64)
    if vmin < 0 or vmax > 1:
        colours = (colours - vmin) / (vmax - vmin or 1)
    opacity = colours[..., 3:] if colours.shape[-1] == 4 else np.ones_like(colours[..., :1])
    opacity = np.where(np.isnan(colours).any(-1, keepdims=True), 0, opacity)
    drawn: np.ndarray = np.nan_to_num(np.concatenate([colours[..., :3], opacity], -1)).clip(0, 1)
    return drawn


@attrs.frozen(eq=False, kw_only=True)
class Matshow3d(MapRenderer):
    """One sheet of the image's slices with the map laid over them, upright and in square pixels.

    Args:
        frame_axis: the spatial axis of the image that is cut into slices, in the image's own order; None: axial slices
            from foot to head with an affine, else the first axis.
        every_n: show every n-th slice; None: as many as give at most 64.
        frames_per_row: slices in a row; None: so that the sheet is about as high as wide.
        dpi: pixels in an inch; the sheet is about 10 inches wide.
    """

    frame_axis: int | None = attrs.field(
        default=None, converter=as_plain, validator=attrs.validators.optional(of_type(int))
    )
    every_n: int | None = attrs.field(default=None, validator=attrs.validators.optional(whole(1)))
    frames_per_row: int | None = attrs.field(default=None, validator=attrs.validators.optional(whole(1)))
    dpi: int = attrs.field(default=120, validator=whole(20))

    @hookimpl
    def render(self, attribution: Attribution) -> Rendering:
        """Blend the slices and lay them out."""
        scene = self.scene(attribution)
        axis = pick_axis(scene.orientation, self.frame_axis)
        places = frame_places(scene, axis, self.frame_axis)
        step = self.every_n or math.ceil(len(places) / _MOST_TILES)
        chosen = places[places.index(scene.peak()[axis]) % step :: step]  # what matters most is not left out
        tiles = self._tiles(scene, axis, chosen)
        title = describe(attribution)
        figure = self._draw(tiles, title, _caption(scene, axis, places, chosen))
        return Rendering(frames=rasterise(figure)[None, ..., :3], title=title, figure=figure, attribution=attribution)

    def _tiles(self, scene: Scene, axis: int, places: list[int]) -> np.ndarray:  # (T, h, w, 3)
        height, width = scene.size(axis)
        columns = self._columns(len(places), height, width)
        pixels = math.ceil(_WIDTH * self.dpi / columns)
        size = scene.size(axis, pixels, 2 * pixels)
        return scene.pictures(axis, places, size)

    def _columns(self, count: int, height: int, width: int) -> int:
        return min(count, self.frames_per_row or max(1, round(math.sqrt(count * height / width))))

    def _draw(self, tiles: np.ndarray, title: str, caption: str) -> Any:
        count, height, width, _ = tiles.shape
        columns = self._columns(count, height, width)
        aspect = math.ceil(count / columns) * height / (columns * width)
        across, down = (_WIDTH, _WIDTH * aspect) if aspect <= 1 else (max(_WIDTH / aspect, 4), _WIDTH)
        figure = new_figure(across + 0.4, down + _BAND + 0.2, self.dpi, BACKGROUND)
        full_height = down + _BAND + 0.2
        axes = add_axes(figure, 0.2, 0.2, across, down)
        opaque = np.full((count, 1, height, width), 255, np.uint8)  # empty places and margins are not
        shown = np.concatenate([np.moveaxis(tiles, -1, 1), opaque], 1)
        sheet = as_sheet(shown, columns, margin=max(1, round(0.01 * width)), fill_value=0, dtype=np.uint8)
        axes.matshow(sheet, interpolation="antialiased")
        axes.set(xticks=[], yticks=[])  # hidden ones are measured by matplotlib 3.8, in LaTeX with `text.usetex`
        axes.set_axis_off()
        write(figure, 0.2, full_height - 0.2, title, size=13, weight="bold", va="top")
        write(figure, 0.2, full_height - 0.52, caption, size=10, color=FAINT, va="top")
        return figure


def _caption(scene: Scene, axis: int, places: list[int], chosen: list[int]) -> str:
    count = f"{len(chosen)} slices" if len(chosen) == len(places) else f"{len(chosen)} of {len(places)} slices"
    side = scene.orientation.letters(1 if axis == 2 else 2)[0]
    parts = (
        view(scene, axis, places),
        f"{side} on the left" if side else "",
        count if len(places) > 1 else "",
        scene.span(),
    )
    return "  ·  ".join(part for part in parts if part)
