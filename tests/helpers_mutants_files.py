"""One right renderer and sink, and for each check one that is wrong in just that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import attrs
import nibabel as nib
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


class WideAsHigh(RightRenderer):
    """check_aspect, check_orientation: rows become columns, with the right proportion."""

    @hookimpl
    def render(self, attribution: medviz.Attribution) -> Rendering:
        drawn = super().render(attribution)
        return attrs.evolve(drawn, frames=drawn.frames.swapaxes(1, 2))


class MirroredPicture(RightRenderer):
    """check_orientation."""

    @hookimpl
    def render(self, attribution: medviz.Attribution) -> Rendering:
        drawn = super().render(attribution)
        return attrs.evolve(drawn, frames=drawn.frames[:, :, ::-1])


class VolumesUpsideDown(RightRenderer):
    """check_orientation: in 3-D only."""

    @hookimpl
    def render(self, attribution: medviz.Attribution) -> Rendering:
        drawn = super().render(attribution)
        return attrs.evolve(drawn, frames=drawn.frames[:, ::-1] if attribution.ndim == 3 else drawn.frames)


class Rolled(RightRenderer):
    """check_orientation: the map lies beside what it explains."""

    @hookimpl
    def render(self, attribution: medviz.Attribution) -> Rendering:
        drawn = super().render(attribution)
        return attrs.evolve(drawn, frames=np.roll(drawn.frames, 3, 2))


class GarbledByAnAffine(RightRenderer):
    """check_orientation: a part of the picture is lost where there is an affine."""

    @hookimpl
    def render(self, attribution: medviz.Attribution) -> Rendering:
        drawn = super().render(attribution)
        return drawn if attribution.affine is None else attrs.evolve(drawn, frames=drawn.frames[:, 2:])


class UprightVolumes(RightRenderer):
    """Right, too: with an affine an axial movie, upright, that a projection along an axis could be as well."""

    flips: ClassVar[bool] = True

    @hookimpl
    def render(self, attribution: medviz.Attribution) -> Rendering:
        if attribution.ndim == 3 and attribution.affine is not None:
            x, y, _ = np.diag(attribution.affine[0])[:3] > 0
            axes = [i + 2 for i, along in enumerate((x and self.flips, y)) if along]
            turned = attribution.values.flip(axes).permute(0, 1, 4, 3, 2)
            attribution = attrs.evolve(attribution, values=turned, image=attribution.image.permute(0, 1, 4, 3, 2))
        return super().render(attribution)

    def repeats(self, attribution: medviz.Attribution) -> list[int]:
        return [1] * attribution.ndim if attribution.ndim == 3 else super().repeats(attribution)


class OneSideForBoth(UprightVolumes):
    """check_orientation: where left and right are swapped in the affine, the picture stays as it was."""

    flips = False


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


@attrs.frozen(eq=False)
class RightScan(FileSink):
    """The values as NIfTI, in the order of a scan that others write: the axes as near to the patient's as can be."""

    suffixes: ClassVar[tuple[str, ...]] = (".nii", ".nii.gz")

    @hookimpl
    def write(self, attribution: medviz.Attribution, tag: str | None, step: int) -> Path:
        path = self.destination(attribution, tag, step)
        values = np.atleast_3d(attribution.values[0, 0].numpy())
        affine = np.eye(4) if attribution.affine is None else attribution.affine[0]
        with medviz.atomic(path, self.overwrite) as part:
            self.made(values, affine).to_filename(part)
        return path

    def made(self, values: np.ndarray, affine: np.ndarray) -> Any:
        return nib.as_closest_canonical(nib.Nifti1Image(values, affine))


class Unplaced(RightScan):
    """check_geometry: at the origin, in voxels."""

    def made(self, values: np.ndarray, affine: np.ndarray) -> Any:
        return nib.Nifti1Image(values, np.eye(4))


class TransposedScan(RightScan):
    """check_geometry: with the affine of other axes."""

    def made(self, values: np.ndarray, affine: np.ndarray) -> Any:
        return nib.Nifti1Image(values.T.copy(), affine)


class NextVoxel(RightScan):
    """check_geometry: voxels are counted from 1."""

    def made(self, values: np.ndarray, affine: np.ndarray) -> Any:
        moved = affine.copy()
        moved[:3, 3] += affine[:3, :3].sum(1)
        return nib.Nifti1Image(values, moved)


class OtherConvention(RightScan):
    """check_geometry: left and front are positive, as in DICOM."""

    def made(self, values: np.ndarray, affine: np.ndarray) -> Any:
        return nib.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


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
    "check_aspect": [SquareVoxels(), WideAsHigh()],
    "check_empty_map": [Stretched()],
    "check_signed_map": [Magnitude()],
    "check_shows_the_map": [ImageOnly()],
    "check_nan_refused": [HidesNan()],
    "check_leaves_nothing": [ScalesInPlace(), LeavesAFigure()],
    "check_batch": [FirstOnly()],
    "check_orientation": [
        WideAsHigh(),
        MirroredPicture(),
        VolumesUpsideDown(),
        Rolled(),
        GarbledByAnAffine(),
        OneSideForBoth(),
    ],
}
SINKS: dict[str, list[Sink]] = {
    "check_read_back": [Same("x.json"), NotJson("x.json")],
    "check_renderings_and_maps": [DrawnOnly("x.json")],
    "check_missing_folders": [NoFolders("x.json")],
    "check_existing_file": [Careless("x.json"), Mumbles("x.json")],
    "check_atomic": [Straight("x.json"), LeavesParts("x.json")],
    "check_several_images": [Careless("x.json"), Mumbles("x.json")],
    "check_input_untouched": [ZerosAfterwards("x.json")],
    "check_geometry": [Unplaced("x.nii"), TransposedScan("x.nii.gz"), NextVoxel("x.nii"), OtherConvention("x.nii")],
}
