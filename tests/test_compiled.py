"""`compiled=`: the same maps, one shape, and the network as it is where compiling does not work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import DEVICES
from torch import Tensor, nn

import medviz

# torch warns of its own parts when it compiles for the first time
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
IMAGE = torch.rand(2, 1, 12, 13, generator=torch.Generator().manual_seed(0))
METHODS = ["rise:n_masks=13,cells=3,seed=0", "occlusion:mask_size=5,overlap=0.5,incremental=False"]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 3)).train()


class Shapes:
    """Stands for `torch.compile`: a model that notes what it is given, and may do something to its output."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.modes: list[Any] = []
        self.change = change

    def __call__(self, model: nn.Module, mode: str | None, dynamic: bool = False) -> nn.Module:
        self.modes.append(mode)
        shapes = self

        class Noted(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                shapes.seen.append(tuple(x.shape))
                return shapes.change(model(x))

        return Noted()


def explain(method: str, device: str = "cpu", **options: Any) -> Tensor:
    return medviz.explain(network().to(device), IMAGE, method, 1, batch_size=4, **options).values


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", DEVICES)
def test_the_map_is_the_same(method: str, device: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level("INFO", "medviz")
    # what is traced, and how it is called, without the minutes of a C++ compiler
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    expected = explain(method, device)
    result = explain(method, device, compiled=True)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert "not compiled" not in caplog.text


@pytest.mark.parametrize("method", METHODS)
def test_there_is_one_shape_for_the_compiler(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Shapes()
    monkeypatch.setattr(torch, "compile", compiler)
    torch.testing.assert_close(explain(method, compiled="reduce-overhead"), explain(method), rtol=1e-6, atol=1e-7)
    assert set(compiler.seen) == {(4, 1, 12, 13)}
    assert len(compiler.seen) > 3
    assert set(compiler.modes) == {"reduce-overhead"}


def test_what_the_model_takes_beside_the_image_is_filled_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.inner(x + shift[:, None, None, None])

    def explained(compiled: bool) -> Tensor:
        shift = medviz.per_image(torch.tensor([0.0, 1.0]))
        options: dict[str, Any] = {"batch_size": 4, "compiled": compiled, "model_args": (shift,)}
        return medviz.explain(Shifted(), IMAGE, "rise:n_masks=14,cells=3,seed=0", 1, **options).values

    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    torch.testing.assert_close(explained(True), explained(False), rtol=1e-6, atol=1e-7)


def test_a_single_pass_and_gradients_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Shapes()
    monkeypatch.setattr(torch, "compile", compiler)
    for method in ("gradcam", "vanillagrad", "smoothgrad:n_samples=9", "rise:n_masks=2,seed=0"):
        explain(method, compiled=True)
    assert not compiler.seen


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_where_it_gives_something_else_the_network_runs_as_it_is(
    factor: float, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(torch, "compile", Shapes(lambda output: output * factor))
    assert torch.equal(explain(METHODS[0], compiled=True), explain(METHODS[0]))
    assert "not compiled: the compiled model's output differs by" in caplog.text


def test_where_it_fails_the_network_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def fail(output: Tensor) -> Tensor:
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", Shapes(fail))
    assert torch.equal(explain(METHODS[0], compiled=True), explain(METHODS[0]))
    assert caplog.text.count("not compiled: RuntimeError: no C++ compiler") == 1
    assert "long story" not in caplog.text


def test_with_too_little_memory_the_shape_becomes_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(output: Tensor) -> Tensor:
        if len(output) > 2:
            raise torch.OutOfMemoryError
        return output

    compiler = Shapes(fail)
    monkeypatch.setattr(torch, "compile", compiler)
    torch.testing.assert_close(explain(METHODS[0], compiled=True), explain(METHODS[0]), rtol=1e-6, atol=1e-7)
    assert {shape[0] for shape in compiler.seen} == {4, 2}


def test_the_model_is_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    medviz.explain(model, IMAGE, METHODS[0], 1, batch_size=4, compiled=True)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


@pytest.mark.parametrize("compiled", [1, "", None, ["default"], "fastest"])
def test_wrong_values_are_refused(compiled: Any) -> None:
    with pytest.raises(ValueError, match="`compiled` is True, False or a mode"):
        explain(METHODS[0], compiled=compiled)
