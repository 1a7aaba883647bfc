"""Pictures of the gallery: one slice of a map at a given height, rows of them, and the two colour bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image as Picture

from medviz import Attribution, Rendering, hookimpl
from medviz.renderers.annotate import BACKGROUND, FAINT, TEXT, add_axes, draw_letters, new_figure, rasterise
from medviz.renderers.blend import edge_letters
from medviz.renderers.map_renderer import SIGNED_CMAP, UNSIGNED_CMAP, MapRenderer, as_plain
from medviz.renderers.scene import Scene, to_uint8
from medviz.sinks.palette import shared_palette

HEIGHT = 160
_GAP = 6
_HEADING = 22
_DPI = 100
_TOP = "99th percentile"


@attrs.frozen(eq=False, kw_only=True)
class Slice(MapRenderer):
    """One axial slice through `voxel`, or a 2-D image, `HEIGHT` pixels high, over a grey backdrop.

    Args:
        voxel: in the image's own axes; None: the first slice.
        wash: lay the map over the image.
        outline: `(*S)` bool, drawn as a line; None: nothing.
    """

    voxel: tuple[int, ...] | None = attrs.field(default=None, converter=as_plain)
    wash: bool = True
    outline: Any = None

    @hookimpl
    def render(self, attribution: Attribution) -> Rendering:
        """Draw the slice."""
        grey = attrs.evolve(attribution, image=attribution.image.mean(1, keepdim=True))
        scene = self.scene(grey)
        at = 0 if self.voxel is None else self._place(scene, tuple(attribution.image.shape[2:]))
        rows, columns = scene.size(0, 1)
        size = (HEIGHT, round(columns * HEIGHT / rows))
        frames = scene.picture(0, at, size, wash=self.wash)[None].copy()
        if self.outline is not None:
            inside = scene.orientation.apply(torch.as_tensor(self.outline)[None].float())[0]
            frames[0][_border(_resized(inside[at].numpy() > 0.5, size))] = (90, 220, 120)
        return Rendering(frames=draw_letters(frames, edge_letters(scene, 0)), attribution=attribution)

    def _place(self, scene: Scene, shape: tuple[int, ...]) -> int:
        return scene.orientation.to_display(tuple(self.voxel or ()), shape)[0]


def row(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Return pictures of one height `(H, w, 3)` side by side on the renderers' dark ground, each under its title."""
    ground = _rgb(BACKGROUND)
    width = sum(picture.shape[1] for picture in pictures) + _GAP * (len(pictures) + 1)
    height = pictures[0].shape[0]
    sheet = np.full((_HEADING + height + _GAP, width, 3), ground, np.uint8)
    figure = new_figure(width / _DPI, _HEADING / _DPI, _DPI, BACKGROUND)
    x = _GAP
    for picture, title in zip(pictures, titles, strict=True):
        sheet[_HEADING : _HEADING + height, x : x + picture.shape[1]] = picture
        figure.text((x + 1) / width, 0.42, title, size=8.5, color=TEXT, va="center", parse_math=False)
        x += picture.shape[1] + _GAP
    sheet[:_HEADING] = rasterise(figure)[:_HEADING, :width, :3]
    return sheet


def colour_bars() -> np.ndarray:
    """Return the two colour bars that all rows share, as the maps look on a dark image."""
    figure = new_figure(7.6, 0.95, _DPI, BACKGROUND)
    bars = (
        (0.35, 3.0, False, UNSIGNED_CMAP, ("0", "½", _TOP), "unsigned: high is important"),
        (
            4.15,
            3.0,
            True,
            SIGNED_CMAP,
            (f"\N{MINUS SIGN} {_TOP}", "0", _TOP),
            "signed: against, and for",
        ),
    )
    for x, width, signed, cmap, ticks, title in bars:
        scaled = torch.linspace(-1 if signed else 0, 1, 600)[None]
        axes = add_axes(figure, x, 0.38, width, 0.2, label=title)
        scene = Scene(*[torch.zeros(1, 1, 1, 1)] * 3, 1.0, signed, cmap, 0.75, None)
        axes.imshow(to_uint8(scene.wash(torch.full((1, 1, 600), 0.07), scaled)), aspect="auto", extent=(0, 1, 0, 1))
        for place, label, side in zip((0, 0.5, 1), ticks, ("left", "center", "right"), strict=True):
            axes.text(place, -0.25, label, size=8, color=FAINT, ha=side, va="top", transform=axes.transAxes)
        axes.text(0, 1.2, title, size=8.5, color=TEXT, ha="left", va="bottom", transform=axes.transAxes)
    return rasterise(figure)[..., :3]


def save(picture: np.ndarray, path: Path) -> None:
    """Write a picture `(H, W, 3)` uint8 as a small PNG of at most 256 colours."""
    palette, indices = shared_palette(picture[None])
    flat = Picture.fromarray(indices[0], "P")
    flat.putpalette(palette.tobytes())
    flat.save(path, optimize=True)


def _border(inside: np.ndarray) -> np.ndarray:
    """The pixels just outside of a region, one wide."""
    grown = inside.copy()
    for axis in (0, 1):
        for step in (1, -1):
            moved = np.roll(inside, step, axis)
            edge = [slice(None)] * 2
            edge[axis] = slice(0, 1) if step == 1 else slice(-1, None)
            moved[tuple(edge)] = False
            grown |= moved
    border: np.ndarray = grown & ~inside
    return border


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    smooth = Picture.fromarray((mask * 255).astype(np.uint8)).resize(size[::-1], Picture.Resampling.BICUBIC)
    large: np.ndarray = np.asarray(smooth) > 127
    return large


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
