"""A network that decides by sizes and types is traced as it decides for this image, and left as it was."""

from __future__ import annotations

import gc
import linecache
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medviz.incremental import Incremental, tracing
from medviz.incremental.boxes import Box
from medviz.incremental.nodes import is_fact

IMAGE = torch.rand(1, 2, 16, 16)
IMAGES = [(2, 24, 24), (2, 25, 22), (2, 12, 12, 12), (2, 13, 12, 11)]


def conv(nd: int, *args: Any, **kwargs: Any) -> nn.Module:
    made: nn.Module = getattr(nn, f"Conv{nd}d")(*args, **kwargs)
    return made


class Sized(nn.Module):
    """Two branches of convolutions, and in between what `between` makes of both, given the layer itself."""

    def __init__(self, between: Callable[[Sized, Tensor, Tensor], Tensor], nd: int, channels: int = 7) -> None:
        super().__init__()
        self.nd, self.between = nd, between
        self.fine, self.coarse = conv(nd, 2, 3, 3, padding=1), conv(nd, 3, 4, 3, stride=2, padding=1)
        self.last = conv(nd, channels, 2, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(1))
        self.table = nn.Parameter(torch.rand(1, 3, *[64] * nd))
        self.register_buffer("coordinates", torch.rand(1, 1, *[1] * nd))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x).relu()
        made: Tensor = self.last(self.between(self, fine, self.coarse(fine).relu()))
        return made


def up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0)


def padded_where_sizes_differ(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    """As MONAI's BasicUNet goes back to the finer grid."""
    coarse = up(coarse)[(..., *[slice(None, 2 * (n // 2)) for n in fine.shape[2:]])]
    if not torch.jit.isinstance(coarse, Tensor):
        return fine
    padding = [0] * (2 * (len(coarse.shape) - 2))
    for i in range(len(padding) // 2):
        if fine.shape[-i - 1] != coarse.shape[-i - 1]:
            padding[2 * i + 1] = 1
    return torch.cat([fine, F.pad(coarse, padding, "replicate")], dim=1)


def cropped(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    coarse = up(coarse)
    for axis, n in enumerate(fine.shape[2:]):
        coarse = coarse.narrow(axis + 2, 0, int(n))
    return torch.cat([fine, coarse], dim=1)


def resized(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    size = [n for n in fine.size()[2:] if n > 1]
    return torch.cat([fine, F.interpolate(coarse, size=size)], dim=1)


def asked_for_types(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    if fine.dtype != torch.float64 or fine.ndim != net.nd + 2 or fine.device.type == "meta":
        raise AssertionError("another branch")
    return torch.cat([fine, resized(net, fine, coarse)[:, 3:] * float(fine.shape[-1] / 24)], dim=1)


def changed_in_place(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    """What is run for the sizes alone must not reach the values that count."""
    coarse = coarse + net.scale
    coarse += 1
    coarse.mul_(2).clamp_(max=5)
    return resized(net, fine, coarse) if coarse.shape[2] > 1 else fine


def made_in_the_pass(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    pool = nn.MaxPool2d(3, 1, 1) if net.nd == 2 else nn.MaxPool3d(3, 1, 1)
    return torch.cat([pool(fine), resized(net, fine, coarse)[:, 3:]], dim=1)


def with_coordinates(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    """As CoordConv does."""
    rows = fine.shape[0]
    across = net.coordinates.expand(rows, -1, *fine.shape[2:])
    again = net.table[(..., *[slice(None, n) for n in fine.shape[2:]])].repeat(fine.size(0), *[1] * (net.nd + 1))
    return torch.cat([across * fine[:, :1], again, fine[:, 2:], up_to(fine, coarse)[:, 2:]], dim=1)


def with_a_table(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    """As a position embedding is cut to size."""
    rows, channels, *sizes = fine.shape
    part = net.table[(..., *[slice(None, n) for n in sizes])]
    scale, none = net.coordinates.view(1, -1, *[1] * net.nd), fine.new_zeros(sizes)
    return torch.cat([fine.view(rows, channels, *sizes) * part + none, up_to(fine, coarse) * scale], dim=1)


def up_to(fine: Tensor, coarse: Tensor) -> Tensor:
    return F.interpolate(coarse, size=fine.shape[2:])


def rows_stay_open(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    rows, channels, *sizes = fine.shape
    again = fine.reshape(rows, channels, -1).reshape(fine.shape[0], channels, *sizes)
    return torch.cat([again, resized(net, fine, coarse)[:, 3:]], dim=1)


def filled(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    """As MONAI's ResNet goes past a block that makes more channels."""
    more = torch.zeros(fine.size(0), 1, *fine.shape[2:], dtype=fine.dtype, device=fine.device)
    ones, same = fine.new_full((fine.shape[0], 1, *fine.shape[2:]), 2), torch.ones(fine[:, :1].size())
    return torch.cat([fine[:, :1].data, more, ones.to(fine.dtype) * same.type_as(fine), up_to(fine, coarse)], dim=1)


def taken_apart(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    """As networks of several branches do."""
    one, *others = (part * i for i, part in enumerate(torch.split(fine, [1, 2], 1), 1))
    parts = coarse.chunk(2, dim=1)
    assert len(parts) == 2
    return torch.cat([one, *others, up_to(fine, torch.cat([parts[1], parts[0].detach()], 1))], dim=1)


def masked(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    """Masks are read again after they were joined; `operator.and_` has its underscore for another reason."""
    high, low = fine > 0.1, fine < 0.4
    both = (high & low) | ~(high ^ low)
    return torch.cat([fine * both * high + low, up_to(fine, coarse.logical_not().type_as(fine) + coarse)], dim=1)


def of_a_type(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    """What takes the type of a map does not take its rows."""
    table = net.table[(..., *[slice(None, n) for n in fine.shape[2:]])]
    scale = table.type_as(fine).sum(0).mean() + net.coordinates.to(fine).norm()
    return torch.cat([fine * scale, up_to(fine, coarse)], dim=1)


def repeated(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    """What all rows share may be expanded, repeated and viewed once more."""
    rows, _, *sizes = fine.shape
    zeros = fine.new_zeros(rows, 1, *[1] * net.nd).expand(-1, 1, *sizes)
    ones = (torch.ones(rows, 1, *[1] * net.nd, dtype=fine.dtype) * net.scale).repeat(1, 1, *sizes)
    return torch.cat([fine[:, :1], zeros, ones, up_to(fine, coarse)], dim=1)


def viewed(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    """What is added to what all rows share is a value of its own, in memory of its own."""
    shared = (net.coordinates.expand(fine.shape[0], 2, *[1] * net.nd) * 2).view(fine.shape[0], -1).sum(1)
    return torch.cat([fine * shared.view(-1, 1, *[1] * net.nd), up_to(fine, coarse)], dim=1)


def padded_to_the_same_size(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    """As TensorFlow does, and timm after it."""
    more = [max((math.ceil(n / 2) - 1) * 2 + 3 - n, 0) for n in fine.shape[2:]]
    fine = F.pad(fine, [part for n in reversed(more) for part in (n // 2, n - n // 2)])
    return torch.cat([fine, up_to(fine, coarse)], dim=1)


def voxel_by_voxel(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
    coarse = torch.where(coarse > 0.1, coarse.square(), coarse.mul(2).sub(0.19))
    fine = torch.max(fine, fine.add(1, alpha=0.5) ** 2).to(torch.float32).double()
    return torch.cat([torch.as_tensor(fine), up_to(fine, coarse).div_(fine[:, :1].exp())], dim=1)


WAYS = [
    *(masked, of_a_type, repeated, viewed),
    *(filled, taken_apart, voxel_by_voxel, padded_to_the_same_size, padded_where_sizes_differ, cropped, resized),
    *(asked_for_types, changed_in_place, made_in_the_pass, rows_stay_open, with_coordinates, with_a_table),
]


def both(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return what incremental inference and whole passes give for six windows, and how much of the work it took."""
    nd = image.ndim - 2
    last = torch.tensor(image.shape[2:]) - 3
    corners = torch.cat([torch.zeros(1, nd).long(), last[None], (torch.rand(4, nd) * (last + 1)).long()])
    patches = torch.randn(6, image.shape[1], *[3] * nd, dtype=image.dtype)
    copies = Box(image, patches, corners.tolist()).whole()
    with torch.no_grad():
        engine = Incremental(model, image)
        parts = [engine.run(patches[rows], corners[rows]) for rows in (slice(1), slice(1, None))]
        result = torch.cat([part.whole() if isinstance(part, Box) else part for part in parts])
        return result, model(copies), engine.share


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", IMAGES, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_it_equals_whole_passes(way: Any, shape: tuple[int, ...]) -> None:
    model, image = Sized(way, len(shape) - 1).eval().double(), torch.rand(1, *shape).double()
    result, expected, _ = both(model, image)
    assert (expected - expected.mean(0)).abs().max() > 1e-6
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "way",
    [
        *(padded_where_sizes_differ, resized, with_coordinates, with_a_table, filled, taken_apart, voxel_by_voxel),
        *(masked, of_a_type, repeated),
    ],
    ids=lambda way: way.__name__,
)
def test_sizes_in_the_way_keep_the_boxes(way: Any) -> None:
    model, image = Sized(way, 2).eval().double(), torch.rand(1, 2, 64, 64).double()
    plain = Sized(lambda net, fine, coarse: torch.cat([fine, up(coarse)], 1), 2).eval().double()
    shares = [both(one, image)[2] for one in (model, plain)]
    assert shares[0] == pytest.approx(shares[1], rel=0.5)
    assert shares[0] < 0.1


def test_sizes_are_those_of_the_image() -> None:
    model = Sized(padded_where_sizes_differ, 2).eval().double()
    for size in (16, 17, 16):
        result, expected, _ = both(model, torch.rand(1, 2, size, size).double())
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "between",
    [
        lambda net, fine, coarse: fine if fine.mean() > 0 else -fine,
        lambda net, fine, coarse: fine * float(coarse.amax()),
        lambda net, fine, coarse: torch.stack([row for row in fine]),  # noqa: C416
        lambda net, fine, coarse: fine[: len(coarse)],
        lambda net, fine, coarse: fine * int(torch.nonzero(coarse > 1).shape[0]),
        lambda net, fine, coarse: fine if torch.nonzero(coarse > 1).shape[0] == 0 else -fine,
        lambda net, fine, coarse: fine if fine[fine > 0.5].numel() > 9 else -fine,
        lambda net, fine, coarse: torch.stack([fine[i] for i in range(fine.shape[0])]),
        lambda net, fine, coarse: fine * float(coarse.shape[0]),
        lambda net, fine, coarse: -fine if fine.shape[0] == 1 else fine,
        lambda net, fine, coarse: torch.stack(list(fine.split(1))),
        lambda net, fine, coarse: fine.data.mul_(2) + fine,
    ],
    ids=[
        *("branch", "number", "rows", "length", "found and asked", "found", "masked"),
        *("range of rows", "number of rows", "branch by rows", "parts by rows", "what lies in the same memory"),
    ],
)
def test_what_depends_on_voxels_or_rows_is_not_traced(between: Any) -> None:
    with pytest.raises((TypeError, RuntimeError, torch.fx.proxy.TraceError)):
        Incremental(Sized(between, 2, 3).eval(), torch.rand(1, 2, 16, 16))


def test_values_that_all_rows_share_may_come_to_stand_before_the_rows() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.query = conv(2, 2, 4, 3, padding=1), nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.new_zeros(x.shape[0], 4) + self.query[None, None]
            return tokens[0] + self.conv(x).mean((2, 3))

    result, expected, _ = both(Sequence().eval().double(), torch.rand(1, 2, 16, 16).double())
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def test_a_size_is_no_tensor() -> None:
    with pytest.raises(TypeError):
        Incremental(Sized(lambda net, fine, coarse: fine * torch.as_tensor(fine.shape[2]).sqrt(), 2, 3).eval(), IMAGE)


def test_functions_are_replaced_only_where_the_network_cannot_be_traced_without() -> None:
    def at_once(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
        now.append(torch.zeros)
        return fine

    now: list[Any] = []
    zeros = torch.zeros
    Incremental(Sized(at_once, 2, 3).eval(), IMAGE)
    assert now[:1] == [zeros]


def test_what_was_asked_is_no_longer_in_the_graph() -> None:
    engine = Incremental(Sized(padded_where_sizes_differ, 2).eval(), torch.rand(1, 2, 16, 16))
    assert not any(is_fact(node) and not node.users for node in engine.traced.graph.nodes)


def test_a_size_costs_no_whole_map(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        engine = Incremental(Sized(resized, 2).eval().double(), torch.rand(1, 2, 32, 32).double())
    wholes: list[Box] = []
    whole = Box.whole
    monkeypatch.setattr(Box, "whole", lambda box: (wholes.append(box), whole(box))[1])
    with torch.no_grad():
        engine.run(torch.rand(1, 2, 3, 3).double(), torch.tensor([[9, 9]]))
    assert len(wholes) == 1  # the output


def test_an_outline_has_the_size_type_and_device_of_whole_maps_and_no_memory() -> None:
    box = Box(torch.rand(1, 3, 9, 8, dtype=torch.float64), torch.rand(5, 3, 2, 2, dtype=torch.float64), [[1, 1]] * 5)
    outline, maps = box.outline(), box.whole()
    assert (outline.shape, outline.dtype, outline.device) == (maps.shape, maps.dtype, maps.device)
    assert outline.untyped_storage().nbytes() == 8


def test_the_tracer_lets_go_of_what_it_has_run() -> None:
    before = {id(one) for one in gc.get_objects() if type(one) is tracing._Tracer}
    gc.disable()
    try:
        Incremental(Sized(padded_where_sizes_differ, 2).eval(), torch.rand(1, 2, 16, 16))
        made = [one for one in gc.get_objects() if type(one) is tracing._Tracer and id(one) not in before]
        assert not any(values for tracer in made for values in tracer._values)
    finally:
        gc.enable()


def test_a_long_sum_of_sizes_is_asked_once() -> None:
    def doubled(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
        size = fine.shape[2]
        for _ in range(60):
            size = size + size // 2 - size // 2
        return resized(net, fine, coarse) if size > 0 else fine

    assert Incremental(Sized(doubled, 2).eval(), torch.rand(1, 2, 16, 16)).traced.graph


class NormAct(nn.BatchNorm2d):
    """As timm's: batch-norm by the function, and an activation."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x.shape) != 4 or x.device.type not in ("cpu", "cuda"):
            raise AssertionError("another branch")
        given = (self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum)
        return F.batch_norm(x, *given, eps=self.eps).relu()


@pytest.mark.parametrize("before", [True, False])
def test_batch_norm_by_the_function_keeps_the_boxes_and_is_folded(before: bool) -> None:
    norm = NormAct(3, eps=0.1)
    for values in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        values.uniform_(0.5, 2)
    around = [conv(2, 2, 3, 3, padding=1), nn.MaxPool2d(3, 1, 1)]
    layers = [around[0], norm, around[1]] if before else [around[0], around[1], norm]
    model = nn.Sequential(*layers, conv(2, 3, 2, 3, padding=1)).eval().double()
    result, expected, share = both(model, torch.rand(1, 2, 64, 64).double())
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    assert share < 0.1
    graph = Incremental(model, torch.rand(1, 2, 16, 16).double()).traced.graph
    assert any(node.target is F.batch_norm for node in graph.nodes) is not before


def test_batch_norm_by_the_function_that_looks_at_all_images_is_run_whole() -> None:
    class OfAll(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scale = conv(2, 2, 3, 3, padding=1), nn.Parameter(torch.rand(3))

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(self.conv(x), None, None, self.scale, training=True)

    model, image = OfAll().eval().double(), torch.rand(1, 2, 16, 16).double()
    patches, corners = torch.rand(1, 2, 3, 3).double(), torch.tensor([[4, 5]])
    with torch.no_grad():
        result, expected = Incremental(model, image).run(patches, corners), model(Box(image, patches, [[4, 5]]).whole())
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


class Named(nn.Module):
    """Layers with the names of methods."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("add", "view", "split", "repeat", "detach", "new_zeros"):
            self.add_module(name, nn.InstanceNorm2d(2, affine=True) if name == "add" else nn.Conv2d(2, 2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def test_a_layer_may_have_the_name_of_a_method() -> None:
    result, expected, _ = both(Named().eval().double(), torch.rand(1, 2, 24, 24).double())
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def replaced_while_it_is_traced() -> list[Any]:
    torchs = [getattr(torch, name) for name in ("as_tensor", "zeros", "ones", "full")]
    return [torch.jit.isinstance, nn.Module.__call__, *torchs]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_nothing_is_left_behind(way: Any) -> None:
    model, functions = Sized(way, 2).eval().double(), replaced_while_it_is_traced()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    texts = set(linecache.cache)
    Incremental(model, torch.rand(1, 2, 16, 16).double())
    assert not [text for text in set(linecache.cache) - texts if "eval_with_key" in text]  # it would grow for ever
    assert replaced_while_it_is_traced() == functions
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_is_left_behind_by_a_failure() -> None:
    functions = replaced_while_it_is_traced()

    def fails(net: Sized, fine: Tensor, coarse: Tensor) -> Tensor:
        raise RuntimeError(f"{len(fine.shape)} axes")

    with pytest.raises(RuntimeError, match="4 axes"):
        Incremental(Sized(fails, 2).eval(), torch.rand(1, 2, 16, 16))
    assert replaced_while_it_is_traced() == functions
