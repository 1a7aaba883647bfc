"""Incremental inference equals whole passes on networks that nobody designed."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from typing import Any

import faraway
import pytest
import torch
import torch.nn.functional as F
from helpers_copying import WAYS, copied
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import REAL, seeded
from torch import Tensor, nn

from medviz.incremental import Incremental
from medviz.incremental.boxes import Box

_IN_TWO = (
    *(operator.add, operator.sub, operator.mul, operator.iadd, torch.maximum),
    lambda one, two: one.mul_(two),
    lambda one, two: torch.where(one > two, one, two),
)
_IN_ONE = (
    lambda one: torch.cat([part * (i + 1) for i, part in enumerate(one.chunk(2, 1))], 1),
    lambda one: torch.cat([one.data, one.new_ones(one.shape[0], 1, *one.shape[2:])], 1),
    lambda one: one.sub(0.5).abs().pow(2).to(one.dtype),
)
_MOST = 4000  # numbers in a feature map


def _kind(name: str, nd: int) -> Any:
    return getattr(nn, f"{name}{nd}d")


def _convolution(rng: random.Random, nd: int, channels: int) -> nn.Module:
    groups = rng.choice([1, 1, channels])
    out = groups * rng.randint(1, 2) if groups > 1 else rng.randint(2, 5)
    each = [tuple(rng.choice(sizes) for _ in range(nd)) for sizes in ([1, 2, 3, 3], [1, 1, 2], [1, 1, 2])]
    kernel, stride, dilation = each
    mode = rng.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
    padding: Any = tuple(rng.randint(0, (k - 1) * d) for k, d in zip(kernel, dilation, strict=True))
    if set(stride) == {1} and rng.random() < 0.3:
        padding = "same"
    return _kind("Conv", nd)(channels, out, kernel, stride, padding, dilation, groups, rng.random() < 0.5, mode)


def _transposed(rng: random.Random, nd: int, channels: int) -> nn.Module:
    kernel, stride = rng.randint(1, 3), rng.randint(1, 2)
    return _kind("ConvTranspose", nd)(channels, rng.randint(2, 4), kernel, stride, rng.randint(0, kernel // 2))


def _pooling(rng: random.Random, nd: int, channels: int) -> nn.Module:
    kernel, stride = rng.randint(2, 3), rng.randint(1, 2)
    padding, ceil = rng.randint(0, kernel // 2), rng.random() < 0.2
    if rng.random() < 0.5:
        return _kind("MaxPool", nd)(kernel, stride, padding, rng.randint(1, 2), ceil_mode=ceil)
    return _kind("AvgPool", nd)(kernel, stride, padding, ceil, rng.random() < 0.7)


def _padding(rng: random.Random, nd: int, channels: int) -> nn.Module:
    return _kind("ConstantPad", nd)(tuple(rng.randint(-1, 2) for _ in range(2 * nd)), rng.random())


def _norm(rng: random.Random, nd: int, channels: int) -> nn.Module:
    made = [lambda: _kind("BatchNorm", nd)(channels), lambda: _kind("InstanceNorm", nd)(channels, affine=True)]
    return rng.choice([made[0], made[0], made[1], lambda: nn.GroupNorm(1, channels)])()


def _activation(rng: random.Random, nd: int, channels: int) -> nn.Module:
    in_place = rng.random() < 0.5
    return rng.choice([nn.ReLU(in_place), nn.LeakyReLU(0.1, in_place), nn.SiLU(), nn.Softplus(), nn.PReLU(channels)])


def _other(rng: random.Random, nd: int, channels: int) -> nn.Module:
    gate = nn.Sequential(_kind("AdaptiveAvgPool", nd)(1), _kind("Conv", nd)(channels, channels, 1), nn.Sigmoid())
    modes = ["nearest", "bilinear" if nd == 2 else "trilinear"]
    up = nn.Upsample(scale_factor=rng.choice([2, 1.5, 0.8]), mode=rng.choice(modes))
    return rng.choice([up, nn.Dropout(), nn.Identity(), gate])


_LAYERS: tuple[Callable[[random.Random, int, int], nn.Module], ...] = (
    *[_convolution] * 4,
    *[_norm, _activation] * 2,
    *(_transposed, _pooling, _padding, _other),
)


class Drawn(nn.Module):
    """Layers between values that are drawn among all earlier ones, sums and concatenations of what fits, and a head."""

    def __init__(self, rng: random.Random, image: Tensor, operations: int) -> None:
        super().__init__()
        self.nd = image.ndim - 2
        self.layers = nn.ModuleList()
        self.steps: list[tuple[Any, tuple[int, ...]]] = []
        values = [image.clone()]
        while len(self.steps) < operations:
            kind = rng.random()
            if kind < 0.2:
                step: Any = (rng.choice(_IN_ONE), (len(values) - 1,))
            else:
                step = self._joined(rng, values) if kind < 0.5 else self._layer(rng, values[-1], len(values))
            if step is not None:
                self.steps.append(step)
                values = self._values(image.clone())
        self.head = rng.choice(["mean", "flat", "map"])
        self.linear = nn.LazyLinear(3) if self.head == "flat" else nn.Linear(values[-1].shape[1], 3)
        self.forward(image)  # so that the lazy one knows its size

    def _layer(self, rng: random.Random, value: Tensor, position: int) -> tuple[Any, tuple[int, ...]] | None:
        layer = rng.choice(_LAYERS)(rng, self.nd, value.shape[1]).eval()
        try:
            made = layer(value.clone())
        except (RuntimeError, ValueError):  # the map is too small for it
            return None
        if made.numel() > _MOST or min(made.shape[2:]) < 2:
            return None
        self.layers.append(layer)
        return len(self.layers) - 1, (position - 1,)

    def _joined(self, rng: random.Random, values: list[Tensor]) -> tuple[Any, tuple[int, ...]] | None:
        one, two = len(values) - 1, rng.randrange(len(values))
        if values[one].shape[2:] != values[two].shape[2:]:
            return None
        if values[one].shape == values[two].shape and rng.random() < 0.7:
            return rng.choice(_IN_TWO), (one, two)
        return torch.cat, (one, two)

    def _values(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for how, inputs in self.steps:
            taken = [values[i] for i in inputs]
            made = how(taken, 1) if how is torch.cat else None
            values.append(self.layers[how](*taken) if isinstance(how, int) else how(*taken) if made is None else made)
        return values

    def forward(self, x: Tensor) -> Tensor:
        value = self._values(x)[-1]
        if self.head == "map":
            return value
        mean = F.adaptive_avg_pool2d if self.nd == 2 else F.adaptive_avg_pool3d
        result: Tensor = self.linear((mean(value, 1) if self.head == "mean" else value).flatten(1))
        return result


ANY = {"seed": st.integers(0, 10**9), "nd": st.sampled_from([2, 3]), "operations": st.integers(1, 9)}


@WAYS
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # it is slower, that is all
@given(**ANY)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_network(by_index: bool, seed: int, nd: int, operations: int) -> None:
    for device in REAL:
        check(device, by_index, seed, nd, operations)


@WAYS
@pytest.mark.skipif(not faraway.DEVICES, reason="this PyTorch cannot be told of a device")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(**ANY)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_network_elsewhere(by_index: bool, seed: int, nd: int, operations: int) -> None:
    with faraway.there():
        check(faraway.NAME, by_index, seed, nd, operations)


def check(device: str, by_index: bool, seed: int, nd: int, operations: int) -> None:
    """Hold some windows of a random network against its whole copies."""
    rng = random.Random(seed)
    torch.manual_seed(0)
    size = [rng.randint(7, 20) if nd == 2 else rng.randint(5, 9) for _ in range(nd)]
    mask = [rng.randint(1, max(1, n // 2)) for n in size]
    last = [n - m for n, m in zip(size, mask, strict=True)]
    corners = torch.tensor([[0] * nd, last, *([rng.randint(0, n) for n in last] for _ in range(3))])
    with torch.no_grad():
        network = seeded(Drawn(rng, torch.rand(1, 2, *size), operations)).double().to(device)
        image = torch.rand(1, 2, *size).double().to(device)
        patches = torch.rand(len(corners), 2, *mask).double().to(device)
        copies = Box(image, patches, corners.tolist()).whole()
        expected = network(copies.clone())
        with copied(by_index):
            result = Incremental(network, image).run(patches, corners)
            result = result.whole() if isinstance(result, Box) else result
        torch.testing.assert_close(result.cpu(), expected.cpu(), rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
