"""What every occluder promises, and what each one does, on paper."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import DEVICES, images
from torch import Tensor

import medviz
from medviz import registry
from medviz.windows import cut_out

OCCLUDERS = [entry.name for entry in registry.entries("occluders") if entry.package == "medviz-xai"]
FIELDS = ["blur", "noise"]  # made over the whole image and seen through the windows


def occluder(name: str, **parameters: Any) -> Any:
    return medviz.get_occluder(f"medviz-xai/{name}", **parameters)


def hide(name: str, image: Tensor, corners: Any, size: tuple[int, ...], **parameters: Any) -> Tensor:
    where = torch.as_tensor(corners)
    return occluder(name, **parameters)(cut_out(image, where, size), image, where)


def test_the_seven_are_there() -> None:
    assert {"gaussian", "constant", "mean_img", "mean_patch", "blur", "noise", "shuffle"} <= set(OCCLUDERS)
    assert set(OCCLUDERS) <= set(medviz.names("occluders"))


@pytest.mark.parametrize("name", OCCLUDERS)
@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    channels=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    data=st.data(),
)
def test_the_contract(name: str, shape: list[int], channels: int, dtype: torch.dtype, data: st.DataObject) -> None:
    """Shape, dtype, finite; input untouched; window by window the same as together; weights ≥ 0, not all zero."""
    size = tuple(data.draw(st.integers(1, extent)) for extent in shape)
    corner = st.tuples(*(st.integers(0, extent - s) for extent, s in zip(shape, size, strict=True)))
    corners = torch.tensor(data.draw(st.lists(corner, min_size=1, max_size=4)))
    image = images(channels, *shape).to(dtype)
    patches, kept = cut_out(image, corners, size), image.clone()
    clean = patches.clone()
    hidden = occluder(name)(patches, image, corners)
    assert hidden.shape == patches.shape
    assert hidden.dtype == dtype
    assert hidden.isfinite().all()
    assert torch.equal(patches, clean)
    assert torch.equal(image, kept)
    for i in range(len(corners)):
        alone = occluder(name)(patches[i : i + 1], image, corners[i : i + 1])
        assert torch.equal(alone[0], hidden[i])
    weight = occluder(name).weight(size)
    assert weight.shape == size
    assert weight.isfinite().all()
    assert (weight >= 0).all()
    assert (weight > 0).any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OCCLUDERS)
def test_devices(name: str, device: str) -> None:
    image = images(2, 9, 8)
    here = hide(name, image.to(device), [[1, 2], [3, 0]], (4, 5))
    assert here.device.type == device
    assert torch.allclose(here.cpu(), hide(name, image, [[1, 2], [3, 0]], (4, 5)), atol=1e-4)


@pytest.mark.parametrize("name", OCCLUDERS)
def test_the_global_generators_go_on_as_if_nothing_had_happened(name: str) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = hide(name, images(2, 9, 8), [[1, 2]], (4, 5))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(hide(name, images(2, 9, 8), [[1, 2]], (4, 5)), first)


@pytest.mark.parametrize("name", [name for name in OCCLUDERS if name != "gaussian"])
def test_without_a_weight_of_its_own_all_voxels_count_the_same(name: str) -> None:
    assert torch.equal(occluder(name).weight((3, 4)), torch.ones(3, 4))


def test_constant() -> None:
    assert (hide("constant", images(2, 6, 5), [[0, 0], [2, 1]], (3, 4)) == 0).all()
    assert (hide("constant", images(2, 6, 5), [[0, 0], [2, 1]], (3, 4), value=-1000) == -1000).all()


@pytest.mark.parametrize("name", ["mean_img", "mean_patch", "blur", "noise"])
def test_each_channel_keeps_its_own_fill(name: str) -> None:
    image = torch.stack([torch.zeros(8, 8), torch.full((8, 8), 100.0)])
    hidden = hide(name, image, [[1, 2], [5, 0]], (3, 3))
    assert torch.allclose(hidden[:, 0], torch.zeros(()))
    assert torch.allclose(hidden[:, 1], torch.full((), 100.0), rtol=1e-6)


def test_means() -> None:
    image = images(2, 7, 6, 5) + torch.tensor([5.0, -3.0]).view(2, 1, 1, 1)
    corners = [[0, 1, 2], [3, 3, 0]]
    of_image = hide("mean_img", image, corners, (4, 3, 3))
    of_patch = hide("mean_patch", image, corners, (4, 3, 3))
    for i, (a, b, c) in enumerate(corners):
        patch = image[:, a : a + 4, b : b + 3, c : c + 3]
        for channel in range(2):
            assert torch.allclose(of_image[i, channel], image[channel].mean().expand(4, 3, 3))
            assert torch.allclose(of_patch[i, channel], patch[channel].mean().expand(4, 3, 3))


def test_the_mean_of_a_large_half_precision_volume_does_not_overflow() -> None:
    image = torch.full((1, 96, 96, 96), 1000.0, dtype=torch.float16)
    for name in ("mean_img", "mean_patch", "noise", "blur"):
        assert (hide(name, image, [[0, 0, 0]], (90, 90, 90))[..., ::30, ::30, ::30] == 1000).all()


@pytest.mark.parametrize("size", [(5, 7), (3, 5, 7), (1, 5)])
def test_gaussian_of_odd_size_is_zero_in_the_middle_and_unchanged_at_the_corners(size: tuple[int, ...]) -> None:
    middle = tuple(s // 2 for s in size)
    corners = torch.cartesian_prod(*(torch.tensor(sorted({0, s - 1})) for s in size))
    factor = hide("gaussian", torch.ones(1, *size), [[0] * len(size)], size)[0, 0]
    assert factor[middle].abs() <= 1e-6
    assert torch.allclose(factor[tuple(corners.T)], torch.ones(()), atol=1e-6)
    weight = occluder("gaussian").weight(size)
    assert weight[middle] == 1
    assert torch.allclose(weight.float(), 1 - factor, atol=1e-6)  # "using the gaussian (not 1-gaussian)"
    assert torch.allclose(weight, weight.flip(tuple(range(len(size)))), atol=1e-6)
    image = images(2, *size)
    assert torch.allclose(hide("gaussian", image, [[0] * len(size)], size)[0], image * factor, atol=1e-6)


@pytest.mark.parametrize("size", [(4, 6), (6, 4, 8)])
def test_gaussian_of_even_size_is_zero_behind_the_middle_and_unchanged_at_the_first_corner_alone(
    size: tuple[int, ...],
) -> None:
    factor = hide("gaussian", torch.ones(1, *size), [[0] * len(size)], size)[0, 0]
    assert torch.unravel_index(factor.argmin(), size) == tuple(n // 2 for n in size)
    assert factor.min().abs() <= 1e-6
    assert torch.unravel_index(factor.argmax(), size) == (0,) * len(size)
    assert (factor == 1).sum() == 1


def test_gaussian_is_the_integral_over_each_voxel() -> None:
    """By the midpoint rule on a fine grid; the smallest value is 0, the largest 1."""
    size, sigma = (9,), 0.25
    fine = (torch.arange(9 * 1000, dtype=torch.float64) + 0.5) / 1000 - 4.5
    bell = (-0.5 * (fine / (sigma * 9)) ** 2).exp().reshape(9, 1000).mean(1)
    bell = (bell - bell.min()) / (bell.max() - bell.min())
    assert torch.allclose(occluder("gaussian", sigma=sigma).weight(size).double(), bell, atol=1e-6)


@pytest.mark.parametrize("size", [(1,), (1, 1), (1, 1, 1), (2, 2), (2, 1, 3)])
def test_gaussian_of_the_smallest_windows_hides_something(size: tuple[int, ...]) -> None:
    weight = occluder("gaussian").weight(size)
    assert weight.max() == 1
    assert hide("gaussian", torch.ones(1, *size), [[0] * len(size)], size).min().abs() <= 1e-6


@pytest.mark.parametrize("sigma", [1e-3, 0.05, 0.25, 3.0, 1e3])
def test_gaussian_of_any_width_stays_between_0_and_1(sigma: float) -> None:
    weight = occluder("gaussian", sigma=sigma).weight((16, 11))
    assert weight.isfinite().all()
    assert weight.min() == 0
    assert weight.max() == 1
    assert weight[8, 5] == 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_blur_of_a_delta_is_a_gaussian(ndim: int) -> None:
    extent, sigma = 25, 1.5
    delta = torch.zeros(1, *[extent] * ndim, dtype=torch.float64)
    delta[(0, *[12] * ndim)] = 1
    hidden = hide("blur", delta, [[0] * ndim], (extent,) * ndim, sigma=sigma)[0, 0]
    offset = torch.arange(extent, dtype=torch.float64) - 12
    profile = (-0.5 * (offset / sigma) ** 2).exp() / (sigma * math.sqrt(2 * math.pi))
    expected = torch.ones((), dtype=torch.float64)
    for _ in range(ndim):
        expected = expected[..., None] * profile
    assert torch.allclose(hidden, expected, atol=1e-2 * float(expected.max()))  # the kernel ends at 3 sigma
    assert hidden.sum() == pytest.approx(1)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 40.0])
def test_blur_of_a_constant_is_that_constant(sigma: float) -> None:
    image = torch.full((2, 9, 5), 700.0)
    assert torch.allclose(hide("blur", image, [[2, 1]], (6, 4), sigma=sigma), torch.full((), 700.0), rtol=1e-6)


def test_blur_sees_what_is_around_the_window() -> None:
    image = torch.zeros(1, 21, 21)
    image[0, 10:] = 1
    hidden = hide("blur", image, [[0, 0]], (10, 21), sigma=3)  # all zeros inside
    assert hidden[0, 0, 9].min() > 0.3
    assert hidden[0, 0, 0].max() < 0.01
    whole = hide("blur", image, [[0, 0]], (21, 21), sigma=3)
    assert torch.equal(hidden[0, 0], whole[0, 0, :10])


def test_noise_is_one_field_seen_through_the_windows() -> None:
    image = images(2, 9, 8) * torch.tensor([1.0, 20.0]).view(2, 1, 1) + 3
    field = torch.randn(image.shape, generator=torch.Generator().manual_seed(4))
    for scale in (0.0, 1.0, 2.5):
        expected = image.mean((1, 2), keepdim=True) + scale * image.std((1, 2), correction=0, keepdim=True) * field
        hidden = hide("noise", image, [[1, 2], [5, 3]], (4, 5), seed=4, scale=scale)
        assert torch.allclose(hidden[0], expected[:, 1:5, 2:7], atol=1e-5)
        assert torch.allclose(hidden[1], expected[:, 5:9, 3:8], atol=1e-5)
    other = hide("noise", image, [[1, 2], [5, 3]], (4, 5), seed=5)
    assert not torch.allclose(other, hide("noise", image, [[1, 2], [5, 3]], (4, 5), seed=4))


def test_shuffle_keeps_the_voxels_of_a_window_and_moves_channels_together() -> None:
    first = torch.arange(9 * 8 * 7.0).view(1, 9, 8, 7)
    image = torch.cat([first, -first])
    corners, size = [[1, 2, 0], [5, 3, 3]], (4, 5, 3)
    clean, hidden = cut_out(image, torch.tensor(corners), size), hide("shuffle", image, corners, size)
    for before, after in zip(clean, hidden, strict=True):
        assert not torch.equal(before, after)
        assert torch.equal(before[0].flatten().sort()[0], after[0].flatten().sort()[0])
    assert torch.equal(hidden[:, 0], -hidden[:, 1])
    assert not torch.equal(hide("shuffle", image, corners, size, seed=1), hidden)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("gaussian", {"sigma": 0}, "`sigma` is a finite number > 0; got 0"),
    ("gaussian", {"sigma": float("inf")}, "`sigma` is a finite number > 0; got inf"),
    ("blur", {"sigma": -1}, "`sigma` is a finite number > 0; got -1"),
    ("blur", {"sigma": float("inf")}, "`sigma` is a finite number > 0; got inf"),
    ("blur", {"sigma": "wide"}, "`sigma` is a finite number > 0; got 'wide'"),
    ("constant", {"value": float("nan")}, "`value` is a finite number; got nan"),
    ("constant", {"value": None}, "`value` is a finite number; got None"),
    ("noise", {"scale": -1}, "`scale` is a finite number ≥ 0; got -1"),
    ("noise", {"seed": None}, "`seed` is an int ≥ 0 and < 4294967296; got None"),
    ("shuffle", {"seed": 2**32}, "`seed` is an int ≥ 0 and < 4294967296; got 4294967296"),
]


@pytest.mark.parametrize(("name", "parameters", "message"), WRONG)
def test_wrong_parameters_say_what_is_wrong(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(medviz.PluginError, match=re.escape(message)):
        occluder(name, **parameters)
    with pytest.raises(ValueError, match=re.escape(message)):
        type(occluder(name))(**parameters)
