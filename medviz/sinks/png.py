"""Pictures as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import attrs

from medviz.attribution import Attribution
from medviz.files import atomic
from medviz.hookspecs import hookimpl
from medviz.rendering import Rendering
from medviz.sinks.encoding import png_bytes
from medviz.sinks.file_sink import PictureSink


@attrs.frozen(eq=False)
class Png(PictureSink):
    """Write the picture, or all frames side by side, as a PNG; pixels are kept exactly."""

    suffixes: ClassVar[tuple[str, ...]] = (".png",)

    @hookimpl
    def write(self, rendering: Rendering, attribution: Attribution | None, tag: str | None, step: int) -> Path:
        """Write one PNG."""
        path = self.destination(attribution, tag, step)
        with atomic(path, self.overwrite) as part:
            part.write_bytes(png_bytes(rendering.montage()))
        return path
