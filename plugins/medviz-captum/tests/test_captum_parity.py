"""Each method gives what captum, called directly for one image at a time, gives; every row of the table is tried."""

from __future__ import annotations

import random
from typing import Any

import captum.attr
import medviz_captum
import numpy as np
import pytest
import torch
from medviz_captum import METHODS
from torch import Tensor, nn

import medviz

pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting (backward|forward):UserWarning"),
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning"),
]

CLASSES = (2, 0)
SIZES = {2: (9, 12), 3: (6, 7, 5)}
# What the explainer is given, and the same in captum's words.
ASKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "IntegratedGradients": ({"steps": 7}, {"n_steps": 7}),
    "GradientShap": ({"samples": 5, "stdev": 0.1, "seed": 3}, {"n_samples": 5, "stdevs": 0.1}),
    "LayerIntegratedGradients": ({"steps": 6}, {"n_steps": 6}),
    "LayerConductance": ({"steps": 6}, {"n_steps": 6}),
    "FeatureAblation": ({"blocks": 2}, {}),
    "ShapleyValueSampling": ({"blocks": 2, "samples": 4, "seed": 3}, {"n_samples": 4}),
    "Occlusion": ({"window": 4, "stride": 2}, {}),
}


def network(ndim: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return two convolutions with ReLU modules, global pooling and three classes; two input channels."""
    conv: Any = nn.Conv2d if ndim == 2 else nn.Conv3d
    pool: Any = nn.AdaptiveAvgPool2d if ndim == 2 else nn.AdaptiveAvgPool3d
    layers = [conv(2, 4, 3), nn.ReLU(), conv(4, 5, 3, stride=2), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(5, 3)]
    model = nn.Sequential(*layers).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model.eval()


def images(ndim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 2, *SIZES[ndim], generator=torch.Generator().manual_seed(1)).to(dtype)


def directly(name: str, model: nn.Module, image: Tensor, target: int, given: dict[str, Any]) -> Tensor:
    """Return captum's own map of one image, written out."""
    method = METHODS[name]
    given = dict(given)
    if "baseline" in method.takes:
        given["baselines"] = torch.zeros_like(image)
    if name == "Occlusion":
        given |= {"sliding_window_shapes": (2, *[4] * (image.ndim - 2)), "strides": (1, *[2] * (image.ndim - 2))}
    if "blocks" in method.takes:
        number = torch.zeros_like(image, dtype=torch.long)
        for axis in range(2, image.ndim):
            second = torch.arange(image.shape[axis]) >= -(-image.shape[axis] // 2)
            number = 2 * number + second.reshape(-1, *[1] * (image.ndim - 1 - axis))
        given["feature_mask"] = number
    made = getattr(captum.attr, name)(model, *([model[2]] if "layer" in method.takes else []))
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    values = made.attribute(image, target=target, **given).detach()
    if name == "GuidedGradCam" or "layer" not in method.takes:
        return values
    return values.sum(1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_equal_to_captum(name: str, ndim: int, dtype: torch.dtype) -> None:
    asked, given = ASKED.get(name, ({}, {}))
    layer = {"layer": "2"} if "layer" in METHODS[name].takes else {}
    model, batch = network(ndim, dtype), images(ndim, dtype)
    explainer = medviz.get_explainer(f"medviz-captum/captum.{name.lower()}", **asked, **layer)
    found = explainer(model, batch, torch.tensor(CLASSES)).raw
    expected = torch.cat([directly(name, model, batch[i : i + 1], c, given) for i, c in enumerate(CLASSES)])
    expected = expected if found.shape == expected.shape else expected[:, :1]
    largest = expected.abs().max()
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert largest > 0
    assert (found - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 1e-12) * largest


def test_integrated_gradients_sum_to_the_difference_of_the_scores() -> None:
    model, batch = network(2, torch.float64), images(2, torch.float64)
    attribution = medviz.get_explainer("captum.integratedgradients", steps=400)(model, batch, 1)
    difference = (model(batch) - model(torch.zeros_like(batch)))[:, 1].detach()
    assert torch.allclose(attribution.values.flatten(1).sum(1), difference, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", ["deeplift", "integratedgradients", "featureablation:blocks=3", "inputxgradient"])
def test_a_linear_network_gives_weight_times_value(method: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2, bias=False))
    image = torch.arange(18.0).reshape(2, 1, 3, 3) - 4
    values = medviz.explain(model, image, f"captum.{method}", 1).values
    assert torch.allclose(values, image * model[1].weight[1].detach().reshape(1, 1, 3, 3), atol=1e-5)


@pytest.mark.parametrize("baseline", ["min", "mean", 2.0])
def test_the_baseline_of_each_channel(baseline: float | str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, 2, bias=False))
    image = torch.arange(18.0).reshape(1, 2, 3, 3)
    values = medviz.get_explainer("captum.deeplift", baseline=baseline)(model, image, 0).values
    nothing = {"min": image.amin((2, 3), True), "mean": image.mean((2, 3), keepdim=True)}.get(baseline, baseline)
    assert torch.allclose(values, (image - nothing) * model[1].weight[0].detach().reshape(1, 2, 3, 3), atol=1e-5)


def test_every_row_is_exported_and_listed() -> None:
    listed = {entry for entry in medviz.names("explainers") if entry.startswith("captum.")}
    assert listed == {f"captum.{name.lower()}" for name in METHODS}
    assert set(METHODS) < set(medviz_captum.__all__)
