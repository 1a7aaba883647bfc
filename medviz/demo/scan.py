"""The demo's input: a real brain scan, and a lesion planted in it at a place that is known exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import medviz
from medviz.image import Image

SCAN = "tests/data/example4d.nii.gz"
SCAN_SHA256 = "42097dfbab9d2a036b41ae5c97a359591cf2cf5c3f8dc6ca6455c0b8a7f22696"
RADII_MM = (6.0, 10.0)

_EDGE_MM = 4.0  # the width over which a lesion fades into the tissue around it
_WOBBLE_MM = 1.0  # how far its border departs from the ellipsoid (standard deviation)
_STRETCH = 1.2  # the longest semi-axis over the radius, at most


def scan_path() -> Path:
    """Return the path of the brain scan (echo-planar MRI, 128 × 96 × 24, two volumes) inside the installed nibabel.

    Raises:
        FileNotFoundError: this installation of nibabel lacks its test data.
        ValueError: the file is not the one that the demo was made for.
    """
    import nibabel

    path = Path(nibabel.__file__).parent / SCAN
    advice = "reinstall it from a wheel: python -m pip install --force-reinstall --no-deps nibabel."
    if not path.is_file():
        raise FileNotFoundError(f"nibabel {nibabel.__version__} has no file 'nibabel/{SCAN}'; {advice}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SCAN_SHA256:
        raise ValueError(f"'nibabel/{SCAN}' has SHA-256 {found}; expected {SCAN_SHA256}; {advice}")
    return path


def load_scan(volume: int = 0) -> Image:
    """Return one volume of the scan, `(1, 128, 96, 24)`, in the units and the axis order of its file.

    Args:
        volume: 0 or 1; the same head, two seconds apart.
    """
    if volume not in (0, 1):
        raise ValueError(f"`volume` is 0 or 1; got {volume!r}.")
    return medviz.get_reader("medviz-xai/nifti", volume=volume)(scan_path())


@attrs.frozen(eq=False)
class Lesion:
    """What was planted, and where.

    Args:
        center: voxel index of the centre along each axis of the image.
        center_mm: the same place in RAS+ millimetres.
        radius_mm: of the ball with the lesion's volume; it is slightly longer along one axis and shorter along another.
        contrast: relative change of the intensity at the centre; above 0 is bright, below 0 dark.
        coverage: `(*S)` in [0, 1]: how much of each voxel is lesion.
    """

    center: tuple[int, ...]
    center_mm: tuple[float, ...]
    radius_mm: float
    contrast: float
    coverage: Tensor

    @property
    def mask(self) -> Tensor:
        """The voxels that are lesion for at least a half, `(*S)` bool."""
        return self.coverage >= 0.5


def brain(image: Image) -> Tensor:
    """Return where there is brain, `(*S)` bool: smoothed intensity above half the median of what is not background."""
    data = image.data[0]
    smooth = F.avg_pool3d(data[None, None], (5, 5, 3), 1, (2, 2, 1))[0, 0]
    within: Tensor = smooth > 0.5 * data[data > 0].median()
    return within


def plant(image: Image, seed: int, radii_mm: Sequence[float] = RADII_MM) -> tuple[Image, Lesion]:
    """Return `image` with one lesion in it: a soft-edged, textured ellipsoid wholly inside the brain, bright or dark.

    Args:
        image: one channel, three axes, with an affine.
        seed: of the place, size, shape and contrast; the same seed gives the same lesion.
        radii_mm: smallest and largest radius.

    Returns:
        The planted image (a copy) and what was planted.

    Raises:
        ValueError: an image of another kind, or one whose brain has no room for such a lesion.
    """
    if image.data.ndim != 4 or len(image.data) != 1 or image.affine is None:
        raise ValueError(f"`image` is {tuple(image.data.shape)}; expected one channel (1, D, H, W) and an affine.")
    rng = np.random.default_rng(seed)
    radius = float(rng.uniform(radii_mm[0], radii_mm[1]))
    center = _place(image, radius, rng)
    coverage = _ellipsoid(image.affine, image.data.shape[1:], center, radius, rng)
    contrast = float(rng.uniform(0.4, 0.6) if rng.random() < 0.7 else -rng.uniform(0.4, 0.6))
    texture = 1 + 0.15 * smooth_noise(coverage.shape, 3, rng) + 0.1 * smooth_noise(coverage.shape, 1.5, rng)
    data = image.data * (1 + contrast * coverage * texture).clamp(min=0.1)
    center_mm = tuple(float(x) for x in (image.affine @ [*center, 1])[:3])
    return attrs.evolve(image, data=data, path=None), Lesion(center, center_mm, radius, contrast, coverage)


def smooth_noise(shape: Sequence[int], cell: float, rng: np.random.Generator) -> Tensor:
    """Return noise `(*S)` with mean 0 and about standard deviation 1 that changes over about `cell` voxels."""
    coarse = torch.from_numpy(rng.standard_normal([max(2, round(n / cell) + 1) for n in shape])).float()
    noise = F.interpolate(coarse[None, None], size=tuple(shape), mode="trilinear", align_corners=True)[0, 0]
    return noise / noise.std()


def distances_mm(affine: np.ndarray, shape: Sequence[int], center: Sequence[float]) -> Tensor:
    """Return how far each voxel `(*S)` lies from the voxel index `center`, in mm."""
    steps = _steps_mm(affine, shape, center)
    return steps.square().sum(-1).sqrt()


def _steps_mm(affine: np.ndarray, shape: Sequence[int], center: Sequence[float]) -> Tensor:
    axes = [torch.arange(n, dtype=torch.float32, device="cpu") - c for n, c in zip(shape, center, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return grid @ torch.from_numpy(affine[:3, :3]).float().T


def _place(image: Image, radius: float, rng: np.random.Generator) -> tuple[int, ...]:
    """A voxel of ordinary tissue around which a box that holds the lesion is all brain."""
    outside = (~brain(image)).float()[None, None]
    for axis, spacing in enumerate(image.spacing or ()):
        reach = int(np.ceil((_STRETCH * radius + _EDGE_MM / 2) / spacing))
        kernel, sides = [1, 1, 1], [0] * 6
        kernel[axis] = 2 * reach + 1
        sides[4 - 2 * axis : 6 - 2 * axis] = reach, reach
        outside = F.max_pool3d(F.pad(outside, sides, value=1.0), kernel, 1)
    data = image.data[0]
    smooth = F.avg_pool3d(data[None, None], 3, 1, 1)[0, 0]
    tissue = data[data > 0].median()
    places = ((outside[0, 0] == 0) & (smooth > 0.75 * tissue) & (smooth < 1.25 * tissue)).nonzero()
    if not len(places):
        raise ValueError(f"there is no room for a lesion of radius {radius:.1f} mm inside the brain of this image.")
    return tuple(int(i) for i in places[int(rng.integers(len(places)))])


def _ellipsoid(
    affine: np.ndarray, shape: Sequence[int], center: tuple[int, ...], radius: float, rng: np.random.Generator
) -> Tensor:
    steps = _steps_mm(affine, shape, center)
    stretch = torch.from_numpy(_STRETCH ** rng.uniform(-0.75, 0.75, 3)).float()
    stretch = stretch / stretch.prod() ** (1 / 3)  # the volume stays; no semi-axis is above _STRETCH x the radius
    depth = _WOBBLE_MM * smooth_noise(shape, 3, rng) - (steps / stretch).square().sum(-1).sqrt()
    voxels = round(4 / 3 * np.pi * radius**3 / abs(np.linalg.det(affine[:3, :3])))
    border = depth.flatten().topk(voxels).values[-1]
    return torch.sigmoid(4 * (depth - border) / _EDGE_MM)
