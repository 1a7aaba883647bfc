"""On a CPU the channels come last in memory, for all but what asks in which order values lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import DEVICES
from torch import Tensor, nn

from medviz.incremental import Incremental, windows
from medviz.incremental.boxes import Box
from medviz.incremental.layout import order

CORNERS = torch.tensor([[0, 0], [3, 5], [8, 8]])


def last(maps: Tensor) -> bool:
    return order(maps) in (torch.channels_last, torch.channels_last_3d)


def both(model: nn.Module, image: Tensor, mask: int = 4) -> tuple[Any, Tensor, Incremental]:
    """Patched copies of an image, incrementally and whole, and what ran them."""
    model, nd = model.eval(), image.ndim - 2
    corners = CORNERS[:, [0, *range(nd - 1)]]
    patches = torch.randn(len(corners), image.shape[1], *[mask] * nd, dtype=image.dtype)
    with torch.no_grad():
        engine = Incremental(model, image)
        made, expected = engine.run(patches, corners), model(Box(image, patches, corners).whole())
    return (made.whole() if isinstance(made, Box) else made), expected, engine


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def convolutional(nd: int, channels: int) -> nn.Module:
    conv, norm, pool = ((nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d), (nn.Conv3d, nn.BatchNorm3d, nn.AvgPool3d))[nd - 2]
    layers = conv(channels, 4, 3), norm(4), nn.ReLU(), conv(4, 5, 1), pool(2), conv(5, 6, 3, padding=1), nn.ReLU(True)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("nd", [2, 3])
def test_all_maps_lie_channels_last(nd: int, channels: int) -> None:
    image = torch.randn(1, channels, *[16] * nd).double()
    made, expected, engine = both(convolutional(nd, channels).double(), image)
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)
    assert all(map(last, (value for value in engine.clean.values() if value.ndim == nd + 2)))
    assert last(made)
    assert image.is_contiguous()


class Classifies(nn.Module):
    """Works in place on what linear layers and functions have made, as VGG and timm's networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Linear(36, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.conv(x), self.norm.running_mean, self.norm.running_var)
        x = F.max_pool2d(F.silu(x, inplace=True), 4)
        out: Tensor = self.head(x.flatten(1))
        return out


def test_who_works_in_place_on_new_values_has_maps_channels_last() -> None:
    made, expected, engine = both(Classifies().double(), torch.randn(1, 2, 12, 12).double())
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)
    assert all(map(last, (v for v in engine.clean.values() if isinstance(v, Tensor) and v.ndim == 4)))


@pytest.mark.parametrize("nd", [2, 3])
def test_the_model_keeps_its_weights(nd: int) -> None:
    model = convolutional(nd, 2)
    before = [(p, p.stride(), p.clone(), p.requires_grad) for p in model.parameters()]
    attributes = [dict(vars(m)) for m in model.modules()]
    both(model, torch.randn(1, 2, *[16] * nd))
    for parameter, (same, stride, value, wanted) in zip(model.parameters(), before, strict=True):
        assert parameter is same
        assert parameter.stride() == stride
        assert parameter.requires_grad == wanted
        torch.testing.assert_close(parameter, value, rtol=0, atol=0)
    assert [dict(vars(m)) for m in model.modules()] == [{**a, "training": False} for a in attributes]


class Asks(nn.Module):
    """A network that does `what` with a map; whoever reads values as they lie wants the channels first."""

    def __init__(self, what: Any, features: int) -> None:
        super().__init__()
        self.conv, self.what, self.last = nn.Conv2d(2, 4, 3, padding=1), what, nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.what(self.conv(x).relu()))
        return out


ASKING = {
    "view": (lambda x: x.view(x.size(0), -1), 576),
    "view of rows and channels": (lambda x: x.view(x.size(0) * 4, 12, 12).view(x.size(0), -1), 576),
    "as_strided": (lambda x: x.as_strided((x.size(0), 4, 12), (576, 144, 1)).flatten(1), 48),
    "view_as": (lambda x: x.view_as(x.flatten(2)).flatten(1), 576),
    "stride": (lambda x: x.flatten(1) * x.stride(1), 576),
    "stride of one channel": (lambda x: x[:, :1].flatten(1) * (x[:, :1].contiguous() + 0).stride(1), 144),
    "resize_": (lambda x: x.resize_(x.size(0), 500), 500),
    "an operator by its own name": (lambda x: torch.ops.aten.as_strided(x, [x.size(0), 48], [576, 1]), 48),
}


@pytest.mark.parametrize("name", ASKING)
def test_what_asks_for_the_order_finds_the_usual_one(name: str) -> None:
    what, features = ASKING[name]
    made, expected, engine = both(Asks(what, features).double(), torch.randn(1, 2, 12, 12).double())
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)
    assert not any(map(last, (value for value in engine.clean.values() if isinstance(value, Tensor))))


class ChangedBehindAView(nn.Module):
    """Overwrites a map of which `flatten` has made a view, which it then reads: a copy would hold what was there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(576, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        flat = x.flatten(1)
        x.mul_(2.0)
        out: Tensor = self.last(flat) + x.mean()
        return out


def test_a_view_that_would_be_a_copy_is_still_seen() -> None:
    with pytest.raises(TypeError, match="overwrites a part of flatten"):
        both(ChangedBehindAView(), torch.randn(1, 2, 12, 12))


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_that_lies_channels_last_itself(device: str) -> None:
    model = convolutional(2, 3).to(device).to(memory_format=torch.channels_last).eval()
    image = torch.randn(1, 3, 16, 16, device=device).to(memory_format=torch.channels_last)
    patches = torch.randn(3, 3, 4, 4, device=device)
    with torch.no_grad():
        made = Incremental(model, image).run(patches, CORNERS)
        expected = model(Box(image, patches, CORNERS).whole())
    torch.testing.assert_close(made.whole() if isinstance(made, Box) else made, expected, rtol=1e-4, atol=1e-4)


class KeepsWhatItPools(nn.Module):
    """Reads a map once more that a mean over single voxels was taken of, which makes another one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv3d(2, 4, 7, padding=3), nn.AvgPool3d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        out: Tensor = F.relu(self.pool(x)) + x
        return out


def test_a_mean_over_single_voxels_is_a_new_map() -> None:
    made, expected, _ = both(KeepsWhatItPools().double(), torch.randn(1, 2, 12, 12, 12).double())
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)


def test_a_layer_for_volumes_may_pool_channels_of_pictures() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 9, padding=4), nn.Flatten(1, 2), nn.Unflatten(1, (4, 12)), nn.AvgPool3d(2))
    made, expected, _ = both(model.double(), torch.randn(1, 2, 12, 12).double(), mask=4)
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_a_hook_makes_is_left_to_it() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(2, 4, 3)), nn.ReLU(), nn.Conv2d(4, 3, 3))
    made, expected, _ = both(model.double(), torch.randn(1, 2, 12, 12).double())
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)


POOLS = [
    nn.AvgPool3d(1),
    nn.AvgPool3d(1, 2),
    nn.AvgPool3d(2),
    nn.AvgPool3d((1, 2, 3), (2, 1, 2)),
    nn.AvgPool3d(3, 2, 1),
    nn.AvgPool3d(2, divisor_override=3),
    nn.AvgPool3d(2, 3),
    nn.AvgPool3d(2, ceil_mode=True),
    nn.AvgPool3d(3, 1, 1, count_include_pad=False),
]


@pytest.mark.parametrize("mask", [2, 14], ids=["boxes", "whole maps"])
@pytest.mark.parametrize("pool", POOLS, ids=repr)
def test_means_over_windows(pool: nn.Module, mask: int) -> None:
    image = torch.randn(1, 2, 15, 14, 16).double()
    model = nn.Sequential(nn.Conv3d(2, 3, 1), pool).double()
    patches = torch.randn(2, 2, *[mask] * 3).double()
    corners = torch.tensor([[0, 0, 0], [1, 0, 2]])
    with torch.no_grad():
        made = Incremental(model, image).run(patches, corners)
        expected = model(Box(image, patches, corners).whole())
    torch.testing.assert_close(made.whole() if isinstance(made, Box) else made, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_of_half_precision_are_those_of_pytorch(dtype: torch.dtype) -> None:
    maps = (torch.rand(2, 3, 9, 9) + 100).to(dtype)
    window = windows.of_module(nn.AvgPool2d(3), 2)
    assert isinstance(window, windows.Window)
    assert torch.equal(window.run(maps), F.avg_pool2d(maps, 3))
