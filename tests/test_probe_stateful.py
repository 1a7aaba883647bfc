"""Models that remember, that fill one buffer, or that get ready for eval mode by themselves."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from networks import Classifier, check_close, images
from torch import Tensor, nn

import medviz

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


def test_a_model_that_keeps_nothing_is_not_looked_at_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    rewind = medviz.probe.guard.State.rewind
    monkeypatch.setattr(medviz.probe.guard.State, "rewind", lambda state: looks.append(1) or rewind(state))
    medviz.explain(Classifier(2), images(1, 2, 9, 8), "gradcam", 1)
    assert not looks
    medviz.explain(Classifier(2), images(1, 2, 9, 8), "occlusion:mask_size=2,incremental=false", 1, batch_size=1)
    assert len(looks) == 2


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
