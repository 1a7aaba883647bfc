"""`blend`: the map laid over the image, slice by slice."""

from __future__ import annotations

from typing import Any

import attrs

from medviz.attribution import Attribution
from medviz.hookspecs import hookimpl
from medviz.renderers.annotate import draw_letters
from medviz.renderers.map_renderer import MapRenderer, as_plain, describe
from medviz.renderers.scene import Scene, frame_places, pick_axis
from medviz.rendering import Rendering
from medviz.validators import number, of_type, whole


@attrs.frozen(eq=False, kw_only=True)
class Blend(MapRenderer):
    """One frame for each slice of the image, with the map laid over it; a 2-D image is one frame.

    With an affine the slices are upright, in radiological convention and lettered.

    Args:
        frame_axis: the spatial axis of the image that becomes the frames, in the image's own order; None: axial slices
            from foot to head with an affine, else the first axis.
        fps: frames per second.
        size: the fewest pixels along a frame's longer side; smaller frames are enlarged by a whole number.
        letters: write R, L, A, P, S, I at the edges, where an affine says which is which.
    """

    frame_axis: int | None = attrs.field(
        default=None, converter=as_plain, validator=attrs.validators.optional(of_type(int))
    )
    fps: float = attrs.field(default=10.0, validator=number(above=0))
    size: int = attrs.field(default=192, validator=whole(1))
    letters: bool = attrs.field(default=True, validator=of_type(bool))

    @hookimpl
    def render(self, attribution: Attribution) -> Rendering:
        """Blend every slice."""
        scene = self.scene(attribution)
        axis = pick_axis(scene.orientation, self.frame_axis)
        places = frame_places(scene, axis, self.frame_axis)
        size = scene.size(axis, self.size)
        frames = scene.pictures(axis, places, size)
        if self.letters:
            frames = draw_letters(frames, edge_letters(scene, axis))
        title = "  ·  ".join(part for part in (describe(attribution), view(scene, axis, places)) if part)
        return Rendering(frames=frames, fps=self.fps, title=title, attribution=attribution)


def edge_letters(scene: Scene, axis: int) -> dict[str, str]:
    """Return the letters at the edges of a slice with `axis` fixed, by the edge's name."""
    down, across = (scene.orientation.letters(i) for i in range(3) if i != axis)
    return {"top": down[0], "bottom": down[1], "left": across[0], "right": across[1]}


def view(scene: Scene, axis: int, places: list[int]) -> str:
    """Return in words what the frames are and in which order: "axial, foot to head"; empty without an affine."""
    words: dict[str, Any] = {"R": "right", "L": "left", "A": "front", "P": "back", "S": "head", "I": "foot"}
    plane, ends = scene.orientation.plane(axis), scene.orientation.letters(axis)
    if not plane or len(places) < 2:
        return plane
    first, last = ends if places[0] < places[-1] else ends[::-1]
    return f"{plane}, {words[first]} to {words[last]}"
