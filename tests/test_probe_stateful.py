"""Models that remember, that fill one buffer, or that get ready for eval mode by themselves."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import Classifier, check_close, images
from torch import Tensor, nn

import medviz
from medviz.probe import guard

PERTURBING = [
    "occlusion:mask_size=3",
    "occlusion:mask_size=3,incremental=false",
    "ablationcam",
    "rise:n_masks=12,seed=0",
]


class Engine(nn.Module):
    """A network that writes all of its outputs into one place, as an inference engine does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.bound = torch.zeros(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.bound[: len(x)].copy_(self.network(x))


@pytest.mark.parametrize("batch_size", ["auto", 2])
@pytest.mark.parametrize("method", PERTURBING)
def test_a_model_that_fills_one_buffer(method: str, batch_size: Any) -> None:
    model, image = Classifier(2), images(2, 2, 9, 8)
    layer = {"layer": "deep"} if method == "ablationcam" else {}
    inner = {"layer": "network.deep"} if layer else {}
    right = medviz.explain(model, image, medviz.get_explainer(method, **layer), 1, batch_size=batch_size)
    bound = medviz.explain(Engine(model), image, medviz.get_explainer(method, **inner), 1, batch_size=batch_size)
    check_close(bound.values, right.values)


class Remembers(Classifier):
    """What it has seen before counts too."""

    def __init__(self, where: str) -> None:
        super().__init__(2)
        self.where = where
        self.kept: Any = None
        self.listed: list[Tensor] = []
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        before = {"attribute": self.kept, "list": self.listed[-1] if self.listed else None, "buffer": self.mean}
        seen = before[self.where]
        answer = logits if seen is None else logits + logits.square() * seen.mean()
        self.kept = logits.detach().mean(0)
        self.listed.append(self.kept)
        self.mean.copy_(self.kept)
        return answer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("where", ["attribute", "list", "buffer"])
@pytest.mark.parametrize(
    "method", [*PERTURBING, "smoothgrad:n_samples=4,seed=0", "guidedbackpropsmooth:n_samples=4,seed=0"]
)
def test_every_pass_begins_as_the_model_was_found(
    method: str, where: str, training: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medviz")
    model, image = Remembers(where).train(training), images(1, 2, 9, 8)
    maps = [medviz.explain(model, image, method, 1, batch_size=size) for size in (1, 3, "auto")]
    for other in maps[1:]:
        check_close(other.values, maps[0].values)
    check_close(maps[0].values, medviz.explain(Classifier(2), image, method, 1, batch_size=2).values)
    assert model.training is training
    assert [model.kept, model.listed, model.mean.tolist()] == [None, [], [0, 0, 0, 0]]
    said = [record.getMessage() for record in caplog.records if "from pass to pass" in record.getMessage()]
    assert len(said) == len(maps)


class Replaces(Classifier):
    """Puts another tensor in the place of its buffer."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__(2)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        answer = logits + logits.square() * self.mean.mean()
        self.mean = logits.detach().mean(0)
        return answer


class Adds(Classifier):
    """Has nothing to remember before its first pass, not even a name for it."""

    mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        answer = logits + logits.square() * self.mean.mean() if hasattr(self, "mean") else logits
        self.mean = logits.detach().mean(0)
        return answer


@pytest.mark.parametrize("make", [Replaces, lambda: Adds(2)], ids=["replaces", "adds"])
@pytest.mark.parametrize("method", [*PERTURBING[1:], "smoothgrad:n_samples=4,seed=0"])
def test_what_a_pass_replaces_or_adds_is_not_there_in_the_next(method: str, make: Callable[[], nn.Module]) -> None:
    image = images(1, 2, 9, 8)
    expected = medviz.explain(Classifier(2), image, method, 1, batch_size=2)
    check_close(medviz.explain(make(), image, method, 1, batch_size=2).values, expected.values)


def test_a_list_that_holds_itself_is_looked_through_once() -> None:
    model, image, method = Replaces(), images(1, 2, 9, 8), "occlusion:mask_size=3,incremental=false"
    held: list[Any] = [1]
    held.append(held)
    model.held = held
    found: list[Any] = []
    explained = functools.partial(medviz.explain, model, image, method, 1, batch_size=2)
    thread = threading.Thread(target=lambda: found.append(explained()), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    check_close(found[0].values, medviz.explain(Classifier(2), image, method, 1, batch_size=2).values)


def test_a_model_that_keeps_nothing_is_not_looked_at_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    look = guard.State.is_left_as_it_was
    monkeypatch.setattr(guard.State, "is_left_as_it_was", lambda state: looks.append(1) or look(state))
    medviz.explain(Classifier(2), images(1, 2, 9, 8), "gradcam", 1)
    assert not looks
    medviz.explain(Classifier(2), images(1, 2, 9, 8), "occlusion:mask_size=2,incremental=false", 1, batch_size=1)
    assert len(looks) == 2


def test_a_table_that_is_made_once_is_made_once(caplog: pytest.LogCaptureFixture) -> None:
    class Lazy(Classifier):
        table: Any = None
        made = 0

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                type(self).made += 1
                self.table = torch.linspace(0, 1, 4)
            self.seen = x
            return super().forward(x) + self.table

    caplog.set_level(logging.INFO, "medviz")
    model = Lazy(2)
    medviz.explain(model, images(1, 2, 9, 8), "occlusion:mask_size=2,incremental=false", 1, batch_size=1)
    assert Lazy.made == 1
    assert model.table is None
    assert "from pass to pass" not in caplog.text


class Hooked(nn.Module):
    """Hooks itself in its first pass, with a flag that says so: the hooks stay where the flag is forgotten.

    Its two last layers lie on one grid, so that the automatic choice takes a second pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ready = False
        self.first, self.second = nn.Conv2d(2, 3, 3, stride=2), nn.Conv2d(3, 3, 1)
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.ready = True
            self.second.register_forward_hook(lambda module, given, output: output * 2)
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.mark.parametrize("first", ["nothing", "layers"])
def test_a_model_that_hooks_itself_in_its_first_pass(first: str) -> None:
    model, image, target = Hooked(), images(1, 2, 9, 8), medviz.SegmentationTarget(1)
    fresh = medviz.explain(model, image, "gradcam:layer=second", target)
    assert not model.ready
    assert not model.second._forward_hooks
    with medviz.Probe(model, image, layers=[None]) as probe:
        if first == "layers":
            probe.layers()
        assert probe.layer_name(None) == "second"
        check_close(probe.scores(target), torch.as_tensor(fresh.scores))
    check_close(medviz.explain(model, image, "gradcam", target).values, fresh.values)


def test_a_model_is_lent_as_it_was_found() -> None:
    model, image = Remembers("attribute"), images(1, 2, 9, 8)
    with medviz.Probe(model, image) as probe:
        clean = probe.output
        with probe.model():
            assert torch.equal(probe.run(image), clean)


class Table(nn.Module):
    """Gets ready for eval mode by itself: it looks up a parameter once, and forgets that where it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))

    def train(self, mode: bool = True) -> Table:
        super().train(mode)
        if not mode:
            self.ready = self.bias.detach() * 2
        elif hasattr(self, "ready"):
            del self.ready
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.bias * 2 if self.training else self.ready)[:, None, None]


@pytest.mark.parametrize("before", ["train", "eval, then train", "train, with a table that is out of date"])
def test_a_model_with_an_eval_of_its_own(before: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), Table(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    if before.startswith("eval"):
        model.eval()
    model.train()
    if before.endswith("date"):
        model[1].ready = torch.full((3,), 9.0)
    held = vars(model[1]).copy()
    image = images(1, 2, 9, 8)
    expected = medviz.explain(copy.deepcopy(model).eval(), image, "gradcam", 1)
    assert torch.equal(medviz.explain(model, image, "gradcam", 1).values, expected.values)
    assert vars(model[1]) == held
    assert all(module.training for module in model.modules())


class Merges(nn.Linear):
    """Adds its adapter to its weight for eval mode, as LoRA does, and takes it out again for training."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.adapter = nn.Parameter(torch.randn(outputs, inputs))
        self.merged = False

    def train(self, mode: bool = True) -> Merges:
        super().train(mode)
        if mode is self.merged:
            self.weight.data += (-1.0 if mode else 1.0) * self.adapter.data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.merged else y + x @ self.adapter.T


def test_what_eval_does_to_weights_is_done_once_and_undone() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Merges(3, 2)).train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    image = images(1, 2, 9, 8)
    expected = copy.deepcopy(model).eval()(image)
    with medviz.Probe(model, image) as probe:
        outputs = [probe.output, *(probe.forward(image) for _ in range(4))]
    for output in outputs:
        torch.testing.assert_close(output, expected)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not model[4].merged
    assert model[4].training


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]


def test_a_train_that_is_something_else_is_not_called() -> None:
    called: list[Any] = []

    class Trainer(nn.Sequential):
        def train(self, loader: Any, epochs: int = 1) -> None:  # type: ignore[override]
            called.append(loader)

    model, image = Trainer(*layers()), images(1, 2, 9, 8)
    found = medviz.explain(model, image, "occlusion:mask_size=4", 1)
    assert torch.equal(found.values, medviz.explain(nn.Sequential(*layers()), image, "occlusion:mask_size=4", 1).values)
    assert model.training
    assert not called


def test_an_eval_that_fails_leaves_the_flags(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(nn.Sequential):
        def eval(self) -> Any:
            raise RuntimeError("not today")

    caplog.set_level(logging.INFO, "medviz")
    model, image = Fails(*layers()), images(1, 2, 9, 8)
    found = medviz.explain(model, image, "gradcam", 1)
    assert torch.equal(found.values, medviz.explain(nn.Sequential(*layers()), image, "gradcam", 1).values)
    assert "only its flag is set: not today" in caplog.text
    assert model.training


def test_no_pass_of_a_probe_is_in_training_mode() -> None:
    flags: set[bool] = set()
    model = Classifier(2).train()
    model.stem[1].register_forward_pre_hook(lambda module, given: flags.add(module.training))
    torch_setattr, written = nn.Module.__setattr__, []

    def watch(module: nn.Module, name: str, value: Any) -> None:
        if name == "training":
            written.append(value)
        torch_setattr(module, name, value)

    with pytest.MonkeyPatch.context() as patch, medviz.Probe(model, images(1, 2, 9, 8)) as probe:
        patch.setattr(nn.Module, "__setattr__", watch)
        for _ in range(5):
            probe.forward(probe.inputs)
    assert flags == {False}
    assert True not in written


def test_what_the_caller_does_inside_of_a_block_stays() -> None:
    model, image = Classifier(2).train(), images(1, 2, 9, 8)
    calls: list[int] = []
    with medviz.Probe(model, image) as probe:
        clean = probe.output
        handle = model.deep.register_forward_hook(lambda module, given, output: calls.append(1) or output * 0)
        model.stem[2] = nn.Identity()
        changed = [probe.forward(image) for _ in range(5)]
        assert len(calls) == 5
        handle.remove()
    assert all(torch.equal(one, changed[0]) and not torch.equal(one, clean) for one in changed)
    assert type(model.stem[2]) is nn.ReLU


@pytest.mark.parametrize("layers", [[], ["deep"], [None]])
def test_nothing_waits_for_the_garbage_collector(layers: list[Any]) -> None:
    model, image = Classifier(2), images(1, 2, 9, 8)
    gc.collect()
    gc.disable()
    try:
        with medviz.Probe(model, image, layers=layers) as probe:
            probe.forward(image)
            held = [weakref.ref(tensor) for tensor in (probe.inputs, probe.output)]
            if layers:
                held.append(weakref.ref(probe.gradient(layers[0], 1)))
        del probe
        assert [one() for one in held] == [None] * len(held)
    finally:
        gc.enable()


class Averaged(nn.Module):
    """Writes what has a graph into a buffer, and into a tensor that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(()))
        self.kept = [torch.zeros(2, 4)]

    def forward(self, x: Tensor) -> Tensor:
        self.mean += x.mean()
        features = self.layer(x).relu().mean((2, 3))
        self.kept[0][:1] = features[:1]
        out: Tensor = self.fc(features) + self.mean
        return out


@pytest.mark.parametrize("method", ["gradcam", "vanillagrad", "smoothgrad:n_samples=5,seed=0", "integratedgradients"])
def test_what_is_kept_is_in_no_graph_afterwards(method: str) -> None:
    model = Averaged()
    medviz.explain(model, torch.rand(2, 1, 8, 8), f"medviz-xai/{method}", 1, batch_size=2)
    for tensor in (model.mean, model.kept[0]):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
        assert not tensor.any()
    copy.deepcopy(model)  # torch copies none with a graph


class Slots(nn.Module):
    """Writes what has a graph through views of a buffer."""

    def __init__(self, held: str) -> None:
        super().__init__()
        self.layer, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.register_buffer("bank", torch.zeros(2, 4))
        slot = self.bank[0]
        if held == "buffer":
            self.register_buffer("slot", slot)
        self.slots = [slot] if held == "list" else SimpleNamespace(slot=slot)

    def forward(self, x: Tensor) -> Tensor:
        features = self.layer(x).relu().mean((2, 3))
        slot = self.slots[0] if isinstance(self.slots, list) else self.slots.slot
        slot.mul_(0.5).add_(features.mean(0))
        out: Tensor = self.fc(features + self.bank.sum(0))
        return out


@pytest.mark.parametrize("held", ["buffer", "list", "object"])
@pytest.mark.parametrize("method", ["gradcam", "vanillagrad", "smoothgrad:n_samples=5,seed=0"])
def test_views_of_a_buffer_can_be_written_to_afterwards(method: str, held: str) -> None:
    model, image = Slots(held), torch.rand(1, 1, 8, 8)
    first, again = (medviz.explain(model, image, f"medviz-xai/{method}", 1, batch_size=2).values for _ in range(2))
    check_close(again, first)
    assert not model.bank.any()
    model(image).sum().backward()
    assert model.layer.weight.grad is not None
