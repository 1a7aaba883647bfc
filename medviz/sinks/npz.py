"""Everything that is known, for another program or another day."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import attrs

from medviz.attribution import Attribution
from medviz.hookspecs import hookimpl
from medviz.sinks.file_sink import FileSink


@attrs.frozen(eq=False)
class Npz(FileSink):
    """Write the whole attribution, raw values and provenance, as a compressed `.npz` for `Attribution.load`."""

    suffixes: ClassVar[tuple[str, ...]] = (".npz",)

    @hookimpl
    def write(self, attribution: Attribution, tag: str | None, step: int) -> Path:
        """Write one `.npz`."""
        return attribution.save(self.destination(attribution, tag, step), overwrite=self.overwrite)
