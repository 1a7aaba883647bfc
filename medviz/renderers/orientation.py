"""Where is up? From the axes of an image to the axes of a picture.

A picture is cut from a volume of three display axes. With an affine they run head to foot, front to back, and from
the patient's right to the left; so, whichever axis is fixed, the first of the other two runs down the picture and the
second across it, and the picture is upright and in radiological convention:

    axis 0 fixed: axial      rows front to back    columns right to left
    axis 1 fixed: coronal    rows head to foot     columns right to left
    axis 2 fixed: sagittal   rows head to foot     columns front to back

Without an affine the display axes are the image's own, and nothing is claimed about left and right.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from torch import Tensor

from medviz.image import spacing_of

_LETTERS = (("R", "L"), ("A", "P"), ("S", "I"))
_LONGEST = 2048
_PLANES = ("sagittal", "coronal", "axial")


@attrs.frozen
class Orientation:
    """How the axes of one image become the three display axes; a 2-D image gets a first one of one voxel.

    Args:
        order: the image's axis of each display axis.
        flips: whether the display axis runs against the image's.
        spacing: the step along each display axis, in mm (all 1 without an affine).
        world: the patient's axis that each display axis is nearest to (0: left–right, 1: front–back, 2: foot–head), or
            empty without an affine.
        tilt: the largest angle in degrees between a voxel axis and the patient's axis that it stands for.
    """

    order: tuple[int, ...]
    flips: tuple[bool, ...]
    spacing: tuple[float, ...]
    world: tuple[int, ...] = ()
    tilt: float = 0.0

    @property
    def known(self) -> bool:
        """Whether the place of the image in the patient is known."""
        return bool(self.world)

    def letters(self, display_axis: int) -> tuple[str, str]:
        """Return the letters at the start and the end of a display axis; empty where nothing is known."""
        position = display_axis - (3 - len(self.order))
        return _LETTERS[self.world[position]] if self.known and position >= 0 else ("", "")

    def plane(self, display_axis: int) -> str:
        """Return the name of the plane with this display axis fixed; empty where nothing is known."""
        if not self.known:
            return ""
        kept = {w for i, w in enumerate(self.world) if i != display_axis - (3 - len(self.order))}
        return _PLANES[({0, 1, 2} - kept).pop()]

    def image_axis(self, display_axis: int) -> int:
        """Return the axis of the image that a display axis is."""
        return self.order[display_axis - (3 - len(self.order))]

    def display_axis(self, image_axis: int) -> int:
        """Return the display axis that an axis of the image became."""
        return self.order.index(image_axis) + 3 - len(self.order)

    def apply(self, x: Tensor) -> Tensor:
        """Return `(C, *S)` on the display axes, `(C, D, H, W)`."""
        x = x.permute(0, *(axis + 1 for axis in self.order))
        x = x.flip([i + 1 for i, flip in enumerate(self.flips) if flip])
        return x[:, None] if len(self.order) == 2 else x

    def to_display(self, voxel: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return where the image's `voxel` lies on the display axes; `shape` is the image's."""
        moved = [
            shape[axis] - 1 - voxel[axis] if flip else voxel[axis]
            for axis, flip in zip(self.order, self.flips, strict=True)
        ]
        first, second, third = [0] * (3 - len(moved)) + moved
        return first, second, third

    def to_image(self, place: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the image's voxel at a `place` on the display axes; `shape` is the image's."""
        voxel = [0] * len(self.order)
        for axis, flip, at in zip(self.order, self.flips, place[3 - len(self.order) :], strict=True):
            voxel[axis] = shape[axis] - 1 - at if flip else at
        return tuple(voxel)


def orient(affine: np.ndarray | None, ndim: int) -> Orientation:
    """Return the nearest flip and permutation of axes that sets an image of `ndim` axes upright.

    Args:
        affine: (4, 4), from voxel indices to RAS+ millimetres; None: the axes stay as they are.
        ndim: 2 or 3.
    """
    if ndim not in (2, 3):
        raise ValueError(f"pictures are drawn of 2-D and 3-D images; this one has {ndim} spatial axes.")
    if affine is None:
        return Orientation(tuple(range(ndim)), (False,) * ndim, (1.0,) * 3)
    from nibabel import orientations

    io_orientation: Any = orientations.io_orientation  # nibabel leaves it without types
    nearest = io_orientation(affine[:, [*range(ndim), 3]])  # (ndim, 2): patient's axis, direction
    world = nearest[:, 0].astype(int)
    order = sorted(range(ndim), key=lambda axis: -world[axis])
    steps = spacing_of(affine, ndim)
    cosines = [abs(affine[world[axis], axis]) / steps[axis] for axis in range(ndim)]
    return Orientation(
        order=tuple(order),
        flips=tuple(bool(nearest[axis, 1] > 0) for axis in order),
        spacing=(1.0,) * (3 - ndim) + tuple(steps[axis] for axis in order),
        world=tuple(int(world[axis]) for axis in order),
        tilt=float(np.degrees(np.arccos(np.clip(min(cosines), -1, 1)))),
    )


def to_mm(affine: np.ndarray, voxel: tuple[int, ...]) -> tuple[float, float, float]:
    """Return the place of the centre of `voxel` in RAS+ millimetres; a 2-D image lies at 0 of its third axis."""
    index = np.zeros(4)
    index[: len(voxel)] = voxel
    index[3] = 1
    x, y, z = (float(v) for v in (affine @ index)[:3])
    return x, y, z


def square_size(
    shape: tuple[int, int], spacing: tuple[float, float], least: int = 1, most: int | None = None
) -> tuple[int, int]:
    """Return the size in square pixels of a slice of `shape` voxels.

    A pixel is as large as the finer of the two steps, so that nothing is lost. A picture smaller than `least` pixels
    along its longer side is enlarged by a whole number; one longer than `most` is made smaller (None: 2048, or the
    number of voxels if that is more).
    """
    most = most or max(_LONGEST, *shape)
    extent = [n * step for n, step in zip(shape, spacing, strict=True)]
    pixel = max(min(spacing), max(extent) / most)
    zoom = max(1, -(-least // max(1, round(max(extent) / pixel))))
    height, width = (max(1, round(length / pixel)) * zoom for length in extent)
    return height, width
