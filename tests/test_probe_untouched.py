"""The model is, after every way a call can end, what it was before it."""

from __future__ import annotations

import functools
import os
import random
import signal
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import LAYERED
from torch import Tensor, nn

import medviz
from medviz.probe import guard
from medviz.probe.guard import in_turn, interrupts_deferred, untouched


class Busy(nn.Module):
    """A network that changes whatever a network can change while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.register_buffer("runs", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(2))
        self.calls = 0
        self.log: list[Any] = []
        self.cache: dict[str, Tensor] = {}
        self.deep: dict[str, Any] = {"a": [], "b": (deque(maxlen=3), defaultdict(list))}
        self.counter = torch.zeros(1)
        self.during: Callable[[], None] = lambda: None

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(1.0)  # works in place on its input
        self.runs += 1
        self.replaced = self.replaced + 1
        self.calls += 1
        self.log.append(self.calls)
        torch.rand(1), np.random.rand(), random.random()
        x = self.drop(self.act(self.norm(self.conv(x))))
        self.features = x.detach()
        self.cache["x"] = self.features
        self.deep["a"].append(x)
        self.deep["b"][0].append(x)
        self.deep["b"][1]["x"].append(x)
        self.counter += 1
        self.during()
        return self.head(x.mean((2, 3)))


def snapshot(model: nn.Module, image: Tensor) -> dict[str, Any]:
    """Everything that is promised to stay, by value, and by identity where identity matters."""
    attributes = {
        f"{name}.{key}": id(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key != "during"
    }
    return {
        "attributes": attributes,
        "training": {name: module.training for name, module in model.named_modules()},
        "inplace": {name: module.inplace for name, module in model.named_modules() if hasattr(module, "inplace")},
        "hooks": {
            f"{name}.{key}": list(value)
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if "hooks" in key
        },
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grad": {name: (id(p.grad), p.grad is not None and p.grad.tolist()) for name, p in model.named_parameters()},
        "parameters": {name: p.tolist() for name, p in model.named_parameters()},
        "buffers": {name: (id(b), b.tolist()) for name, b in model.named_buffers()},
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
        "image": (image.tolist(), image.requires_grad, image.grad is not None and image.grad.tolist(), image._version),
        "log": (list(getattr(model, "log", [])), dict(getattr(model, "cache", {}))),
        "deep": (repr(getattr(model, "deep", "")), getattr(model, "counter", torch.zeros(1)).item()),
    }


@pytest.fixture
def busy() -> Busy:
    """A network in a mixed state: partly frozen, partly in training, with gradients and hooks of the user's own."""
    torch.manual_seed(0)
    model = Busy().train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    model.head.register_forward_hook(lambda *args: None)
    return model


@pytest.fixture
def image() -> Tensor:
    image = torch.rand(2, 1, 8, 8, requires_grad=True)
    (image * image).sum().backward()
    return image


def fail() -> None:
    raise RuntimeError("the model broke")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # the handler runs between two bytecodes
        pass


@pytest.mark.parametrize(
    ("during", "target", "error"),
    [
        (None, None, None),
        (None, 7, ValueError),
        (None, lambda out: out, ValueError),
        (fail, None, RuntimeError),
        (interrupt, None, KeyboardInterrupt),
    ],
    ids=["success", "bad class", "bad function", "exception", "ctrl-c"],
)
@pytest.mark.parametrize(
    ("name", "layer"),
    [(name, None) for name in LAYERED]
    + [(name, layer) for name in ("gradcam", "scorecam", "ablationcam") for layer in ("conv", ("conv", "act"))],
)
def test_four_endings(
    busy: Busy, image: Tensor, name: str, layer: Any, during: Any, target: Any, error: type[BaseException] | None
) -> None:
    busy.during = during or busy.during
    before = snapshot(busy, image)
    explainer = medviz.get_explainer(name, layer=layer)
    if error is None:
        explainer(busy, image, target)
    else:
        with pytest.raises(error):
            explainer(busy, image, target)
    assert snapshot(busy, image) == before


def test_the_snapshot_would_notice(busy: Busy, image: Tensor) -> None:
    before = snapshot(busy, image)
    busy(image.detach().clone())
    after = snapshot(busy, image)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"attributes", "buffers", "random", "log", "deep"}


def test_between_the_users_forward_and_backward(busy: Busy, image: Tensor) -> None:
    batch = torch.rand(2, 1, 8, 8)
    busy.drop.eval()

    def gradients(between: Callable[[], object]) -> list[Any]:
        busy.zero_grad()
        loss = busy(batch.clone()).square().sum()
        between()
        loss.backward()
        return [None if p.grad is None else p.grad.tolist() for p in busy.parameters()]

    expected = gradients(lambda: None)
    assert gradients(lambda: medviz.explain(busy, image, ["gradcam", "scorecam"])) == expected


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_callers_modes_do_not_matter(busy: Busy, context: Callable[[], Any], frozen: bool) -> None:
    batch = torch.rand(2, 1, 8, 8)
    expected = medviz.explain(busy, batch, "gradcam", 1)
    busy.requires_grad_(not frozen)
    with context():
        result = medviz.explain(busy, batch.clone(), "gradcam", torch.tensor([1, 1]))
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
    assert torch.equal(result.values, expected.values)
    assert not result.values.requires_grad
    assert not result.values.is_inference()


def test_what_a_bridge_does_to_the_model_is_undone(busy: Busy, image: Tensor) -> None:
    before = snapshot(busy, image)
    with medviz.Probe(busy, image.detach()) as probe, probe.model() as model:
        model.train()
        model.requires_grad_(True)
        model.act.inplace = False
        model.head.register_forward_pre_hook(lambda *args: None)
        model(probe.inputs.clone()).sum().backward()
        model.extra = 1
        assert all(p.grad is not None for p in model.parameters())
    assert snapshot(busy, image) == before


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_buffer_of_a_scripted_model() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("runs", torch.zeros(()))
            self.head = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            return self.head(x.mean((2, 3)))

    model = torch.jit.script(Counts().eval())
    medviz.explain(model, torch.rand(1, 1, 8, 8), "occlusion:mask_size=4", 1)
    assert model.runs == 0


class Table(nn.Module):
    """Returns what it keeps, and may keep a part of something else too."""

    def __init__(self, beside: Tensor | None) -> None:
        super().__init__()
        self.kept, self.beside = torch.rand(1, 3, 4, 4), beside

    def forward(self, x: Tensor) -> Tensor:
        return self.kept


@pytest.mark.parametrize("beside", [None, torch.ones(2, 2)[0]], ids=["alone", "beside a view"])
def test_a_table_in_the_graph_of_the_callers_own_pass(beside: Tensor | None) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.table = nn.Conv2d(1, 3, 1), Table(beside)

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x) * self.table(x)).mean((2, 3))

    model, image = Scaled(), torch.rand(1, 1, 4, 4)
    loss = model(image).square().sum()
    medviz.explain(model, image, "gradcam:layer=table", 1)
    loss.backward()
    assert model.conv.weight.grad is not None
    assert model.conv.weight.grad.any()


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrised_modules(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(norm(nn.Conv2d(1, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 1), Pool())
    image = torch.rand(2, 1, 8, 8)
    before = snapshot(model, image)
    medviz.explain(model, image, "gradcam", 1)
    assert snapshot(model, image) == before


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


def test_a_shared_module_and_a_shared_parameter() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv, nn.Conv2d(1, 2, 1), Pool())
    model.tied = conv.weight
    image = torch.rand(2, 1, 8, 8)
    before = snapshot(model, image)
    medviz.explain(model, image, "gradcam")
    assert snapshot(model, image) == before


def test_buffers_that_hold_nan_stay(busy: Busy, image: Tensor) -> None:
    busy.replaced.fill_(float("nan"))
    medviz.explain(busy, image, "gradcam")
    assert busy.replaced.isnan().all()


def test_an_interrupt_waits_until_the_state_is_back(busy: Busy) -> None:
    reached = []

    def held() -> None:
        with interrupts_deferred():
            interrupt()
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        held()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread(busy: Busy, image: Tensor) -> None:
    before = snapshot(busy, image)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with untouched(list(busy.modules())):
                busy(image.detach().clone())
        except BaseException as err:
            failures.append(err)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    assert snapshot(busy, image) == before


def test_nested_probes_on_one_model(busy: Busy, image: Tensor) -> None:
    before = snapshot(busy, image)
    batch = image.detach()
    with medviz.Probe(busy, batch, layers=["conv"]) as outer:
        first = outer.activation("conv")
        with medviz.Probe(busy, batch[:1], layers=["act"]) as inner:
            inner.gradient("act", 0)
        assert torch.equal(outer.activation("conv"), first)
        outer.gradient("conv", 0)
    assert snapshot(busy, image) == before


@pytest.fixture(autouse=True)
def _default_interrupts() -> Iterator[None]:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_two_threads_explain_one_model_one_after_the_other(
    busy: Busy, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, entered = snapshot(busy, image), threading.Event()
    taken, waits = guard._Turn.take, threading.Event()

    def take(turn: Any) -> None:
        waits.set()
        taken(turn)
        entered.set()

    monkeypatch.setattr(guard._Turn, "take", take)
    other = threading.Thread(target=medviz.explain, args=(busy, image, "vanillagrad", 0))
    with medviz.Probe(busy, image):
        waits.clear()
        entered.clear()
        other.start()
        assert waits.wait(60)  # it has come as far as the turn
        assert not entered.wait(0.1)
        assert not busy.training
    other.join(60)
    assert entered.is_set()
    assert snapshot(busy, image) == before


def test_a_turn_inside_of_another_does_not_end_it() -> None:
    model, entered = nn.Identity(), threading.Event()

    def work() -> None:
        with in_turn(model):
            entered.set()

    other = threading.Thread(target=work)
    with in_turn(model):
        with in_turn(model):
            pass
        other.start()
        assert not entered.wait(0.1)
    other.join(60)
    assert entered.is_set()


def test_an_open_probe_can_be_used_by_other_threads(busy: Busy, image: Tensor) -> None:
    before, done = snapshot(busy, image), []

    def work(probe: medviz.Probe) -> None:
        with probe.model():
            done.append(probe.input_gradient(0))

    probe = medviz.Probe(busy, image.detach())
    with probe:
        other = threading.Thread(target=work, args=(probe,))
        other.start()
        other.join(60)
        assert torch.equal(done[0], probe.input_gradient(0))
    assert snapshot(busy, image) == before


def test_a_probe_may_be_left_in_another_thread(busy: Busy, image: Tensor) -> None:
    before = snapshot(busy, image)
    probe = medviz.Probe(busy, image.detach())
    explained = functools.partial(medviz.explain, busy, image.detach(), "vanillagrad", 0)
    for work in (probe.__enter__, functools.partial(probe.__exit__, None, None, None), explained):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    assert snapshot(busy, image) == before


def test_who_waits_says_so(busy: Busy, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    said, texts = threading.Event(), []

    def warning(text: str) -> None:
        texts.append(text)
        said.set()

    monkeypatch.setattr(guard, "_PATIENCE", 0.01)
    monkeypatch.setattr(guard._log, "warning", warning)
    other = threading.Thread(target=medviz.explain, args=(busy, image, "vanillagrad", 0))
    with medviz.Probe(busy, image):
        other.start()
        assert said.wait(60)
    other.join(60)
    assert "still waiting for another thread" in texts[0]


class UsedElsewhere(nn.Module):
    """Another thread uses its layer, while it runs itself."""

    def __init__(self, seen: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2, 3)
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        elsewhere = threading.Thread(target=lambda: self.seen(self.layer(torch.ones(1, 1, 5, 5))))
        x = self.layer(x)
        elsewhere.start()
        elsewhere.join()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("layer", ["layer", None])
def test_another_threads_inference_takes_no_part(layer: str | None) -> None:
    seen: list[Tensor] = []
    model, image = UsedElsewhere(seen.append), torch.rand(1, 1, 9, 9)
    with medviz.Probe(model, image, layers=[layer]) as probe:
        activation = probe.activation(layer)
        zeros = probe.forward(image, replace={"layer": torch.zeros_like(activation)})
    assert torch.equal(activation, model.layer(image))
    assert torch.equal(zeros, model.head.bias[None])
    assert len(seen) == 2
    assert all(torch.equal(output, model.layer(torch.ones(1, 1, 5, 5))) for output in seen)


def test_compiled_models_run_compiled_again_after_the_last_of_several_threads() -> None:
    from torch._dynamo import eval_frame

    from medviz.probe.models import eager

    before = eval_frame._stance.stance
    first, second = eager(), eager()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert eval_frame._stance.stance == "force_eager"
    second.__exit__(None, None, None)
    assert eval_frame._stance.stance == before


@pytest.mark.parametrize("wanted", [False, True])
def test_a_parameter_that_came_into_a_graph_is_taken_off(wanted: bool) -> None:
    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.means = nn.Parameter(torch.zeros(4), requires_grad=wanted)

        def forward(self, x: Tensor) -> Tensor:
            self.means.mul_(0.9).add_(0.1 * x.mean(0))  # forgets no_grad
            return x - self.means

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 4), Prototypes())
    grads = [torch.ones_like(p) for p in model.parameters()]
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad
    flags = [p.requires_grad for p in model.parameters()]
    assert medviz.explain(model, torch.rand(1, 1, 8, 8), "gradcam:layer='0'", 1).values.any()
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.is_leaf for p in model.parameters())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_parameter_that_was_in_a_graph_before_stays_in_it() -> None:
    """As `torch.func.functional_call` puts one in the place of a parameter."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 4))
    doubled: Any = model[0].weight * 2
    model[0]._parameters["weight"] = doubled
    with pytest.raises(RuntimeError, match="leaf"):
        medviz.explain(model, torch.rand(1, 1, 8, 8), "gradcam:layer='0'", 1)
    assert model[0]._parameters["weight"] is doubled
    assert doubled.grad_fn is not None
    assert model[2].weight.requires_grad
