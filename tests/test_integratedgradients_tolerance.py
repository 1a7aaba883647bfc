"""Integrated gradients until the sum is right: `tolerance`."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import pytest
import torch
from networks import DEVICES, Classifier, check_close, explain, images
from torch import Tensor, nn

import medviz

ROWS: list[int] = []


class Jump(nn.Module):
    """score = relu(Σ w · x - c): on the way from zero the gradient jumps once, at c / Σ w · x."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 12, dtype=torch.float64).view(1, 3, 4))
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        ROWS.append(len(x))
        return (x * self.weight).flatten(1).sum(1, keepdim=True).sub(self.at * 12).relu()


def by_hand(model: Jump, image: Tensor, steps: int) -> Tensor:
    """The share of the steps that lie behind the jump, by their weights, times w · x."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    total = float((image * model.weight.detach()).sum())
    behind = torch.from_numpy((points + 1) / 2 * total > model.at * 12)
    return float(torch.from_numpy(weights / 2)[behind].sum()) * image * model.weight.detach()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tolerance", [0.2, 0.05, 0.02])
def test_steps_are_doubled_until_the_sum_is_right(tolerance: float, device: str) -> None:
    model, image = Jump(0.37), torch.ones(1, 1, 3, 4, dtype=torch.float64)
    difference = float(12 * (1 - 0.37))
    steps = 2
    while steps < 64 and abs(float(by_hand(model, image, steps).sum()) - difference) > tolerance * difference:
        steps *= 2
    got = explain("integratedgradients", model.to(device), image.to(device), 0, steps=2, tolerance=tolerance).values
    check_close(got, by_hand(model.cpu(), image, steps), 1e-12)
    assert steps > 2


def test_each_image_takes_its_own_number_of_steps() -> None:
    model, image = Jump(0.37), torch.tensor([1.0, 0.2, 0.5, 3.0]).double().view(4, 1, 1, 1).expand(4, 1, 3, 4)
    together = explain("integratedgradients", model, image, 0, steps=4, tolerance=0.01).values
    for batch_size in (1, 3):
        got = explain("integratedgradients", model, image, 0, steps=4, tolerance=0.01, batch_size=batch_size).values
        check_close(got, together, 1e-12)
    taken = []
    for i in range(4):
        ROWS.clear()
        alone = explain("integratedgradients", model, image[i : i + 1], 0, steps=4, tolerance=0.01, batch_size=64)
        taken.append(sum(ROWS))
        assert torch.allclose(alone.values[0], together[i], rtol=1e-12, atol=0)
    assert len(set(taken)) > 1


def test_an_image_that_is_done_again_keeps_its_own_baseline() -> None:
    """The first is behind the jump all the way, and right at once."""
    ramp = torch.linspace(0, 1, 12, dtype=torch.float64).view(1, 1, 3, 4)
    model, image = Jump(0.37), torch.cat([ramp + 1, ramp])
    few: dict[str, Any] = {"steps": 4, "tolerance": 0.01, "baseline": "min"}
    together = explain("integratedgradients", model, image, 0, **few).values
    for i in range(2):
        alone = explain("integratedgradients", model, image[i : i + 1], 0, **few).values
        check_close(together[i : i + 1], alone, 1e-12)


def test_a_network_that_is_right_at_once_is_done_once() -> None:
    model, image = Classifier(2), images(2, 2, 8, 7)
    plain = explain("integratedgradients", model, image, 1).values
    assert torch.equal(explain("integratedgradients", model, image, 1, tolerance=0.5).values, plain)


def test_a_network_of_relus_comes_within_the_decided_share() -> None:
    model, image = Classifier(3).double(), images(2, 2, 8, 7, 6, dtype=torch.float64)
    classes = torch.tensor([2, 0])
    with torch.no_grad():
        difference = (model(image) - model(torch.zeros_like(image))).gather(1, classes[:, None])[:, 0]
    few: dict[str, Any] = {"steps": 64}
    plain = explain("integratedgradients", model, image, classes, **few).values.flatten(1).sum(1)
    got = explain("integratedgradients", model, image, classes, **few, tolerance=1e-3).values.flatten(1).sum(1)
    assert ((plain - difference).abs() > 1e-3 * difference.abs()).any()
    assert ((got - difference).abs() <= 1.01e-3 * difference.abs()).all()


def test_a_network_that_never_gets_there_says_so_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    class Step(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # a gradient of zero, and yet a difference
            return ((x > 0.5).float() + 0 * x).flatten(1).sum(1, keepdim=True)

    with caplog.at_level(logging.INFO, logger="medviz"):
        explain("integratedgradients", Step(), torch.ones(1, 1, 3, 3), 0, steps=2, tolerance=0.01)
    assert "take more `steps` than 64" in caplog.text
    assert caplog.text.count("need") == 5


def test_a_constant_network_needs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = Classifier(2)
    nn.init.zeros_(model.fc.weight)
    nn.init.constant_(model.fc.bias, 1 / 3)
    with caplog.at_level(logging.INFO, logger="medviz"):
        assert not explain("integratedgradients", model, images(1, 2, 8, 7), 1, tolerance=1e-9).values.any()
    assert "steps" not in caplog.text


@pytest.mark.parametrize("tolerance", [0, -0.1, float("nan"), "fine", True])
def test_wrong_tolerances(tolerance: Any) -> None:
    with pytest.raises(medviz.PluginError, match=re.escape("`tolerance` is a finite number > 0; got")):
        medviz.get_explainer("medviz-xai/integratedgradients", tolerance=tolerance)
