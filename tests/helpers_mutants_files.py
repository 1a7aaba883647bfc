"""One right renderer and sink, and for each check one that is wrong in just that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import torch

import medviz
from medviz import FileSink, Renderer, Rendering, Sink, hookimpl


@attrs.frozen(eq=False)
class RightRenderer(Renderer):
    """Grey, zero in the middle, slices along the first axis, voxels repeated so that pixels are square."""

    @hookimpl
    def render(self, attribution: medviz.Attribution) -> Rendering:
        self.check(attribution)
        values = self.scaled(attribution)
        slices = (values[None] if values.ndim == 2 else values).numpy()
        for axis, times in enumerate(self.repeats(attribution)[-2:], start=1):
            slices = slices.repeat(times, axis)
        grey = (slices * 127 + 128).astype(np.uint8)
        return Rendering(np.stack([grey] * 3, -1), title="a map", attribution=attribution)

    def check(self, attribution: medviz.Attribution) -> None:
        if not torch.isfinite(attribution.values).all():
            raise ValueError("`values` hold NaN or infinity; nothing is drawn.")

    def scaled(self, attribution: medviz.Attribution) -> torch.Tensor:
        return attribution.normalized()[0, 0]

    def repeats(self, attribution: medviz.Attribution) -> list[int]:
        spacing = attribution.spacing[0] if attribution.spacing else (1.0,) * attribution.ndim
        return [max(1, round(length / min(spacing))) for length in spacing]


class Untitled(RightRenderer):
    """check_frames."""

    @hookimpl
    def render(self, attribution: medviz.Attribution) -> Rendering:
        return attrs.evolve(super().render(attribution), title="")


class SquareVoxels(RightRenderer):
    """check_aspect."""

    def repeats(self, attribution: medviz.Attribution) -> list[int]:
        return [1] * attribution.ndim


class Stretched(RightRenderer):
    """check_empty_map: the smallest value becomes 0, the largest 1."""

    def scaled(self, attribution: medviz.Attribution) -> torch.Tensor:
        values = attribution.values[0, 0]
        return (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)


class Magnitude(RightRenderer):
    """check_signed_map."""

    def scaled(self, attribution: medviz.Attribution) -> torch.Tensor:
        return super().scaled(attribution).abs()


class ImageOnly(RightRenderer):
    """check_shows_the_map."""

    def scaled(self, attribution: medviz.Attribution) -> torch.Tensor:
        return attribution.image[0, 0] / attribution.image.abs().max()


class HidesNan(RightRenderer):
    """check_nan_refused."""

    def check(self, attribution: medviz.Attribution) -> None:
        """Nothing is refused."""

    def scaled(self, attribution: medviz.Attribution) -> torch.Tensor:
        return super().scaled(attribution).nan_to_num(0, 0, 0)


class ScalesInPlace(RightRenderer):
    """check_leaves_nothing: the attribution."""

    def scaled(self, attribution: medviz.Attribution) -> torch.Tensor:
        attribution.values.div_(attribution.values.abs().max().clamp(min=1e-12))
        return attribution.values[0, 0]


class LeavesAFigure(RightRenderer):
    """check_leaves_nothing: a figure."""

    def scaled(self, attribution: medviz.Attribution) -> torch.Tensor:
        import matplotlib.pyplot as plt

        plt.switch_backend("agg")
        plt.figure()
        return super().scaled(attribution)


class FirstOnly(RightRenderer):
    """check_batch."""

    def __call__(self, attribution: medviz.Attribution, **options: Any) -> Any:
        return super().__call__(attribution[0], **options)


@attrs.frozen(eq=False)
class RightSink(FileSink):
    """The values as JSON."""

    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    @hookimpl
    def write(self, attribution: medviz.Attribution, tag: str | None, step: int) -> Path:
        path = self.destination(attribution, tag, step)
        with medviz.atomic(path, self.overwrite) as part:
            part.write_text(self.text(attribution))
        return path

    def text(self, attribution: medviz.Attribution) -> str:
        return json.dumps(attribution.values.tolist())


class Same(RightSink):
    """check_read_back: always the same content."""

    def text(self, attribution: medviz.Attribution) -> str:
        return "[]"


class NotJson(RightSink):
    """check_read_back: not what the ending says."""

    def text(self, attribution: medviz.Attribution) -> str:
        return str(attribution.values)


class DrawnOnly(RightSink):
    """check_renderings_and_maps."""

    def __call__(self, x: Any, **options: Any) -> Any:
        if isinstance(x, medviz.Attribution):
            raise TypeError("draw it first.")
        return super().__call__(x, **options)


class NoFolders(RightSink):
    """check_missing_folders."""

    @hookimpl
    def write(self, attribution: medviz.Attribution, tag: str | None, step: int) -> Path:
        path = self.destination(attribution, tag, step)
        path.write_text(self.text(attribution))
        return path


@attrs.frozen(eq=False)
class Careless(Sink):
    """check_existing_file, check_several_images: one path, and nothing that looks whether it is free."""

    path: Path = attrs.field(converter=Path)

    @hookimpl
    def write(self, attribution: medviz.Attribution) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        try:
            part.write_text(json.dumps(attribution.values.tolist()))
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)
        return self.path


class Mumbles(Careless):
    """check_existing_file, check_several_images: the same, and says where by a text."""

    @hookimpl
    def write(self, attribution: medviz.Attribution) -> str:
        return str(super().write(attribution))


class Straight(RightSink):
    """check_atomic: writes to its destination."""

    @hookimpl
    def write(self, attribution: medviz.Attribution, tag: str | None, step: int) -> Path:
        path = self.destination(attribution, tag, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text(attribution))
        return path


class LeavesParts(RightSink):
    """check_atomic: leaves its temporary file."""

    @hookimpl
    def write(self, attribution: medviz.Attribution, tag: str | None, step: int) -> Path:
        path = self.destination(attribution, tag, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(self.text(attribution))
        part.replace(path)
        return path


class ZerosAfterwards(RightSink):
    """check_input_untouched."""

    def text(self, attribution: medviz.Attribution) -> str:
        text = super().text(attribution)
        attribution.values.zero_()
        return text


RENDERERS: dict[str, list[Renderer]] = {
    "check_frames": [Untitled()],
    "check_aspect": [SquareVoxels()],
    "check_empty_map": [Stretched()],
    "check_signed_map": [Magnitude()],
    "check_shows_the_map": [ImageOnly()],
    "check_nan_refused": [HidesNan()],
    "check_leaves_nothing": [ScalesInPlace(), LeavesAFigure()],
    "check_batch": [FirstOnly()],
}
SINKS: dict[str, list[Sink]] = {
    "check_read_back": [Same("x.json"), NotJson("x.json")],
    "check_renderings_and_maps": [DrawnOnly("x.json")],
    "check_missing_folders": [NoFolders("x.json")],
    "check_existing_file": [Careless("x.json"), Mumbles("x.json")],
    "check_atomic": [Straight("x.json"), LeavesParts("x.json")],
    "check_several_images": [Careless("x.json"), Mumbles("x.json")],
    "check_input_untouched": [ZerosAfterwards("x.json")],
}
