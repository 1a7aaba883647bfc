"""The raw map in the scan's own space."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np

from medviz.attribution import Attribution
from medviz.files import atomic
from medviz.hookspecs import hookimpl
from medviz.image import spacing_of
from medviz.sinks.file_sink import FileSink


@attrs.frozen(eq=False)
class Nifti(FileSink):
    """Write the raw values, on the image's grid and with its affine, as NIfTI for any viewer.

    Spatial axes come first, K maps of each channel become a fourth axis, and a 2-D image gets a third axis of length 1.
    `cal_min` and `cal_max` tell viewers what to show: 0 to the largest value, or both signs alike for a signed map.
    Without an affine the file claims no patient space (both form codes are 0), else both forms are that affine, which
    a scan's sform is where it has one. Where the affine holds a shear, which a quaternion cannot, only the sform is
    set.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".nii", ".nii.gz")

    @hookimpl
    def write(self, attribution: Attribution, tag: str | None, step: int) -> Path:
        """Write one NIfTI file."""
        path = self.destination(attribution, tag, step)
        image = _as_nifti(attribution)
        with atomic(path, self.overwrite) as part:
            image.to_filename(part)
        return path


def _as_nifti(attribution: Attribution) -> Any:
    import nibabel as nib

    values = np.moveaxis(attribution.values[0].detach().cpu().numpy(), 0, -1)  # (*S, K)
    values = values[:, :, None] if attribution.ndim == 2 else values
    values = values[..., 0] if values.shape[-1] == 1 else values
    kind: Any = nib.Nifti1Image if max(values.shape) < 2**15 else nib.Nifti2Image
    affine = None if attribution.affine is None else attribution.affine[0]
    image = kind(values, np.eye(4) if affine is None else affine)
    _place(image, affine)
    _describe(image.header, attribution)
    return image


def _place(image: Any, affine: np.ndarray | None) -> None:
    if affine is None:
        image.set_sform(np.eye(4), code="unknown")
        image.set_qform(np.eye(4), code="unknown")
        return
    image.header.set_xyzt_units(xyz="mm")
    image.set_sform(affine, code="aligned")
    image.set_qform(affine, code="aligned")
    if np.abs(image.get_qform() - affine)[:3, :3].max() > 1e-3 * min(spacing_of(affine, 3)):
        image.set_qform(affine, code="unknown")


def _describe(header: Any, attribution: Attribution) -> None:
    text = f"medviz {attribution.method} {attribution.target}".strip()
    header["descrip"] = text.encode("ascii", "replace")[:79]
    top = float(attribution.values.abs().max())
    header["cal_min"], header["cal_max"] = -top if attribution.signed else 0, top
