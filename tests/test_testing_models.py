"""The toy networks have the answers that their docstrings derive; the strategies draw what they promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import medviz
import medviz.testing
from medviz.testing import models, strategies

torch.set_num_threads(1)
quick = settings(derandomize=True, deadline=None, max_examples=25)


def explain(name: str, model: Any, images: Tensor, target: Any = 0, **parameters: Any) -> Tensor:
    result = medviz.get_explainer(f"medviz-xai/{name}", **parameters)(model, images, target)
    assert isinstance(result, medviz.Attribution)
    return result.raw if result.raw is not None else result.values


def close(got: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 0
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("ndim", [2, 3])
def test_classifier(ndim: int) -> None:
    model = models.Classifier(ndim)
    images = torch.rand(2, 2, *(9, 8, 7)[:ndim])
    expected = model.class_map(images, 1)
    logits = model(images).detach()
    close(expected.flatten(1).mean(1), logits[:, 1] - model.fc.bias[1].detach())
    close(explain("cam", model, images, 1), expected)
    voxels = expected[0, 0].numel()
    close(explain("hirescam", model, images, 1) * voxels, expected.relu())
    close(explain("gradcam", model, images, 1) * voxels, expected.relu())


@pytest.mark.parametrize("shape", [(1, 6, 5), (2, 3, 4, 5)])
def test_linear(shape: tuple[int, ...]) -> None:
    model = models.Linear(shape)
    images = torch.rand(2, *shape)
    gradient = model.gradient(2).expand(2, *shape)
    close(explain("vanillagrad", model, images, 2), gradient)
    close(explain("inputxgradient", model, images, 2), gradient * images)
    close(explain("integratedgradients", model, images, 2, steps=3), gradient * images)
    close((gradient * images).flatten(1).sum(1), (model(images)[:, 2] - model.fc.bias[2]).detach())


@pytest.mark.parametrize("boxes", [(((1, 3), (0, 5)), ((4, 6), (2, 4))), (((0, 2), (1, 3), (2, 6)),)])
def test_regions(boxes: Any) -> None:
    model = models.Regions(*boxes, channels=2)
    images = torch.rand(2, 2, *(6, 5, 7)[: len(boxes[0])])
    for target in range(len(boxes)):
        inside = model.inside(target, tuple(images.shape[2:]))
        expected = torch.stack([torch.zeros_like(inside), inside / inside.sum()]).expand_as(images)
        close(explain("vanillagrad", model, images, target), expected)
        close(model(images)[:, target].detach(), (images[:, 1] * inside).flatten(1).sum(1) / inside.sum())
        assert explain("gradcam", model, images, target)[:, 0][:, inside == 0].abs().max() == 0


def test_constant_keeps_the_graph() -> None:
    model = models.constant(models.Classifier())
    images = torch.rand(1, 2, 6, 6, requires_grad=True)
    output = model(images)
    output.sum().backward()
    assert not output.any()
    assert images.grad is not None
    assert not images.grad.any()


@pytest.mark.parametrize("model", [models.Classifier(), models.Linear((2, 6, 6)), models.Regions(((0, 3), (1, 4)))])
def test_multiplied_multiplies_the_output(model: Any) -> None:
    images = torch.rand(2, 1 if isinstance(model, models.Regions) else 2, 6, 6)
    before = model(images).detach()
    close(models.multiplied(model, 4)(images).detach(), 4 * before)


def test_making_a_network_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    models.Classifier(), models.Linear(), models.Regions(((0, 1), (0, 1)))
    assert torch.equal(before, torch.get_rng_state())


def test_randomise_is_the_same_for_the_same_seed() -> None:
    states = [models.randomise(models.Classifier(), seed).state_dict() for seed in (5, 5, 6)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])
    assert not models.randomise(models.Classifier().train()).training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.Classifier(4), "`ndim` is 4"),
        (lambda: models.Regions(), "`boxes` holds"),
        (lambda: models.Regions(((0, 1), (0, 1)), ((0, 1),)), "`boxes` holds"),
        (lambda: models.constant(torch.nn.ReLU()), "no parameters"),
        (lambda: models.multiplied(torch.nn.ReLU(), 2), "no parameters"),
    ],
)
def test_wrong_models(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@quick
@given(strategies.cases())
def test_what_is_drawn_can_be_explained(case: Any) -> None:
    model, images, target = case
    output = model(images)
    assert output.shape[:1] == images.shape[:1]
    assert output.ndim == 2
    assert torch.isfinite(output).all()
    assert not model.training
    values = explain("vanillagrad", model, images, target)
    assert values.shape == images.shape


@quick
@given(strategies.cases(ndim=3))
def test_dimensions_are_kept(case: Any) -> None:
    assert case[1].ndim == 5


@quick
@given(strategies.images(ndim=2, channels=3, batch=2, sizes=(5, 6), dtype=torch.float64))
def test_images(images: Tensor) -> None:
    assert images.shape[:2] == (2, 3)
    assert set(images.shape[2:]) <= {5, 6}
    assert images.dtype == torch.float64
    assert torch.isfinite(images).all()


@quick
@given(strategies.volumes(channels=2), st.data())
def test_volumes(volume: medviz.Image, data: Any) -> None:
    assert volume.data.shape[0] == 2
    assert volume.data.ndim == 4
    assert volume.affine is not None
    assert volume.spacing is not None
    assert set(np.round(volume.spacing, 6)) <= {0.5, 0.8, 1.0, 2.0, 5.0}


@quick
@given(strategies.attributions(signed=False, batch=2))
def test_attributions(attribution: medviz.Attribution) -> None:
    assert len(attribution) == 2
    assert (attribution.values >= 0).all()
    assert attribution.normalized().max() <= 1


@quick
@given(st.data())
def test_targets(data: Any) -> None:
    classes = data.draw(st.integers(1, 3))
    target = data.draw(strategies.targets(classes, batch=2))
    fixed = target.fix(torch.randn(2, classes))
    assert fixed.score(torch.zeros(2, classes), torch.arange(2)).shape == (2,)
