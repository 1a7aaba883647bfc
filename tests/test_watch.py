"""Every operation that a pass with the channels last lets through gives the same in both orders."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import images
from torch import Tensor

from medviz.incremental.layout import channels_last
from medviz.probe import watch
from medviz.probe.watch import UnknownOperationError, Watch

Call = Callable[[Tensor], Any]
_SIZE = {4: (2, 6, 8, 8), 5: (2, 6, 6, 6, 6)}


def _weight(nd: int, *channels: int) -> Tensor:
    return images(channels[0], channels[1], *[3] * nd, seed=1)


def _method(name: str, *args: Any) -> Call:
    return lambda x: getattr(x, name)(*args)


def _function(name: str, *args: Any, **kwargs: Any) -> Call:
    return lambda x: getattr(F, name)(x, *args, **kwargs)


def _with_itself(name: str) -> Call:
    return lambda x: getattr(x, name)(x * 0.5 + 0.1)


_COMPARED = "gt ge lt le eq ne __eq__"
_WHERE = "max min argmax argmin"  # of equal ones the same, wherever they lie
_LOGICAL = "logical_and logical_or __and__ __or__"
_PLAIN = "size dim numel __len__ is_floating_point is_complex clone detach float neg exp abs"
_PLAIN += " square tanh sigmoid sigmoid_ tanh_ mean sum unbind flatten ravel contiguous zero_ relu_ amax amin cpu"
_PLAIN += " std var norm max min any all logical_not half double bool long sign round erf sin cos isnan"
_PLAIN += " isfinite"
_TWO = "add sub mul div true_divide minimum maximum add_ sub_ mul_ div_ copy_ view_as reshape_as expand_as"
_ACTIVATIONS = "relu relu6 leaky_relu elu selu celu silu mish hardswish hardsigmoid hardtanh gelu softplus leaky_relu_"
_ACTIVATIONS += " elu_ hardtanh_"
_DROPOUTS = "dropout alpha_dropout feature_alpha_dropout"
_MADE = "zeros ones arange tensor as_tensor"

EITHER: dict[str, Call] = {  # of maps with two axes and with three
    **{name: _method(name) for name in _PLAIN.split()},
    **{name: _with_itself(name) for name in _TWO.split()},
    **{name: _function(name) for name in _ACTIVATIONS.split()},
    **{name: _function(name, 0.5, False) for name in _DROPOUTS.split()},
    **{name: _method(name, -0.5, 0.5) for name in ("clamp", "clamp_")},
    **{name: _method(name, 0.1) for name in ("clamp_min", "clamp_max", "fill_")},
    **{name: lambda x, name=name: getattr(torch, name)(len(x)) for name in _MADE.split()},  # type: ignore[misc]
    **{name: lambda x, name=name: getattr(torch, name)(x) for name in ("zeros_like", "ones_like")},  # type: ignore[misc]
    **{name: lambda x, name=name: getattr(x, name)(0.25 * x.roll(1, 1)) for name in _COMPARED.split()},  # type: ignore[misc]
    **{name: lambda x, name=name: getattr(x > 0, name)(x < 1) for name in _LOGICAL.split()},  # type: ignore[misc]
    **{name: lambda x, name=name: getattr(x, name)((2, 3)) for name in ("new_zeros", "new_ones")},  # type: ignore[misc]
    "argmax": lambda x: x.sign().argmax(),
    "argmin": lambda x: x.sign().argmin(),
    "__invert__": lambda x: ~(x > 0),
    "__bool__": lambda x: bool(x.sum() > 0),
    "__int__": lambda x: int(x.sum() * 9),
    "__float__": lambda x: float(x.sum()),
    "__rpow__": lambda x: 2**x,
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
    "addcmul": lambda x: x.addcmul(x, x * 2),
    "log_sigmoid": lambda x: F.logsigmoid(x),
    "normalize": lambda x: F.normalize(x),
    "where": lambda x: torch.where(x > 0, x, 0.1),
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.1),
    "type_as": lambda x: x.type_as(torch.zeros(1, dtype=torch.float64)),
    "flip": lambda x: x.flip(1, -1),
    "roll": lambda x: x.roll((1, 2), (1, -1)),
    "to": lambda x: x.to(torch.float64),
    "item": lambda x: x.sum().item(),
    "full": lambda x: torch.full((2, 3), len(x)),
    "full_like": lambda x: torch.full_like(x, 0.5),
    "sqrt": lambda x: x.abs().sqrt(),
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "log": lambda x: (x.abs() + 1).log(),
    "pow": lambda x: x.pow(2),
    "__rsub__": lambda x: 1 - x,
    "__rdiv__": lambda x: 1 / (x.abs() + 1),
    "prelu": lambda x: F.prelu(x, torch.linspace(0, 1, 6)),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "linear": lambda x: F.linear(x, images(5, x.shape[-1])),
    "matmul": lambda x: x.matmul(x.transpose(-1, -2)),
    "bmm": lambda x: x.flatten(2).bmm(x.flatten(2).transpose(1, 2)),
    "einsum": lambda x: torch.einsum("bc...,dc->bd...", x, images(3, 6)),
    "conv1d": lambda x: F.conv1d(x.flatten(2), _weight(1, 4, 6)),
    "conv_transpose1d": lambda x: F.conv_transpose1d(x.flatten(2), _weight(1, 6, 4)),
    "dropout1d": lambda x: F.dropout1d(x.flatten(2), 0.5, False),
    "batch_norm": lambda x: F.batch_norm(x, torch.linspace(-1, 1, 6), torch.linspace(0.5, 2, 6)),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.3),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "cat": lambda x: torch.cat([x, x * 2], 1),
    "concat": lambda x: torch.concat([x, x * 2], 2),
    "concatenate": lambda x: torch.concatenate([x, x * 2], 0),
    "stack": lambda x: torch.stack([x, x * 2], 1),
    "chunk": lambda x: x.chunk(2, 1),
    "split": lambda x: x.split(4, 1),
    "narrow": lambda x: x.narrow(1, 1, 3),
    "select": lambda x: x.select(1, 2),
    "__getitem__": lambda x: x[:, [0, 3], 1:],
    "__setitem__": lambda x: x.__setitem__((slice(None), 1), x[:, 2] * 2),
    "repeat": lambda x: x.repeat(1, 2, *[1] * (x.ndim - 2)),
    "view": lambda x: x.view(*x.shape[:2], -1),
    "permute": lambda x: x.permute(0, *range(2, x.ndim), 1),
    "transpose": lambda x: x.transpose(1, 2),
    "movedim": lambda x: x.movedim(1, -1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(2),
    "expand": lambda x: x[:, :1].expand(x.shape),
    "unflatten": lambda x: x.unflatten(1, (2, 3)),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
}


_SHUFFLES: dict[str, Call] = {
    "pixel_shuffle": lambda x: F.pixel_shuffle(x[:, :4], 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 3),
}


def _of_axes(nd: int) -> dict[str, Call]:
    """What has a name of its own for maps with so many axes."""
    bilinear = "bilinear" if nd == 2 else "trilinear"
    return {
        f"conv{nd}d": _function(f"conv{nd}d", _weight(nd, 4, 6), stride=2, padding=1),
        f"conv_transpose{nd}d": _function(f"conv_transpose{nd}d", _weight(nd, 6, 4), stride=2),
        f"max_pool{nd}d": _function(f"max_pool{nd}d", 3, 2, 1),
        f"_max_pool{nd}d": _function(f"_max_pool{nd}d", 2),
        f"avg_pool{nd}d": _function(f"avg_pool{nd}d", 3, 2, 1),
        f"adaptive_avg_pool{nd}d": _function(f"adaptive_avg_pool{nd}d", 3),
        f"adaptive_max_pool{nd}d": _function(f"adaptive_max_pool{nd}d", 3),
        f"_adaptive_max_pool{nd}d": _function(f"_adaptive_max_pool{nd}d", 1),
        "pow": lambda x: x**2,
        **{name: lambda x, name=name: getattr(x.sign(), name)(1) for name in _WHERE.split()},  # type: ignore[misc]
        "norm": lambda x: x.norm(dim=1, keepdim=True),
        "any": lambda x: (x > 1).any(1),
        "all": lambda x: (x < 1).all(-1),
        "grid_sample": lambda x: F.grid_sample(x, images(2, *[3] * nd, nd) * 0.5, align_corners=False),
        "affine_grid": lambda x: F.affine_grid(
            x[:, :nd, 0, : nd + 1].reshape(2, nd, nd + 1, -1)[..., 0], [2, 1, *[4] * nd], False
        ),
        **(_SHUFFLES if nd == 2 else {}),
        "interpolate": lambda x: F.interpolate(x, size=[5] * nd, mode=bilinear, align_corners=True),
        "pad": lambda x: F.pad(x, [1] * (2 * nd), mode="reflect"),
        "batch_norm": lambda x: torch.batch_norm(x, None, None, torch.zeros(6), torch.ones(6), False, 0.1, 1e-5, True),
        f"dropout{nd}d": _function(f"dropout{nd}d", 0.5, False),
        "dropout": lambda x: torch.dropout(x, 0.5, False),
        "__getitem__": lambda x: x[0, 1:3, ..., ::2],
        "cat": lambda x: torch.cat([x, x.flip(-1)[:, :2]], 1),
    }


CASES = [(nd, name, call) for nd in (2, 3) for calls in (EITHER, _of_axes(nd)) for name, call in calls.items()]


@pytest.mark.parametrize("which", [f"{nd}-D {name} {i}" for i, (nd, name, _) in enumerate(CASES)])
def test_what_is_let_through_gives_the_same(which: str) -> None:
    nd, name, call = CASES[int(which.split()[-1])]
    usual = images(*_SIZE[nd + 2])
    last = channels_last(usual)
    assert usual.stride() != last.stride()
    made = []
    for maps in (usual, last):
        made.append(_tensors(call(maps), maps))
    assert len(made[0]) == len(made[1])
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    called = _Named()
    with called:
        call(images(*_SIZE[nd + 2]))
    # some have another name in other versions of PyTorch
    assert {name, name.lstrip("_")} & called.names, "the case does not call what it is named after"


class _Named(torch.overrides.TorchFunctionMode):
    """Notes what is called, by the names under which it is known."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in watch._RULES:
            self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def _tensors(value: Any, maps: Tensor) -> list[Any]:
    """Return what an operation has made, and what it was called on, which it may have written to."""
    made = list(value) if isinstance(value, tuple | list) else [value]
    return [*(one if one is None or isinstance(one, Tensor) else torch.tensor(one) for one in made), maps]


def test_nothing_is_let_through_that_is_not_tried_here() -> None:
    known = {func.__name__ for func in watch._RULES if not inspect.ismethodwrapper(func)}
    assert known - {name for _, name, _ in CASES} == set()
    assert len(known) > 100


@pytest.mark.parametrize("name", ["stride", "storage_offset", "is_contiguous", "data_ptr", "untyped_storage", "numpy"])
def test_what_tells_the_order_is_not_let_through(name: str) -> None:
    maps = torch.rand(2)
    with pytest.raises(UnknownOperationError, match=name), Watch():
        getattr(maps, name)()


def test_attributes_are_let_through_and_what_is_set_is_not() -> None:
    maps = torch.rand(2, 3)
    with Watch():
        assert maps.shape == (2, 3)
        assert (maps.ndim, maps.device.type, maps.requires_grad, maps.is_leaf) == (2, "cpu", False, True)
    with pytest.raises(UnknownOperationError, match="data"), Watch():
        maps.data = maps * 2
    with pytest.raises(UnknownOperationError, match="add"), Watch():
        torch.add(maps, maps, out=maps)


def test_writing_is_stopped_where_others_may_see_it_only() -> None:
    maps = torch.rand(2, 3, 4, 4)
    with Watch():
        maps.add_(1)
        F.relu(maps, True)
        flat = maps.flatten(1)
        (flat * 2).add_(1)
        F.relu(flat)
    for writing in (lambda x, y: x.add_(1), lambda x, y: y.add_(1), lambda x, y: F.relu(x[:, 1], inplace=True)):
        with pytest.raises(UnknownOperationError), Watch():
            writing(maps, maps.reshape(2, -1))
    with Watch():  # memory that is gone does not count, nor what takes its place
        for _ in range(200):
            (maps + 1).flatten(1)
            for made in [maps * 2 for _ in range(5)]:
                made.mul_(2)
    assert watch.unwatched() is watch._nothing, "the pass is over"


def test_only_weights_that_lie_otherwise_in_the_other_order_bring_maps_into_the_usual_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "_LARGE", 12)
    maps = channels_last(images(1, 4, 6, 6))
    weights = [_weight(2, 3, 4), images(3, 4, 1, 1), images(6, 4, 1, 1)]
    with Watch():
        made = [F.conv2d(maps, weight) for weight in weights]
    assert [one.is_contiguous() for one in made] == [True, False, True]


def test_a_true_number_says_in_place_too() -> None:
    maps = torch.rand(2, 3, 4, 4)
    with Watch():
        flat = maps.flatten(1)
        F.relu(flat, False)
        with pytest.raises(UnknownOperationError, match="relu"):
            F.relu(maps, inplace=1)  # type: ignore[arg-type]


def test_writing_over_what_is_read_is_stopped() -> None:
    """PyTorch does not say what comes out, and it depends on the order."""
    maps = torch.rand(2, 3, 4, 4)
    with Watch():
        maps.add_(maps)
        maps[..., 1:] = maps[..., :-1] * 1
    with pytest.raises(UnknownOperationError, match="add_"), Watch():
        maps[..., 1:].add_(maps[..., :-1])
    with pytest.raises(UnknownOperationError, match="__setitem__"), Watch():
        maps[..., 1:] = maps[..., :-1]


def test_what_tells_a_view_is_not_let_through() -> None:
    maps = torch.rand(2, 3, 4, 4)
    with pytest.raises(UnknownOperationError, match="_base"), Watch():
        assert maps.flatten(1)._base is maps


def test_smoothed_resizing_is_not_let_through() -> None:
    maps = images(1, 2, 64, 64)
    with pytest.raises(UnknownOperationError, match="interpolate"), Watch():
        F.interpolate(maps, size=(5, 1), mode="bilinear", antialias=True)


def test_a_pass_in_the_course_of_another_one() -> None:
    maps = torch.rand(2, 3, 4, 4)
    with Watch() as outer:
        maps.flatten(1)
        with Watch():
            assert watch._watch() is not outer
        assert watch._watch() is outer
        with pytest.raises(UnknownOperationError, match="a map of which there is a view"), watch.unwatched():
            watch.stop_where_shared(maps)
    assert watch._watch() is None
