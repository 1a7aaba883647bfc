"""What the demo's network learns from: one scan, moved and bent, with and without a lesion, with distractors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medviz.demo.scan import distances_mm, plant, smooth_noise
from medviz.image import Image

CALIBRATION = 500_000  # training takes its seeds from below
HELD_OUT = 1_000_000  # calibration takes its seeds from below


def head_of(scan: Image) -> slice:
    """Return where the head is along the first axis, with a margin: the rest is air, and costs time."""
    head = scan.data[0].amax((1, 2)).nonzero()
    return slice(max(0, int(head.min()) - 6), int(head.max()) + 7)


def pool(scan: Image, count: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Return `count` examples, every second planted, and their lesions, `(count, 1, *S)`, in half precision.

    Args:
        scan: what they are made from.
        count: how many.
        first: the seed of the first one.
    """
    head = head_of(scan)
    scans, lesions = torch.empty(2, count, 1, *scan.data[0, head].shape, dtype=torch.float16)
    for i in range(count):
        data, coverage = example(scan, first + i, i % 2 == 0)
        scans[i, 0], lesions[i, 0] = data[head], coverage[head]
    return scans, lesions


def example(scan: Image, seed: int, planted: bool) -> tuple[Tensor, Tensor]:
    """Return one augmented scan and how much of each voxel is lesion, both `(*S)`."""
    rng = np.random.default_rng([seed, 1])
    data, coverage = scan.data[0], torch.zeros_like(scan.data[0])
    if planted:
        image, lesion = plant(scan, seed)
        data, coverage = image.data[0], lesion.coverage
    for _ in range(int(rng.integers(4))):
        data = distract(data, scan.affine, rng)
    data, coverage = warp(data, coverage, rng)
    return recolour(data, rng), coverage


def recolour(data: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the scan `(*S)` with another contrast, a field of uneven brightness, and noise."""
    top = data.max()
    data = top * (data / top).clamp(min=0) ** float(rng.uniform(0.8, 1.25))
    data = data * (1 + float(rng.uniform(0, 0.12)) * smooth_noise(data.shape, 30, rng))
    noise = torch.from_numpy(rng.standard_normal(data.shape)).float()
    return (data + float(rng.uniform(0, 20)) * noise * (data > 0)).clamp(min=0)


def distract(data: Tensor, affine: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Return the scan `(*S)` with something in it that is not a lesion: a speck, a vessel, a haze or a grainy patch."""
    places = (data > 0.3 * data.max()).nonzero()
    center = places[int(rng.integers(len(places)))].tolist()
    distance = distances_mm(affine, data.shape, center)
    change = float(rng.uniform(0.3, 0.7) * rng.choice([-1, 1]))
    kind = int(rng.integers(4))
    if kind == 0:
        where = torch.sigmoid((float(rng.uniform(1.5, 3)) - distance) * 2)
    elif kind == 1:
        where = vessel(affine, data.shape, center, rng) * (distance < float(rng.uniform(20, 40)))
    elif kind == 2:
        where = torch.exp(-0.5 * (distance / float(rng.uniform(20, 35))) ** 2) / 3
    else:
        where = (distance < float(rng.uniform(6, 12))) * smooth_noise(data.shape, 1, rng) / 3
    return data * (1 + change * where).clamp(min=0.1)


def vessel(affine: np.ndarray, shape: tuple[int, ...], center: list[int], rng: np.random.Generator) -> Tensor:
    """Return a thin line through `center` along one axis; it broadcasts to `(*S)`."""
    axis = int(rng.integers(3))
    flat = [c if i != axis else 0 for i, c in enumerate(center)]
    across = distances_mm(affine, [n if i != axis else 1 for i, n in enumerate(shape)], flat)
    return torch.sigmoid((float(rng.uniform(1, 2.5)) - across) * 2)


def warp(data: Tensor, coverage: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return scan and lesion `(*S)` turned, scaled, shifted, bent and perhaps mirrored, both in the same way."""
    theta = torch.eye(3, 4)[None]
    theta[0, :3, :3] += torch.from_numpy(rng.uniform(-0.06, 0.06, (3, 3))).float()
    theta[0, :3, 3] = torch.from_numpy(rng.uniform(-0.1, 0.1, 3)).float()
    if rng.random() < 0.5:
        theta[0, 2, :] *= -1  # left and right: the image's first axis is the grid's last
    grid = F.affine_grid(theta, [1, 1, *data.shape], align_corners=False)
    bend = torch.stack([smooth_noise(data.shape, 12, rng) for _ in range(3)], dim=-1)
    moved = F.grid_sample(torch.stack([data, coverage])[None], grid + 0.008 * bend, align_corners=False)[0]
    return moved[0], moved[1]
