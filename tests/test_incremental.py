"""Incremental inference equals whole passes, and steps back where it would not."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import DEVICES
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import medviz
from medviz.explainers.occlusion import Occlusion
from medviz.incremental import Incremental
from medviz.incremental.boxes import Box
from medviz.probe import perturbed
from medviz.probe.patched import _compare, _RefusedError

pytestmark = pytest.mark.usefixtures("boxes_at_no_cost")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def patched(image: Tensor, patches: Tensor, corners: Tensor) -> Tensor:
    """Whole copies of the image, written out."""
    copies = image.repeat(len(patches), *[1] * (image.ndim - 1))
    for copy, patch, corner in zip(copies, patches, corners.tolist(), strict=True):
        copy[(slice(None), *(slice(c, c + n) for c, n in zip(corner, patch.shape[1:], strict=True)))] = patch
    return copies


def check(
    model: nn.Module, image: Tensor, mask: tuple[int, ...], corners: Tensor | None = None, changes: bool = True
) -> None:
    """Run both ways, in float64, where nothing but the order of sums can differ."""
    model, image = model.eval().double(), image.double()
    if corners is None:
        last = torch.tensor([s - m for s, m in zip(image.shape[2:], mask, strict=True)])
        corners = (torch.rand(5, len(mask)) * (last + 1)).long().clamp(max=last)
        corners = torch.cat([corners, torch.zeros_like(corners[:1]), last[None]])
    patches = torch.randn(len(corners), image.shape[1], *mask).double()
    with torch.no_grad():
        expected, engine = model(patched(image, patches, corners)), Incremental(model, image)
        results = [engine.run(patches[rows], corners[rows]) for rows in (slice(None), slice(1), slice(-2, None))]
    result, *some = [result.whole() if isinstance(result, Box) else result for result in results]
    if changes:  # else the test would show nothing
        assert (expected - expected.mean(0)).abs().max() > 1e-6
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    for part, rows in zip(some, (expected[:1], expected[-2:]), strict=True):  # however many are run at once
        torch.testing.assert_close(part, rows, rtol=1e-10, atol=1e-10)


def head(channels: int, nd: int = 2) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1) if nd == 2 else nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, 3)]


class Function(nn.Module):
    """A layer that is a function."""

    def __init__(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.args, **self.kwargs)


class Weighted(nn.Module):
    """A convolution that is a function, with a weight of its own."""

    def __init__(self, convolution: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.convolution, self.weight = convolution, nn.Parameter(torch.randn(4, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x, self.weight)


WINDOW_LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv2d(2, 4, 3),
    lambda: nn.Conv2d(2, 4, 3, padding=1),
    lambda: nn.Conv2d(2, 4, (1, 5), padding=(0, 2)),
    lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1),
    lambda: nn.Conv2d(2, 4, 1, stride=2),
    lambda: nn.Conv2d(2, 4, 2, stride=3, padding=1),
    lambda: nn.Conv2d(2, 4, 7, stride=2, padding=3, bias=False),
    lambda: nn.Conv2d(2, 4, 3, dilation=3, padding=3),
    lambda: nn.Conv2d(2, 4, 3, groups=2, padding=2),
    lambda: nn.Conv2d(2, 4, 3, padding="same"),
    lambda: nn.Conv2d(2, 4, 3, padding="valid"),
    lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
    lambda: nn.Conv2d(2, 4, (3, 5), padding=(1, 2), padding_mode="replicate"),
    lambda: nn.Conv2d(2, 4, (4, 2), padding="same", dilation=2),
    lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(nn.MaxPool2d(3, 1, dilation=2), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(nn.AvgPool2d(3, 2, divisor_override=2), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.AvgPool2d(2)),
    lambda: nn.Sequential(nn.Conv2d(2, 4, 1, groups=2, padding="same"), nn.BatchNorm2d(4), nn.AvgPool2d(3, 1)),
    lambda: nn.Sequential(nn.Conv2d(2, 4, 1, padding=1), nn.AvgPool2d(2, divisor_override=3)),
    lambda: nn.Sequential(nn.MaxPool2d((2, 3), padding=(1, 0)), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(Function(F.max_pool2d, 2), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(Function(F.max_pool2d, (3, 2), stride=2, padding=1), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(Function(torch.max_pool2d, 3, 1, 1, 2), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(Function(F.avg_pool2d, 3, 2, 1), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(Function(F.avg_pool2d, kernel_size=2, divisor_override=3), nn.Conv2d(2, 4, 1)),
    lambda: nn.ConvTranspose2d(2, 4, 3, stride=2),
    lambda: nn.ConvTranspose2d(2, 4, 2, stride=2, padding=1),
    lambda: nn.ConvTranspose2d(2, 4, 1, stride=3, output_padding=2),
    lambda: nn.ConvTranspose2d(2, 4, (3, 4), stride=(2, 1), padding=(1, 3), output_padding=(1, 0), groups=2),
    lambda: nn.ConvTranspose2d(2, 4, 3, dilation=2, bias=False),
    lambda: nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(nn.MaxPool2d(3, 3, 1, 2, ceil_mode=True), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(Function(F.max_pool2d, 2, ceil_mode=True), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(nn.UpsamplingBilinear2d(scale_factor=(2, 3)), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(nn.Upsample(scale_factor=1.7, mode="bicubic"), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(F.interpolate, (40, 21), mode="bilinear", align_corners=True), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(F.interpolate, size=(11, 17), mode="area"), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(F.interpolate, scale_factor=0.6, mode="nearest-exact"), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(lambda x: x.repeat(1, 3, 1, 1)), nn.Conv2d(6, 4, 3)),
    lambda: nn.Sequential(nn.Softmax(1), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(F.softmax, -3), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(torch.mean, 1, keepdim=True), nn.Conv2d(1, 4, 3)),
    lambda: nn.Sequential(nn.ZeroPad2d((0, 2, 3, 1)), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(nn.ConstantPad2d(2, 0.7), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(F.pad, (0, 2, 3, 1)), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(nn.ZeroPad2d((-1, 2, 0, -2)), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(F.pad, (0, -1)), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(operator.getitem, (..., slice(2, -3))), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(operator.getitem, (slice(None), slice(1, None))), nn.Conv2d(1, 4, 3)),
    lambda: nn.Sequential(
        Function(operator.getitem, (slice(None), ..., slice(1, -1, 2), slice(3, 90))), nn.Conv2d(2, 4, 3)
    ),
    lambda: nn.Sequential(Function(F.pad, [2, 2], "constant", 0.7), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(F.pad, pad=(1, 0, 0, 2), value=-0.5), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(F.pad, (0, 0, 0, 0), mode="reflect"), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
    lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.PReLU(4), nn.Dropout2d()),
    lambda: weight_norm(nn.Conv2d(2, 4, 3, padding=1)),
    lambda: nn.Sequential(spectral_norm(nn.ConvTranspose2d(2, 4, 3)), nn.BatchNorm2d(4)),
    lambda: Weighted(lambda x, weight: F.conv2d(x, weight, padding=1)),
    lambda: Weighted(lambda x, weight: torch.conv2d(x, weight=weight - weight.mean((1, 2, 3), keepdim=True))),
]

WHOLE_LAYERS: list[Callable[[], nn.Module]] = [  # what has no rule, and is run on whole maps
    lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
    lambda: nn.Conv2d(2, 4, (3, 4), padding=(1, 2), padding_mode="reflect"),
    lambda: nn.Conv2d(2, 4, 1, padding=2, padding_mode="replicate"),
    lambda: nn.Sequential(Function(F.avg_pool2d, 3, 2, 0, True), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Conv2d(2, 4, 1)),
    lambda: nn.Sequential(Function(F.pad, (0, 0, 0, 0, 1, 2)), nn.Conv2d(5, 4, 3)),
    lambda: nn.Sequential(nn.Conv2d(2, 1, 1), Function(F.pad, (1, 1, 0, 0, 0, 2)), nn.Conv2d(3, 4, 3)),
    lambda: nn.Sequential(Function(F.pad, (0, 1, 0, 0), "replicate"), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(operator.getitem, (slice(0, None), ..., slice(3, None))), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(operator.getitem, (..., [3, 1, 2, 7, 5])), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(F.interpolate, (50, 40), mode="bilinear", antialias=True), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(lambda x: x.repeat(1, 2, 1, 2)), nn.Conv2d(4, 4, 3)),
    lambda: nn.Sequential(nn.Softmax(2), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(Function(torch.amax, (2, 1), keepdim=True), nn.Conv2d(1, 4, 1)),
    lambda: nn.Sequential(Function(lambda x: x.mean(1).unsqueeze(1)), nn.Conv2d(1, 4, 3)),
    lambda: nn.Sequential(nn.GroupNorm(1, 2), nn.Conv2d(2, 4, 3)),
    lambda: nn.Sequential(nn.InstanceNorm2d(2), nn.Conv2d(2, 4, 3)),
]


@pytest.mark.parametrize("layer", [*WINDOW_LAYERS, *WHOLE_LAYERS])
@pytest.mark.parametrize("mask", [(4, 4), (3, 7), (1, 1)])
def test_every_kind_of_layer(layer: Callable[[], nn.Module], mask: tuple[int, ...]) -> None:
    model = nn.Sequential(layer(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), *head(4))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean, module.running_var = torch.randn(4), torch.rand(4) + 0.5
    check(model, torch.rand(1, 2, 24, 19), mask)


ANY_WINDOW: dict[str, st.SearchStrategy[int]] = {
    "nd": st.sampled_from([2, 3]),
    "kernel": st.integers(1, 4),
    "stride": st.integers(1, 3),
    "padding": st.integers(0, 2),
    "dilation": st.integers(1, 2),
}


@given(
    **ANY_WINDOW,
    size=st.lists(st.integers(11, 17), min_size=3, max_size=3),
    mask=st.lists(st.integers(1, 5), min_size=3, max_size=3),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_convolutions_of_all_shapes(
    nd: int, kernel: int, stride: int, padding: int, dilation: int, size: list[int], mask: list[int]
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d if nd == 2 else nn.Conv3d
    pad = min(padding, dilation * (kernel - 1))
    model = nn.Sequential(
        conv(1, 3, kernel, stride, pad, dilation), nn.ReLU(), conv(3, 3, 2, padding=1), nn.Tanh(), *head(3, nd)
    )
    check(model, torch.rand(1, 1, *size[:nd]), tuple(mask[:nd]), torch.tensor([[3] * nd, [0] * nd, [5] * nd]), False)


@given(
    **ANY_WINDOW,
    size=st.lists(st.integers(6, 9), min_size=3, max_size=3),
    mask=st.lists(st.integers(1, 3), min_size=3, max_size=3),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_transposed_convolutions_of_all_shapes(
    nd: int, kernel: int, stride: int, padding: int, dilation: int, size: list[int], mask: list[int]
) -> None:
    torch.manual_seed(0)
    conv, transposed = (nn.Conv2d, nn.ConvTranspose2d) if nd == 2 else (nn.Conv3d, nn.ConvTranspose3d)
    pad, more = min(padding, dilation * (kernel - 1)), stride - 1
    model = nn.Sequential(
        *(transposed(1, 3, kernel, stride, pad, more, dilation=dilation), nn.Tanh()),
        *(conv(3, 3, 2, padding=1), nn.Tanh(), *head(3, nd)),
    )
    check(model, torch.rand(1, 1, *size[:nd]), tuple(mask[:nd]), torch.tensor([[3] * nd, [0] * nd, [2] * nd]), False)


@given(
    nd=st.sampled_from([2, 3]),
    mode=st.sampled_from(["nearest", "nearest-exact", "linear", "bicubic", "area"]),
    corners=st.sampled_from([None, True, False]),
    again=st.sampled_from([None, True, False]),
    to=st.one_of(
        st.tuples(*[st.integers(3, 20)] * 3), st.sampled_from([1, 2, 2.0, 3, 1.5, 0.5, 0.7]), st.just((2.0, 1.3, 0.6))
    ),
    size=st.lists(st.integers(5, 13), min_size=3, max_size=3),
    mask=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    double=st.booleans(),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_interpolations_to_all_sizes(
    nd: int,
    mode: str,
    corners: bool | None,
    again: bool | None,
    to: Any,
    size: list[int],
    mask: list[int],
    double: bool,
) -> None:
    torch.manual_seed(0)
    mode = {("linear", 2): "bilinear", ("linear", 3): "trilinear", ("bicubic", 3): "trilinear"}.get((mode, nd), mode)
    how: dict[str, Any] = {"mode": mode, "align_corners": corners if "linear" in mode or "cubic" in mode else None}
    if isinstance(to, tuple) and isinstance(to[0], int):
        how["size"] = to[:nd]
    else:
        how |= {"scale_factor": to[:nd] if isinstance(to, tuple) else to, "recompute_scale_factor": again}
    conv = nn.Conv2d if nd == 2 else nn.Conv3d
    model = nn.Sequential(conv(1, 2, 3, padding=1), nn.Tanh(), Function(F.interpolate, **how), conv(2, 2, 1)).eval()
    check(model, torch.rand(1, 1, *size[:nd]), tuple(mask[:nd]), changes=False)


@pytest.mark.parametrize("up", [nn.Upsample(scale_factor=2), nn.Upsample(17, mode="bilinear", align_corners=True)])
@pytest.mark.parametrize("corner", [(0, 0), (3, 4), (7, 7)])
def test_an_infinite_value_stays_where_interpolation_leaves_it(up: nn.Module, corner: tuple[int, int]) -> None:
    model = nn.Sequential(Function(lambda x: 1 / x), up).eval()
    image, patch = torch.ones(1, 1, 9, 9), torch.tensor([[0.0, 0.5]]).expand(1, 1, 2, 2)
    with torch.no_grad():
        result = Incremental(model, image).run(patch, torch.tensor([corner]))
        expected = model(patched(image, patch, torch.tensor([corner])))
    assert not expected.isfinite().all()
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    "padding", [nn.ZeroPad2d(1), nn.ConstantPad2d((0, 3, 2, 0), 0.5), Function(F.pad, (0, 3, 2, 0), value=2)]
)
def test_padding_after_boxes_that_were_moved_into_the_map(padding: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 5, padding=2), padding, nn.Conv2d(3, 3, 3), nn.ReLU(), *head(3))
    ends = torch.tensor([[0, 0], [0, 18], [18, 0], [18, 18], [1, 17], [9, 9]])
    check(model, torch.randn(1, 1, 22, 22), (4, 4), ends)


@pytest.mark.parametrize("layer", [*WINDOW_LAYERS, *WHOLE_LAYERS])
def test_boxes_go_through_the_layers_that_have_a_rule(layer: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(layer(), nn.Conv2d(4, 4, 3, padding=1), *head(4)).eval()
    with torch.no_grad():
        engine = Incremental(model, torch.rand(1, 2, 48, 48))
        engine.run(torch.rand(2, 2, 4, 4), torch.tensor([[0, 20], [20, 44]]))
    assert (engine.share < 0.5) == (layer in WINDOW_LAYERS)


@given(
    kernels=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 5)), min_size=1, max_size=4),
    strides=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2)), min_size=4, max_size=4),
    mask=st.tuples(st.integers(1, 19), st.integers(1, 12)),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_windows_that_fill_one_axis_and_not_the_other(
    kernels: list[tuple[int, int]], strides: list[tuple[int, int]], mask: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for kernel, stride in zip(kernels, strides, strict=False):
        padding = (kernel[0] // 2, kernel[1] // 2)
        layers += [nn.Conv2d(2 if layers else 1, 2, kernel, stride, padding), nn.Tanh()]
    check(nn.Sequential(*layers, *head(2)), torch.rand(1, 1, 20, 60), mask, changes=False)


class Wired(nn.Module):
    """Branches, sums, products and concatenations, in and out of place, with numbers and buffers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 5, padding=2)
        self.c, self.head = nn.Conv2d(3, 3, 1), nn.Linear(6 if how == "cat" else 3, 2)
        self.norm, self.table = nn.BatchNorm2d(3), nn.Parameter(torch.rand(1, 3, 21, 20))
        self.norm.running_mean, self.norm.running_var = torch.randn(3), torch.rand(3) + 0.5
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.Sigmoid())
        self.same = nn.Sequential(nn.Identity(), nn.Dropout())
        self.register_buffer("scale", torch.rand(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        if self.how == "cat":
            x = torch.cat([x, self.c(self.b(x))], dim=1)
        elif self.how == "add":
            x = self.b(x) + x
        elif self.how == "iadd":
            y = self.b(x)
            y += x
            x = y
        elif self.how == "in place":
            y = self.b(x)
            F.relu_(x.sub_(0.1))  # after b has read it
            x = self.c(x) * y
        elif self.how == "two names":
            y = x
            y += self.b(x)
            y *= 2
            x = self.c(x) * y  # both are the sum
        elif self.how == "same":
            y = self.same(x)
            y -= 0.1
            x = self.b(x)
        elif self.how == "sizes":
            n = x.shape[-1]
            m = n
            m += 2
            m /= n
            x = self.b(x) * (n - m)
        elif self.how == "numbers":
            x = operator.mul(1 - self.b(x), 2.0) * self.scale / 3 + self.scale
        elif self.how == "functions":
            x = F.pad(F.conv2d(x, self.b.weight, self.b.bias, stride=2, padding=1), (1, 0, 2, 1))
        elif self.how == "shared":
            x = self.norm(self.c(self.norm(self.c(x))))
        elif self.how == "read twice":
            y = self.c(x)
            x = self.norm(y) * y
        elif self.how == "a table first":
            y = self.table.expand(x.size(0), -1, -1, -1) * 2
            y += x
            x = y * self.b(x)
        elif self.how == "a table that is read by others alone":
            y = self.table.expand(x.size(0), -1, -1, -1).clone()
            y += x
            x = self.c(y)
        elif self.how == "rows as channels":
            rows, channels, *sizes = x.shape
            mixed = F.batch_norm(x.view(1, rows * channels, *sizes), None, None, training=True)
            x = x * mixed.view(rows, channels, *sizes)
        elif self.how == "the same shape":
            x = self.b(x.reshape(x.shape[0], 3, *x.shape[2:])).view(x.shape)
        elif self.how == "gate":
            x = x * self.gate(x)
        elif self.how == "keywords":
            x = torch.sigmoid(input=torch.clamp(self.b(torch.relu(input=self.c(x))), min=0.1, max=1.0))
        elif self.how == "mean":
            return self.head(self.b(x).mean(dim=(-2, -1)))
        elif self.how == "flatten":
            return F.adaptive_max_pool2d(self.b(x), (1, 1)).view(x.shape[0], -1)
        return self.head(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


WIRES = ["cat", "add", "iadd", "in place", "two names", "same", "sizes", "numbers", "functions", "shared", "read twice"]
WIRES += ["a table first", "a table that is read by others alone", "rows as channels", "the same shape"]
WIRES += ["gate", "keywords"]


@pytest.mark.parametrize("how", [*WIRES, "mean", "flatten"])
def test_every_kind_of_wiring(how: str) -> None:
    check(Wired(how), torch.rand(1, 1, 21, 20), (4, 5))


class Tempered(nn.Module):
    """Logits divided by a temperature that is worked out, of shape (1,): it belongs to no image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), *head(3))
        self.log_temperature = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) / self.log_temperature.exp()


def test_what_does_not_depend_on_the_image_has_no_row_for_each_patch() -> None:
    check(Tempered(), torch.randn(1, 1, 20, 20), (4, 4))


class Shifted(nn.Module):
    """A map plus a learned table of another number of axes, which PyTorch aligns with the last ones."""

    def __init__(self, nd: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        conv = nn.Conv2d if nd == 2 else nn.Conv3d
        self.first, self.last = conv(1, 6, 3, padding=1), conv(6, 2, 3, padding=1)
        self.table = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x) + self.table))


@pytest.mark.parametrize("rows", [[0], [2], [0, 1, 2]])
@pytest.mark.parametrize(
    "shape", [(), (1,), (20,), (1, 20), (24, 1), (24, 20), (1, 24, 1), (6, 1, 1), (1, 6, 1, 1), (1, 1, 1, 20)]
)
def test_tables_of_any_number_of_axes(shape: tuple[int, ...], rows: list[int]) -> None:
    corners = torch.tensor([[0, 0], [10, 9], [20, 16]])[rows]
    check(Shifted(2, shape), torch.rand(1, 1, 24, 20), (4, 4), corners, changes=False)


@pytest.mark.parametrize("rows", [[0], [2], [0, 1, 2]])
@pytest.mark.parametrize("shape", [(9,), (8, 1), (7, 1, 1), (1, 7, 1, 1), (6, 1, 1, 1), (1, 6, 1, 1, 1)])
def test_tables_of_any_number_of_axes_in_3d(shape: tuple[int, ...], rows: list[int]) -> None:
    corners = torch.tensor([[0, 0, 0], [2, 3, 3], [5, 6, 7]])[rows]
    check(Shifted(3, shape), torch.rand(1, 1, 7, 8, 9), (2, 2, 2), corners, changes=False)


class Overwritten(nn.Module):
    """A part of a map is overwritten by another name of it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.last, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "slice":
            x[:, :2].clamp_(-0.6, 0.6)
        elif self.how == "function":
            F.hardtanh(x[:, :2], -0.6, 0.6, True)
        elif self.how == "chunk":
            x.chunk(2, 1)[0].clamp_(-0.6, 0.6)
        elif self.how == "whole":
            part = x[:, :2]
            x.clamp_(-0.6, 0.6)
            x = torch.cat([part, x[:, 2:]], 1)
        elif self.how == "apart":
            one, two = x[:, :2], x[:, 2:]
            x = torch.cat([one.clamp_(-0.6, 0.6), two], 1)
        mean = torch.relu(self.last(x)).mean((2, 3))
        return self.head(mean)


@pytest.mark.parametrize("how", ["slice", "function", "chunk", "whole"])
def test_what_overwrites_a_part_of_a_value_that_is_read_later_is_refused(how: str) -> None:
    """Where a few windows do not show the difference, others may."""
    with torch.no_grad(), pytest.raises(TypeError, match="overwrites a part of"):
        Incremental(Overwritten(how).eval(), torch.rand(1, 1, 16, 16))
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    blob = 4 * torch.exp(-((y - 27.0) ** 2 + (x - 27.0) ** 2) / 8) + 0.01 * torch.rand(64, 64)
    model = Overwritten(how).eval()
    maps = [
        medviz.explain(model, blob[None, None], Occlusion(4, 0.5, "constant", incremental=incremental), target=1).values
        for incremental in (True, False)
    ]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", ["+=", "-=", "*=", "/=", "//=", "%=", "**="])
def test_every_name_of_a_value_means_what_was_assigned_to_one(way: str) -> None:
    class Assigned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x)) + 0.4
            names = {"y": y, "z": y}
            exec(f"z {way} 0.3", names)
            return self.last(y) + names["z"].mean(1, keepdim=True)

    check(Assigned(), torch.randn(1, 1, 20, 20), (4, 4))


@pytest.mark.parametrize("part", [slice(None), slice(0, 2)])
def test_a_result_that_is_written_into_another_value_is_refused(part: slice) -> None:
    def clamped(x: Tensor) -> Tensor:
        torch.clamp(x[:, part], -0.1, 0.1, out=x[:, part])
        return x

    model = nn.Sequential(nn.Conv2d(1, 4, 3), Function(clamped), nn.Conv2d(4, 2, 3), *head(2)).eval()
    with torch.no_grad(), pytest.raises(TypeError, match="writes its result into `out`"):
        Incremental(model, torch.rand(1, 1, 16, 16))


def test_parts_that_do_not_overlap_may_be_overwritten() -> None:
    check(Overwritten("apart"), 3 * torch.randn(1, 1, 20, 20), (4, 4))


def test_an_activation_after_a_global_mean() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Tanh(), nn.Flatten())
    check(model, torch.randn(1, 1, 20, 20), (4, 4))


@pytest.mark.parametrize("after", [torch.log, torch.reciprocal, lambda x: x])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearly_all_of_a_mean_goes(dtype: torch.dtype, after: Callable[[Tensor], Tensor]) -> None:
    """The rounding of what goes is as large as what is left."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), Function(torch.exp), nn.AdaptiveAvgPool2d(1), Function(after))
    model, image = model.to(dtype).eval(), torch.rand(1, 1, 20, 20, dtype=dtype)
    with torch.no_grad():
        model[0].weight.fill_(1)
        image[..., 6:9, 7:10] = 16 if dtype == torch.float32 else 36
        patches, corners = torch.zeros(2, 1, 4, 4, dtype=dtype), torch.tensor([[5, 6], [0, 0]])
        result = Incremental(model, image).run(patches, corners)
        torch.testing.assert_close(result, model(patched(image, patches, corners)), rtol=1e-5, atol=0)


def test_an_infinite_value_goes_out_of_a_mean() -> None:
    model = nn.Sequential(Function(lambda x: 1 / x), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    image = torch.ones(1, 1, 12, 12)
    image[..., 5, 5] = 0
    patch, corner = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[5, 5]])
    with torch.no_grad():
        torch.testing.assert_close(Incremental(model, image).run(patch, corner), model(patched(image, patch, corner)))


@pytest.mark.parametrize("how", WIRES)
def test_a_run_leaves_the_clean_activations_as_they_were(how: str) -> None:
    model = Wired(how).eval()
    with torch.no_grad():
        engine = Incremental(model, torch.rand(1, 1, 21, 20))
        patch, corner = torch.rand(1, 1, 4, 5), torch.tensor([[3, 3]])
        first = engine.run(patch, corner)
        before = {node: value.clone() for node, value in engine.clean.items() if isinstance(value, Tensor)}
        engine.run(torch.rand(1, 1, 20, 20), torch.tensor([[0, 0]]))
        assert torch.equal(engine.run(patch, corner), first)
    for node, value in before.items():
        assert value.is_meta or torch.equal(engine.clean[node], value), node


def test_batch_norm_is_folded_into_copies() -> None:
    conv, norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    model = nn.Sequential(conv, norm, nn.ReLU(), nn.BatchNorm2d(4), *head(4)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        engine = Incremental(model, torch.rand(1, 1, 16, 16))
    layers = [engine.traced.get_submodule(n.target) for n in engine.traced.graph.nodes if n.op == "call_module"]
    # there is nothing to fold the second norm into
    assert [type(layer) for layer in layers[:3]] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
    assert layers[0] is not conv
    assert model[0] is conv
    assert model[1] is norm
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_two_batch_norms_after_one_convolution_are_both_folded() -> None:
    norms = [nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    for norm in norms:
        norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    check(nn.Sequential(nn.Conv2d(2, 4, 3), *norms, nn.ReLU(), *head(4)), torch.rand(1, 2, 12, 12), (3, 3))


def test_layers_whose_names_differ_in_a_dot_alone_are_folded_apart() -> None:
    model = nn.Module()
    model.a_b = nn.ModuleDict({"c": nn.Conv2d(1, 1, 3)})
    model.a = nn.ModuleDict({"b_c": nn.Conv2d(1, 1, 3)})

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.norms = model, nn.ModuleList([nn.BatchNorm2d(1), nn.BatchNorm2d(1)])

        def forward(self, x: Tensor) -> Tensor:
            return self.norms[1](self.layers.a["b_c"](self.norms[0](self.layers.a_b["c"](x))))

    check(Two(), torch.randn(1, 1, 16, 16), (3, 3))


def test_clean_activations_that_nobody_looks_at_are_given_up() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Tanh(), nn.Conv2d(4, 4, 3), *head(4)).eval()
    with torch.no_grad():
        engine = Incremental(model, torch.rand(1, 1, 16, 16))
    held = {str(node): value.is_meta for node, value in engine.clean.items()}
    assert held == {"image": False, "_0": True, "_1": True, "_2": False, "_3": False, "_4": False} | {
        name: False for name in held if name in ("_5", "_6", "output")
    }


def test_a_segmentation_output_comes_as_boxes() -> None:
    check(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.rand(1, 1, 16, 16), (3, 3))


def test_a_part_that_the_patch_does_not_reach_is_not_run() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.table = nn.Conv2d(1, 2, 3), nn.Parameter(torch.rand(1, 2, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x) * self.table.exp()).mean((2, 3))

    check(Constant(), torch.rand(1, 1, 12, 12), (3, 3))


def test_only_boxes_are_run_in_early_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels: list[int] = []
    original = F.conv2d

    def counted(block: Tensor, *args: Any) -> Tensor:
        voxels.append(block[0, 0].numel())
        return original(block, *args)

    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), *head(4)).eval()
    image, patches = torch.rand(1, 1, 64, 64), torch.zeros(3, 1, 4, 4)
    with torch.no_grad():
        engine = Incremental(model, image)
        monkeypatch.setattr(F, "conv2d", counted)
        engine.run(patches, torch.tensor([[0, 0], [30, 12], [60, 60]]))
    assert voxels == [8 * 8, 10 * 10]


def test_the_model_is_untouched_by_tracing() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), *head(4)).eval()
    before = {name: id(module) for name, module in model.named_modules()}
    Incremental(model, torch.rand(1, 1, 16, 16))
    assert {name: id(module) for name, module in model.named_modules()} == before


# ---------------------------------------------------------------- boxes that stop growing


def deep(kernel: int = 5) -> nn.Module:
    layers = [(nn.Conv2d(1 if i == 0 else 4, 4, kernel, padding=kernel // 2), nn.Tanh()) for i in range(4)]
    return nn.Sequential(*itertools.chain(*layers), *head(4)).eval()


def grown(model: nn.Module, growth: float) -> tuple[Tensor, Tensor, float]:
    """Return the result with boxes that stop growing, that of whole passes, and how much work was done."""
    model = model.double()
    image, patches = torch.rand(1, 1, 40, 40).double(), torch.rand(3, 1, 8, 8).double()
    corners = torch.tensor([[0, 0], [16, 15], [32, 20]])
    with torch.no_grad():
        engine = Incremental(model, image, growth)
        return engine.run(patches, corners), model(patched(image, patches, corners)), engine.share


def test_boxes_that_stop_growing_save_work_and_come_close() -> None:
    shares, errors = [], []
    for growth in (1.0, 0.5, 0.2):
        torch.manual_seed(0)
        made, expected, share = grown(deep(), growth)
        shares.append(share)
        errors.append(float((made - expected).abs().max() / (expected - expected.mean(0)).abs().max()))
    assert shares[0] > 1.1 * shares[1] > 2 * shares[2]
    assert errors[0] < 1e-10 < errors[1] < errors[2] < 2


def test_nothing_is_lost_where_windows_do_not_reach_as_far_as_they_could() -> None:
    model = deep()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Conv2d):  # only the middle of a kernel says anything
                middle = layer.weight[:, :, 2:3, 2:3].clone()
                layer.weight.zero_()[:, :, 2:3, 2:3] = middle
    made, expected, share = grown(model, 0.2)
    assert share < 0.1
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("growth", [0, -1, 1.5, "much", float("nan")])
def test_a_growth_that_is_none(growth: Any) -> None:
    with pytest.raises(ValueError, match="`growth`"):
        Occlusion(growth=growth)


# ---------------------------------------------------------------- through occlusion


class Counted(nn.Module):
    """Counts whole passes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows = inner, Rows()

    def forward(self, x: Tensor) -> Tensor:
        self.rows.add(x)
        return self.inner(x)


class Rows:
    def __init__(self) -> None:
        self.total = self.most = 0

    def add(self, x: Tensor) -> None:
        rows = x.shape[0] if isinstance(x.shape[0], int) else 0
        self.total, self.most = self.total + rows, max(self.most, rows)


def network(nd: int = 2, channels: int = 2) -> nn.Module:
    conv = nn.Conv2d if nd == 2 else nn.Conv3d
    return nn.Sequential(
        *(conv(channels, 8, 3, padding=1), nn.ReLU(inplace=True)),
        *(conv(8, 16, 3, stride=2, padding=1), nn.ReLU(inplace=True)),
        *(conv(16, 16, 3, padding=1), nn.ReLU(inplace=True)),
        *head(16, nd),
    )


@pytest.mark.parametrize("nd", [2, 3])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_occlusion_is_the_same_with_far_fewer_whole_passes(
    nd: int, per_channel: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perturbed, "is_timed", lambda device: False)
    model = Counted(network(nd)).to(device)
    image = torch.rand(2, 2, *((32, 27) if nd == 2 else (20, 18, 17)), device=device)
    fast = Occlusion(6, 0.5, per_channel=per_channel)
    slow = Occlusion(6, 0.5, per_channel=per_channel, incremental=False)
    expected = slow(model, image, 1)
    whole, model.rows.total = model.rows.total, 0
    result = fast(model, image, 1)
    passes = fast.passes(image.shape)
    assert whole >= passes
    assert model.rows.total < passes / 2
    assert (result.values - expected.values).abs().max() <= 1e-5 * max(map(abs, expected.scores))


def refuse(model: nn.Module, caplog: pytest.LogCaptureFixture, image: Tensor | None = None) -> str:
    """Explain with and without, hold them against each other, and return what was logged."""
    image = torch.rand(1, 2, 32, 32) if image is None else image
    caplog.set_level("INFO", "medviz")
    result = Occlusion(8, 0.5)(model, image, 1)
    expected = Occlusion(8, 0.5, incremental=False)(model, image, 1)
    torch.testing.assert_close(result.values, expected.values)
    return caplog.text


class Remembering(nn.Module):
    """Goes on with what it kept in its last pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.last = network(), torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x) * self.last
        self.last = out.mean() * 0 + 1
        return out


def test_what_tracing_leaves_in_the_model_is_taken_out() -> None:
    model, image = Remembering().eval(), torch.rand(1, 2, 32, 27)
    quick, whole = (Occlusion(6, 0.5, incremental=way)(model, image, 1).values for way in (True, False))
    torch.testing.assert_close(quick, whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("growth", [1.0, 0.5])
def test_the_proof_keeps_to_the_batch_size(growth: float) -> None:
    model = Counted(network()).eval()
    Occlusion(6, 0.5, growth=growth)(model, torch.rand(1, 2, 32, 27), 1, batch_size=1)
    assert model.rows.most == 1


def test_the_proof_looks_at_the_border_of_the_image(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(self: Incremental, patches: Tensor, corners: Tensor) -> Any:
        out = run(self, patches, corners)
        out[(corners == 0).all(1)] += 1
        return out

    run = Incremental.run
    monkeypatch.setattr(Incremental, "run", wrong)
    with caplog.at_level("INFO", "medviz"):
        Occlusion(6, 0.5)(network().eval(), torch.rand(1, 2, 32, 27), 1)
    assert "incremental inference differs" in caplog.text


@pytest.mark.parametrize("size", [(32, 32), (36, 31)])  # an even number of windows along each axis, and an odd one
def test_the_proof_looks_where_a_window_changes_the_image(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Blurred black is black: by the windows over a scan's background nothing is proved."""

    def wrong(self: Incremental, patches: Tensor, corners: Tensor) -> Any:
        out = run(self, patches, corners)
        out[patches.flatten(1).any(1)] += 1
        return out

    image = torch.zeros(1, 2, *size)
    image[..., 12:20, 12:20] = torch.rand(8, 8)
    run = Incremental.run
    monkeypatch.setattr(Incremental, "run", wrong)
    with caplog.at_level("INFO", "medviz"):
        Occlusion(4, 0.5)(network().eval(), image, 1)
    assert "incremental inference differs" in caplog.text


def test_where_a_later_window_fails_a_whole_pass_is_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(self: Incremental, patches: Tensor, corners: Tensor) -> Any:
        if len(patches) == 5:  # the proof takes three windows
            raise RuntimeError("The size of tensor a (5) must match")
        return run(self, patches, corners)

    model, image = network().eval(), torch.rand(1, 2, 32, 27)
    expected = Occlusion(6, 0.5, incremental=False)(model, image, 1).values
    run = Incremental.run
    monkeypatch.setattr(Incremental, "run", failing)
    result, _ = medviz.explain(model, image, Occlusion(6, 0.5), [1, 0], batch_size=5)
    assert caplog.text.count("whole passes from here on, for incremental inference fails: The size of tensor a") == 1
    torch.testing.assert_close(result.values, expected, rtol=0, atol=1e-5)


def test_windows_that_change_nothing_prove_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log = refuse(network().eval(), caplog, torch.zeros(1, 2, 32, 32))
    assert "change nothing" in log


def test_a_model_that_cannot_be_traced(caplog: pytest.LogCaptureFixture) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.mean() > 0 else self.inner(-x)

    assert "cannot be traced" in refuse(Branching(), caplog)


def test_a_model_whose_hooks_change_its_layers(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    model[0].register_forward_hook(lambda module, args, output: output - output.mean((2, 3), keepdim=True))
    assert "whole passes, for the model has hooks" in refuse(model, caplog)


def test_a_difference_is_seen_beside_a_huge_output(caplog: pytest.LogCaptureFixture) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return torch.cat([y, y[:, :1] * 0 - 1e9], 1)

    model = Masked()
    plain = model.inner[0].forward
    # what torch.fx, and whoever looks at the type, takes for an ordinary convolution
    model.inner[0].forward = lambda x: plain(x - x.mean((2, 3), keepdim=True))
    assert "incremental inference differs" in refuse(model, caplog)


def test_outputs_that_are_near_zero_by_chance_are_held_to_no_finer_rounding() -> None:
    expected = torch.linspace(-1, 1, 1000).repeat(3, 1)  # those in the middle are ±0.001
    _compare(expected + 1e-7, expected, 1e-5)
    for output, error in ((500, 1e-4), (0, 1e-4)):
        made = expected.clone()
        made[1, output] += error
        with pytest.raises(_RefusedError, match="differs by"):
            _compare(made, expected, 1e-5)


def test_a_small_output_is_not_hidden_by_many_large_ones() -> None:
    expected = torch.cat([torch.full((3, 1), 0.5), torch.full((3, 9), 1e6)], 1)
    made = expected.clone()
    made[:, 0] += 0.01
    with pytest.raises(_RefusedError, match="differs by"):
        _compare(made, expected, 1e-5)


def test_growth_tells_how_far_from_exact_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "medviz")
    model, image = deep(), torch.rand(1, 1, 40, 40)
    exact = Occlusion(8, 0.5)(model, image, 1).values
    assert "growth" not in caplog.text
    near = Occlusion(8, 0.5, growth=0.3)(model, image, 1).values
    said = re.search(r"`growth` 0.3 changes what windows do to an output by up to (\S+)", caplog.text)
    assert said is not None
    assert 0 < float(said[1]) < 2
    assert 0 < (near - exact).abs().max() < 2 * float(said[1]) * exact.abs().max()


def test_an_image_is_run_once_for_all_its_channels_and_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = Incremental.__init__
    monkeypatch.setattr(Incremental, "__init__", lambda self, *args: (made.append(1), original(self, *args))[1])
    Occlusion(8, 0.75, per_channel=True, refine=1, refine_above=0)(network(), torch.rand(2, 2, 32, 32), 1)
    assert len(made) == 2  # images


def test_a_model_is_refused_once(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    model[0].register_forward_hook(lambda *_: None)
    caplog.set_level("INFO", "medviz")
    Occlusion(8, 0.5, per_channel=True)(model, torch.rand(2, 2, 32, 32), 1)
    assert caplog.text.count("whole passes, for") == 1


def test_a_segmentation_is_run_in_boxes() -> None:
    model = Counted(
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, stride=2)),
        )
    )
    image, mask = torch.rand(1, 1, 48, 44), torch.zeros(48, 44)
    mask[10:30, 5:20] = 1
    target = medviz.SegmentationTarget(2, mask)
    expected = Occlusion(8, 0.5, incremental=False)(model, image, target)
    whole, model.rows.total = model.rows.total, 0
    result = Occlusion(8, 0.5)(model, image, target)
    assert model.rows.total < whole / 4
    assert (result.values - expected.values).abs().max() <= 1e-5 * max(map(abs, expected.scores))


def test_a_model_that_takes_other_arguments_runs_as_it_is() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.inner(x) * scale

    image, model = torch.rand(1, 2, 32, 32), Scaled()
    result = Occlusion(8, 0.5)(model, image, 1, model_args=[torch.tensor(2.0)])
    expected = Occlusion(8, 0.5)(model.inner, image, 1)
    torch.testing.assert_close(result.values, 2 * expected.values, rtol=1e-4, atol=1e-6)


def test_a_way_that_saves_little_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    wide = nn.Sequential(nn.Conv2d(2, 4, 25, padding=12), nn.ReLU(), nn.Conv2d(4, 4, 3), *head(4))
    assert "of the work of whole passes" in refuse(wide, caplog)


def test_the_work_is_counted() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), *head(4)).eval()
    with torch.no_grad():
        engine = Incremental(model, torch.rand(1, 1, 64, 64))
        engine.run(torch.zeros(2, 1, 4, 4), torch.tensor([[0, 0], [30, 30]]))

    def work(first: int, second: int) -> float:
        # voxels × maps × what each takes: its weights, and as long as 50 of them; and what follows the convolutions
        return first**2 * 4 * (9 + 50 + 50) + second**2 * 4 * (36 + 50) + 4 * 50 * 2 + 3 * (4 + 50)

    assert engine.share == pytest.approx(work(6, 8) / work(64, 64))
    assert engine.overhead == 0


def test_a_network_that_is_too_small_runs_whole(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert "of the work of whole passes" in refuse(network(), caplog)


@pytest.mark.parametrize("last", [nn.Identity(), Function(lambda x: x.float())])
@pytest.mark.parametrize("autocast", [False, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, autocast: Any, last: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "medviz")
    model, image = nn.Sequential(network().to(dtype), last), torch.rand(1, 2, 32, 32)
    result = Occlusion(8, 0.5)(model, image, 1, autocast=autocast)
    assert "whole passes" not in caplog.text
    expected = Occlusion(8, 0.5, incremental=False)(model, image, 1, autocast=autocast)
    bound = 1e-6 if dtype == torch.float64 and not autocast else 2e-2
    assert (result.values - expected.values).abs().max() <= bound * max(map(abs, expected.scores))


def test_the_model_is_untouched() -> None:
    model = network().train()
    model.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    medviz.explain(model, torch.rand(1, 2, 32, 32), "occlusion:mask_size=8", 1)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
