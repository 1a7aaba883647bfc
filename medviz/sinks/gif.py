"""Movies as GIF."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import attrs

from medviz import registry
from medviz.attribution import Attribution
from medviz.files import atomic
from medviz.hookspecs import Renderer, hookimpl
from medviz.rendering import Rendering
from medviz.sinks.encoding import gif_bytes
from medviz.sinks.file_sink import PictureSink


@attrs.frozen(eq=False)
class Gif(PictureSink):
    """Write the frames as a GIF in colour that loops for ever, at the rendering's frame rate.

    All frames share one palette of 256 colours, without dithering: grey stays grey, and no colour flickers from frame
    to frame. Every frame is kept, equal ones too. GIF counts in 1/100 s; 50 frames per second are the most.

    Args:
        renderer: draws an attribution that comes undrawn; the default makes a movie through the volume.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".gif",)

    renderer: Renderer = registry.field(kind="renderers", default="medviz-xai/blend", kw_only=True)

    @hookimpl
    def write(self, rendering: Rendering, attribution: Attribution | None, tag: str | None, step: int) -> Path:
        """Write one GIF."""
        path = self.destination(attribution, tag, step)
        with atomic(path, self.overwrite) as part:
            part.write_bytes(gif_bytes(rendering.frames, rendering.fps))
        return path
