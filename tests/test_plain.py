"""Sequences that are known before they run are not watched inside; and every other one is."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import conv, explain, images, seeded
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import medviz
from medviz.probe import plain
from medviz.probe.watch import UnknownOperationError, Watch

IMAGE = images(1, 2, 6, 6)
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Seen(Watch):
    """Notes what it is asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(list(model.modules()))
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs)


class Net(nn.Module):
    """Calls a sequence between two operations of its own.

    Args:
        nd: spatial axes.
        step: what it does before, with itself, where it is watched.
    """

    def __init__(self, nd: int = 2, step: Callable[[Net], None] | None = None) -> None:
        super().__init__()
        self.body: Any = nn.Sequential(
            conv(nd, 2, 4, 3, padding=1), _NORM[nd](4), nn.ReLU(True), conv(nd, 4, 2, 3, bias=False), nn.SiLU()
        )
        self.step = step
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.step is not None and torch._C._len_torch_function_stack():
            self.step(self)
        made: Tensor = self.body(x.abs())
        return made.square()


def _seen(model: nn.Module, image: Tensor = IMAGE) -> list[str]:
    """Return what a watch sees of a pass."""
    with torch.no_grad():
        expected = model(image)
        with (seen := Seen(model)):
            made = model(image)
    assert torch.equal(made, expected)
    assert type(model.get_submodule("body")) is nn.Sequential
    return seen.names


@pytest.mark.parametrize("nd", [2, 3])
def test_a_plain_sequence_is_not_watched_inside(nd: int) -> None:
    model = Net(nd).eval()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert _seen(model, images(1, 2, *[6] * nd)) == ["abs", "square"]
    assert before == {name: vars(module) for name, module in model.named_modules()}


class _Own(nn.ReLU):
    """Another layer than PyTorch's."""


class _OwnWeight(nn.Parameter):
    """Another weight than PyTorch's."""


class _OwnTensor(Tensor):
    """Notes what is done with it."""

    names: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.names.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs)


def _replace(position: int, layer: nn.Module) -> Callable[[Net], None]:
    def change(model: Net) -> None:
        model.body[position] = layer

    return change


def _without_statistics(model: Net) -> None:
    model.body[1] = nn.BatchNorm2d(4, track_running_stats=False).eval()


def _made_weight(model: Net) -> None:
    weight = model.body[0].weight.detach()
    del model.body[0].weight
    model.body[0].weight = weight


def _own_weight(model: Net) -> None:
    model.body[0].weight = _OwnWeight(model.body[0].weight.detach())


def _large(model: Net) -> None:
    model.body[3] = nn.Conv2d(4, 2**14, 3)
    model.body[4] = nn.ReLU()


def _few(model: Net) -> None:
    model.body = model.body[:2]


def _own_forward(model: Net) -> None:
    forward = model.body[2].forward
    model.body[2].forward = lambda x: forward(x)


CHANGES: dict[str, Callable[[Net], Any]] = {  # after which it is watched
    "hook": lambda model: model.body[2].register_forward_hook(lambda *_: None),
    "pre-hook": lambda model: model.body[0].register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda model: model.body[1].register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda model: model.body[1].register_full_backward_pre_hook(lambda *_: None),
    "forward": _own_forward,
    "subclass": _replace(2, _Own()),
    "dropout": _replace(2, nn.Dropout(0.5).eval()),
    "nested": _replace(2, nn.Sequential(nn.ReLU())),
    "first in place": _replace(0, nn.ReLU(True)),
    "made weight": _made_weight,
    "method of a layer": lambda model: setattr(model.body[0], "_conv_forward", model.body[0]._conv_forward),
    "call of a layer": lambda model: setattr(model.body[2], "_call_impl", model.body[2]._call_impl),
    "check of a layer": lambda model: setattr(model.body[1], "_check_input_dim", lambda x: None),
    "large weight": _large,
    "few layers": _few,
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_sequence_is_watched(change: str) -> None:
    model = Net()
    if change == "first in place":  # which takes two channels, as the norm does
        model.body[1] = nn.BatchNorm2d(2)
        model.body[3] = nn.Conv2d(2, 2, 3)
    CHANGES[change](model)
    assert "batch_norm" in _seen(model.eval())


@pytest.mark.parametrize("change", [lambda model: model.body[1].train(), _without_statistics], ids=["train", "none"])
def test_a_norm_by_the_batch_is_watched_and_stops_the_pass(change: Callable[[Net], None]) -> None:
    model = Net().eval()
    change(model)
    with pytest.raises(UnknownOperationError, match="batch_norm"), Watch(model.modules()):
        model(IMAGE)
    assert type(model.body) is nn.Sequential


def test_a_sequence_with_a_forward_of_its_own_keeps_it() -> None:
    model = Net().eval()
    model.body.forward = own = lambda x: nn.Sequential.forward(model.body, x)
    assert "batch_norm" in _seen(model)
    assert model.body.forward is own


def _swapped_weight(model: Net) -> None:
    model.body[0].weight = _OwnWeight(model.body[0].weight.detach())


def _swapped_statistics(model: Net) -> None:
    model.body[1].running_var = model.body[1].running_var.as_subclass(_OwnTensor)


_BEFORE = ("first in place", "few layers", "large weight", "dropout")  # these would change what comes out
IN_THE_PASS = {
    **{name: change for name, change in CHANGES.items() if name not in _BEFORE},
    "own weight": _swapped_weight,
    "own statistics": _swapped_statistics,
}


@pytest.mark.parametrize("change", IN_THE_PASS)
def test_what_the_network_changes_in_the_pass_is_watched(change: str) -> None:
    assert "batch_norm" in _seen(Net(step=IN_THE_PASS[change]).eval())


def test_training_in_the_course_of_the_pass_stops_it() -> None:
    model = Net(step=lambda net: net.body[1].train()).eval()
    with pytest.raises(UnknownOperationError, match="batch_norm"), Watch(model.modules()):
        model(IMAGE)


def test_hooks_on_all_modules_and_patched_classes_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net().eval()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "batch_norm" in _seen(model)
    finally:
        handle.remove()
    forward = nn.ReLU.forward
    with monkeypatch.context() as patch:
        patch.setattr(nn.ReLU, "forward", lambda self, x: forward(self, x))
        assert "batch_norm" in _seen(model)
    step = nn.Conv2d._conv_forward
    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "_conv_forward", lambda self, *given: step(self, *given))
        assert "batch_norm" in _seen(model)
    relu = F.relu
    with monkeypatch.context() as patch:
        patch.setattr(F, "relu", lambda *given, **named: relu(*given, **named))
        with pytest.raises(UnknownOperationError), Watch(model.modules()):
            model(IMAGE)
    assert "batch_norm" not in _seen(model)


class _Noting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_modes_of_others_see_every_operation() -> None:
    model, image = Net().eval(), IMAGE
    with _Noting() as outside:
        model(image)
    alone, outside.names = outside.names, []
    with outside, Watch(model.modules()):
        model(image)
    assert [name for name in outside.names if name != "numel"] == alone, "we ask for the size of weights"
    inside = _Noting()

    def under_a_mode(net: Net) -> None:
        inside.__enter__()  # type: ignore[no-untyped-call]

    model.step = under_a_mode
    with Watch(model.modules()):
        model(image)
        inside.__exit__(None, None, None)  # type: ignore[no-untyped-call]
    assert "batch_norm" in inside.names


def test_a_tensor_of_another_kind_is_told_of_every_operation() -> None:
    model = Net().eval()
    _OwnTensor.names.clear()
    image = IMAGE.as_subclass(_OwnTensor)
    with Watch(model.modules()):
        model(image)
    assert "batch_norm" in _OwnTensor.names


def test_another_thread_may_use_the_network_meanwhile() -> None:
    model, image = Net().eval(), IMAGE
    expected, made, noting = model(image), [], _Noting()

    def elsewhere() -> None:
        with noting:
            made.append(model(image))

    with Watch(model.modules()):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert torch.equal(made[0], expected)
    assert "batch_norm" in noting.names


def test_nothing_is_left_where_a_layer_fails() -> None:
    model = Net().eval()
    wrong = images(1, 3, 6, 6)
    with pytest.raises(RuntimeError, match="channels"), Watch(model.modules()):
        model(wrong)
    assert type(model.body) is nn.Sequential
    with torch.no_grad(), (seen := Seen(model)):
        with contextlib.suppress(RuntimeError):
            model(wrong)
        IMAGE.add(1)
    assert seen.names[-1] == "add", "what comes after the error is watched"


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_what_is_copied_in_a_pass_is_an_ordinary_sequence(copied: Callable[[Any], Any]) -> None:
    model = Net().eval()
    made: list[Any] = []

    def step(net: Net) -> None:
        with torch._C.DisableTorchFunction():  # as in another thread, which is not watched
            made.append(copied(net.body))

    model.step = step
    with Watch(model.modules()):
        model(IMAGE)
    assert type(made[0]) is nn.Sequential
    assert vars(made[0]).keys() == vars(model.body).keys()
    short = copied(model.body)
    short._modules = dict(list(short._modules.items())[:1])
    assert torch.equal(short(IMAGE), model.body[0](IMAGE))


def test_a_part_that_is_copied_in_a_pass_runs_its_own_layers() -> None:
    made: list[Tensor] = []

    def step(net: Net) -> None:
        short = copy.copy(net.body)
        short._modules = dict(list(net.body._modules.items())[:1])
        made.append(short(IMAGE))

    model = Net(step=step).eval()
    with torch.no_grad(), Watch(model.modules()):
        model(IMAGE)
    with torch.no_grad():
        assert torch.equal(made[0], model.body[0](IMAGE))


def test_two_networks_may_share_a_part_in_two_threads() -> None:
    one, other = Net().eval(), Net().eval()
    other.body = one.body
    opened = medviz.Probe(other, IMAGE)
    with Watch(one.modules()), torch._C.DisableTorchFunction():  # as in another thread, which is not watched
        opened.__enter__()
    opened.__exit__(None, None, None)
    assert type(one.body) is nn.Sequential
    assert "batch_norm" not in _seen(one)


def test_a_watch_does_not_hold_the_network() -> None:
    gc.collect()
    gc.disable()
    try:
        model = Net().eval()
        gone = weakref.ref(model.body)
        with Watch(model.modules()):
            model(IMAGE)
        del model
        assert gone() is None
    finally:
        gc.enable()


class Measuring(nn.Module):
    """A network of which somebody has hooked a layer in a sequence."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        super().__init__()
        self.body = Net().body
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
        seeded(self)
        self.body[1].register_forward_hook(hook)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.body(x))
        return made


def test_a_hook_that_counts_on_the_order_gets_the_usual_one() -> None:
    asked: list[bool] = []

    def hook(module: nn.Module, given: Any, made: Tensor) -> Tensor:
        asked.append(made.is_contiguous())
        return made.as_strided(made.shape, torch.empty(made.shape, device="meta").stride())

    image = images(1, 2, 128, 128)
    got = explain("gradcam", Measuring(hook).eval(), image, 1, layer="body.4")
    assert asked == [True]
    last = explain("gradcam", Measuring(lambda *_: None).eval(), image, 1, layer="body.4")
    torch.testing.assert_close(got.values, last.values, rtol=1e-5, atol=1e-6)


def test_each_kind_of_layer_is_let_through_by_the_watch_as_well() -> None:
    """Else a sequence would do something unwatched that is not known to be the same in both orders."""
    for kind in plain._LAYERS:
        given = (2, 2, 3) if kind in plain._CONVOLUTIONS else (2,) if kind in plain._NORMS else ()
        layer, image = kind(*given).eval(), images(1, 2, *[4] * (3 if "3d" in kind.__name__ else 2))
        with Watch():
            layer(image)
