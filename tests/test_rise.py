"""RISE: its masks, its sum written out, and networks whose map is known."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import DEVICES, Classifier, UNet, check_close, explain, images
from torch import Tensor, nn

import medviz
from medviz.explainers import sampling
from medviz.explainers.rise import RISE, _Masked


class Corner(nn.Module):
    """One logit: the mean over one corner."""

    def __init__(self, ndim: int) -> None:
        super().__init__()
        self.corner = (slice(None), slice(None), *[slice(0, 4)] * ndim)

    def forward(self, x: Tensor) -> Tensor:
        return x[self.corner].flatten(1).mean(1, keepdim=True)


def masks(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **parameters: Any) -> Tensor:
    """The masks `(n, *S)` that an image of `shape` is seen through."""
    rise = RISE(**parameters)
    masked = _Masked(rise, torch.zeros(1, *shape, dtype=dtype), parameters.get("seed", 0))
    return masked.masks(slice(0, rise.n_masks))[:, 0]


@pytest.mark.parametrize("shape", [(14, 14), (9, 13), (8, 9, 7), (3, 2), (1, 5)])
@pytest.mark.parametrize("keep", [0.2, 0.5])
def test_masks_are_between_0_and_1_and_on_average_show_what_is_kept(shape: tuple[int, ...], keep: float) -> None:
    made = masks(shape, n_masks=1500, cells=4, keep=keep, seed=0)
    assert made.shape == (1500, *shape)
    assert made.min() >= 0
    assert made.max() <= 1
    deviation = (keep * (1 - keep) / 1500) ** 0.5
    assert (made.mean(0) - keep).abs().max() <= 5 * deviation  # at each voxel
    assert len({tuple(m.flatten().tolist()) for m in made[:20]}) > (3 if made[0].numel() < 10 else 15)
    assert not torch.equal(made[:20], masks(shape, n_masks=20, cells=4, keep=keep, seed=1))


def test_masks_are_smooth_and_as_coarse_as_their_cells() -> None:
    made = masks((40, 40), n_masks=50, cells=4, seed=0)
    assert made.diff(dim=1).abs().max() <= 0.1 + 1e-6  # from one cell to the next in 10 voxels
    assert made.diff(dim=2).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("fill", [0.0, -1.5])
def test_the_sum_written_out(ndim: int, fill: float) -> None:
    size = (9, 7, 6)[:ndim]
    model, image = Classifier(ndim).double(), images(2, 2, *size, dtype=torch.float64)
    got = explain("rise", model, image, torch.tensor([2, 0]), n_masks=12, cells=3, keep=0.4, fill=fill, seed=3)
    assert got.signed
    assert got.values.shape == (2, 1, *size)
    made = masks(size, torch.float64, n_masks=12, cells=3, keep=0.4, seed=3)
    for i, c in enumerate((2, 0)):
        with torch.no_grad():
            scores = torch.stack([model((m * image[i] + (1 - m) * fill)[None])[0, c] for m in made])
        weight = (scores - scores.mean()).view(-1, *[1] * ndim)
        check_close(got.values[i, 0], (weight * made).sum(0) / (12 * 0.4), 1e-9)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_map_is_highest_where_the_network_looks(ndim: int) -> None:
    image = torch.ones(1, 1, *(12, 13, 11)[:ndim])
    values = explain("rise", Corner(ndim), image, 0, n_masks=600, cells=4, seed=0).values[0, 0]
    inside = values[(slice(0, 4),) * ndim]
    outside = values[(slice(7, None),) * ndim]
    assert inside.mean() > 10 * outside.mean().abs()
    assert all(place < 4 for place in torch.unravel_index(values.argmax(), values.shape))
    negative = explain("rise", Corner(ndim), image, medviz.BinaryTarget(positive=False), n_masks=600, cells=4, seed=0)
    check_close(negative.values[0, 0], -values, 1e-5)


def test_one_mask_says_nothing() -> None:
    assert not explain("rise", Classifier(2), images(2, 2, 9, 7), 1, n_masks=1, seed=0).values.any()


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_equals_single_images_and_no_batch_size_matters(device: str) -> None:
    model, image = Classifier(2).to(device), images(3, 2, 9, 7).to(device)
    few: dict[str, Any] = {"n_masks": 20, "cells": 3, "seed": 1}
    tolerance = 2e-5 if device == "cpu" else 1e-3
    together = explain("rise", model, image, torch.tensor([2, 0, 1]), **few).values
    for batch_size in (1, 7, 64):
        values = explain("rise", model, image, torch.tensor([2, 0, 1]), batch_size=batch_size, **few).values
        check_close(values, together, tolerance)
    for i, c in enumerate((2, 0, 1)):
        check_close(explain("rise", model, image[i : i + 1], c, **few).values, together[i : i + 1], tolerance)


def test_without_a_seed_one_call_makes_each_mask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called without the pipeline, which would give it a seed: the masks of the passes are those of the sum."""
    monkeypatch.setattr(sampling.secrets, "randbits", random.Random(0).getrandbits)  # another number in each call
    image = torch.ones(2, 1, 12, 12)
    with medviz.Probe(Corner(2), image) as probe:
        values = RISE(n_masks=400, cells=4).explain(probe, probe.fix(0))
    assert values[0, 0, :4, :4].mean() > 10 * values[0, 0, 7:, 7:].mean().abs()
    assert torch.equal(values[0], values[1])


@pytest.mark.parametrize("ndim", [2, 3])
def test_segmentation_outputs_and_half_precision(ndim: int) -> None:
    size = (9, 7, 6)[:ndim]
    target = medviz.SegmentationTarget(1)
    few: dict[str, Any] = {"n_masks": 40, "cells": 3, "seed": 1}
    image = images(1, 1, *size).to(torch.bfloat16)
    full = explain("rise", UNet(ndim), image.float(), target, **few).values
    half = explain("rise", UNet(ndim).to(torch.bfloat16), image, target, **few).values
    assert half.dtype == torch.float32
    assert torch.corrcoef(torch.stack([half.flatten(), full.flatten()]))[0, 1] > 0.95


def test_small_differences_of_scores_count_in_half_precision() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            return 1e-7 * x[:, :, :4].float().mean((2, 3))

    image = torch.ones(1, 1, 8, 8)
    half = medviz.explain(Small(), image.half(), "rise:n_masks=64,cells=3,seed=0", 0)
    full = medviz.explain(Small().float(), image, "rise:n_masks=64,cells=3,seed=0", 0)
    assert full.values.abs().max() > 0
    torch.testing.assert_close(half.values, full.values, rtol=1e-2, atol=1e-2 * float(full.values.abs().max()))


@pytest.mark.parametrize("shape", [(20, 23), (9, 8, 11)])
def test_masks_are_grids_enlarged_as_pytorch_does_and_shifted(shape: tuple[int, ...]) -> None:
    made = masks(shape, torch.float64, n_masks=30, cells=3, seed=5)
    edges = [-(-extent // 3) for extent in shape]
    for i, mask in enumerate(made):
        source = torch.Generator().manual_seed(5 * 1_000_003 + i)
        grid = (torch.rand([4] * len(shape), generator=source) < 0.5).double()
        shift = [int(torch.randint(edge, (), generator=source)) for edge in edges]
        mode = "bilinear" if len(shape) == 2 else "trilinear"
        large = F.interpolate(grid[None, None], size=[edge * 4 for edge in edges], mode=mode)[0, 0]
        part = large[tuple(slice(first, first + extent) for first, extent in zip(shift, shape, strict=True))]
        torch.testing.assert_close(mask, part, rtol=0, atol=1e-12)
