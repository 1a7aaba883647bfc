"""However a call ends, the model, the image and the global generators are as they were before it."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks import LAYERED, OURS, explain, images, seeded
from torch import Tensor, nn

from medviz import tensors
from medviz.probe import gradients

METHODS: dict[str, dict[str, Any]] = {
    "vanillagrad": {},
    "inputxgradient": {},
    "smoothgrad": {"n_samples": 3},
    "guidedbackprop": {},
    "guidedbackpropsmooth": {"n_samples": 3},
    "integratedgradients": {"steps": 3},
    "occlusion": {"mask_size": 4},
    "rise": {"n_masks": 5},
}
AFTER: list[int] = []  # forward passes that are still to come before something happens


class Fragile(nn.Module):
    """Changes what it can while it runs; fails, or is interrupted, in a pass that the test names."""

    def __init__(self, during: Callable[[], None]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.register_buffer("runs", torch.zeros(()))
        self.during = during
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(1.0)
        self.runs += 1
        self.seen = x.detach()
        torch.rand(1), np.random.rand(), random.random()
        x = self.drop(self.act(self.norm(self.conv(x))))
        AFTER[0] -= 1
        if AFTER[0] < 0:
            self.during()
        return self.head(x.mean((2, 3)))


def test_no_method_is_forgotten() -> None:
    assert set(METHODS) == {entry.name for entry in OURS} - set(LAYERED), "those that read layers have their own tests"


def nothing() -> None:
    """The call succeeds."""


def fail() -> None:
    raise RuntimeError("the model broke")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # the handler runs between two bytecodes
        pass


@pytest.fixture(autouse=True)
def _default_interrupts() -> Iterator[None]:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def state(model: nn.Module, image: Tensor) -> dict[str, Any]:
    return {
        "values": {name: value.tolist() for name, value in model.state_dict().items()},
        "training": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [p.grad is not None and p.grad.tolist() for p in model.parameters()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "inplace": model.act.inplace,  # type: ignore[union-attr]
        "hooks": [[len(v) for k, v in vars(m).items() if "hooks" in k] for m in model.modules()],
        "image": (image.tolist(), image.requires_grad, image.grad is not None, image._version),
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
    }


@pytest.mark.parametrize("passes", [0, 2])
@pytest.mark.parametrize(
    ("during", "target", "error"),
    [
        (nothing, 1, None),
        (nothing, 9, ValueError),
        (nothing, lambda out: out, ValueError),
        (fail, 1, RuntimeError),
        (interrupt, 1, KeyboardInterrupt),
    ],
    ids=["success", "no such class", "bad callable", "exception", "Ctrl-C"],
)
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_behind(method: str, during: Any, target: Any, error: Any, passes: int) -> None:
    """The pass in which it happens is the first, or one under the method's own way of running."""
    model = Fragile(during).train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    AFTER[:] = [99]
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    model.zero_grad(set_to_none=False)
    image = images(2, 1, 8, 8).requires_grad_()
    before = state(model, image)
    AFTER[:] = [passes]
    if error is None:
        explain(method, model, image, target, batch_size=1, **METHODS[method])
    else:
        with pytest.raises(error):
            explain(method, model, image, target, batch_size=1, **METHODS[method])
    after = state(model, image)
    assert [part for part in before if before[part] != after[part]] == []
    if error is KeyboardInterrupt or during is fail:
        assert AFTER[0] == -1  # it did happen, once


BAD: list[tuple[Any, type[Exception], str]] = [
    (torch.zeros(1, 1, 8, 8, dtype=torch.int64), TypeError, "networks need floating point"),
    (torch.zeros(1, 8, 8), ValueError, r"expected \(B, C, H, W\)"),
    (torch.zeros(0, 1, 8, 8), ValueError, "`image` is empty"),
    (torch.full((1, 1, 8, 8), float("nan")), ValueError, "NaN or infinite"),
    ("scan.nii", TypeError, "`image` is a str"),
]


@pytest.mark.parametrize(("image", "error", "message"), BAD, ids=["integers", "no batch", "empty", "nan", "a path"])
@pytest.mark.parametrize("method", METHODS)
def test_bad_images(method: str, image: Any, error: type[Exception], message: str) -> None:
    AFTER[:] = [99]
    with pytest.raises(error, match=message):
        explain(method, Fragile(nothing), image, 1, **METHODS[method])


@pytest.mark.parametrize("method", METHODS)
def test_a_network_whose_output_is_not_finite(method: str) -> None:
    model = Fragile(nothing)
    AFTER[:] = [99]
    nn.init.constant_(model.head.bias, float("inf"))
    with pytest.raises(ValueError, match="the model's output holds 3 values of 3 that are NaN or infinite"):
        explain(method, model, images(1, 1, 8, 8), 1, **METHODS[method])


def test_one_infinite_gradient_of_several_is_an_error() -> None:
    x, y = torch.ones(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    with pytest.raises(ValueError, match="gradient of the score holds values that are NaN or infinite"):
        gradients.gradients((x + y.sqrt()).sum(1), [x, y], half=False)


def test_a_device_whose_memory_is_full_is_not_taken_for_one_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    tensors._has_float64.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", full)
        with pytest.raises(torch.OutOfMemoryError):
            tensors.precise(torch.ones(1))
    assert tensors.precise(torch.ones(1)).dtype == torch.float64
