"""The kit over every method, and what the bridge promises beside: targets, outputs, arguments, errors."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from medviz_captum import METHODS
from torch import Tensor, nn

import medviz
import medviz.testing

QUICK: dict[str, dict[str, Any]] = {
    "GradientShap": {"samples": 8},
    "FeatureAblation": {"blocks": 4},
    "ShapleyValueSampling": {"blocks": 3, "samples": 2},
    "Occlusion": {"window": 6, "stride": 6},
}
FLOAT32 = ("Occlusion", "ShapleyValueSampling")


def quick(name: str) -> medviz.Explainer:
    """Return the method with as little work as its checks allow."""
    parameters = {**({"steps": 4} if "steps" in METHODS[name].takes else {}), **QUICK.get(name, {})}
    return medviz.get_explainer(f"medviz-captum/captum.{name.lower()}", **parameters)


@medviz.testing.conformance([quick(name) for name in METHODS if name not in FLOAT32])
def test_conformance(check: Any, instance: medviz.Explainer) -> None:
    check(instance)


@medviz.testing.conformance(
    [quick(name) for name in FLOAT32], expected_failures={"check_device_and_dtype": "captum adds up in float32."}
)
def test_conformance_in_float32(check: Any, instance: medviz.Explainer) -> None:
    check(instance)


class TwoOutputs(nn.Module):
    """Scale the image by a number of its own; return another tensor first. In-place ReLU; class scores by pooling."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(3, 2)
        self.fc.weight.data.abs_()

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.relu(self.conv(x * scale[:, None, None, None]))
        return features, {"classes": self.fc(features.flatten(2).mean(2))}


def classes(raw: Any) -> Tensor:
    return raw[1]["classes"]


@pytest.mark.parametrize("name", METHODS)
def test_outputs_and_arguments_of_each_image(name: str) -> None:
    model, image = TwoOutputs(), torch.rand(2, 1, 8, 8) + 0.1
    explainer = attrs.evolve(quick(name), layer="conv") if "layer" in METHODS[name].takes else quick(name)
    explainer = attrs.evolve(explainer, seed=1) if explainer.stochastic else explainer

    def explained(images: Tensor, scale: Tensor) -> Tensor:
        rows = medviz.per_image(scale)
        return explainer(model, images, 1, output=classes, model_args=(rows,)).values

    together = explained(image, torch.tensor([1.0, -2.0]))
    assert together[0].any()
    assert torch.allclose(together[1:], explained(image[1:], torch.tensor([-2.0])), atol=1e-6)
    assert not torch.allclose(together[1:], explained(image[1:], torch.tensor([2.0])), atol=1e-6)
    assert model.relu.inplace


@pytest.mark.parametrize("name", ["Saliency", "DeepLift", "IntegratedGradients", "LayerGradientXActivation"])
def test_a_segmentation_target(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:3, :3] = True
    explainer = attrs.evolve(quick(name), layer="0") if "layer" in METHODS[name].takes else quick(name)
    values = explainer(model, torch.rand(1, 1, 8, 8) + 0.1, medviz.SegmentationTarget(1, mask)).values
    assert values.any()
    assert not values[:, :, 5:, 5:].any()


def test_a_network_that_deeplift_cannot_explain_says_so() -> None:
    relu = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(1, 2, 3), relu, nn.Conv2d(2, 2, 3), relu, nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(ValueError, match=r"captum's DeepLift cannot explain this network: .*more than once"):
        medviz.explain(twice, torch.rand(1, 1, 8, 8), "captum.deeplift", 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in twice.modules())


@pytest.mark.parametrize("name", ["saliency", "deeplift"])
def test_float16_is_refused_where_gradients_would_vanish(name: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).half()
    with pytest.raises(ValueError, match="float16, in which captum's gradients vanish"):
        medviz.explain(model, torch.rand(1, 1, 4, 4), f"captum.{name}", 0)
    bfloat = medviz.explain(model.bfloat16(), torch.rand(1, 1, 4, 4), f"captum.{name}", 0)
    assert bfloat.values.dtype == torch.float32
    assert bfloat.values.any()


def test_the_seed_of_a_random_method_is_recorded() -> None:
    model, image = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(16, 2)), torch.randn(1, 1, 4, 4)
    first = medviz.explain(model, image, "captum.gradientshap:stdev=1.0", 0)
    again = medviz.explain(model, image, f"captum.gradientshap:stdev=1.0,seed={first.provenance['seed']}", 0)
    assert torch.equal(first.values, again.values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deeplift:baseline=max", "`baseline` is a finite number, 'min' or 'mean'; got 'max'"),
        ("deeplift:steps=3", "has no parameter 'steps'"),
        ("integratedgradients:steps=0", "`steps` is an int ≥ 1"),
        ("occlusion:window=4,stride=5", "`stride` 5 is longer than `window` 4"),
        ("gradientshap:seed=-1", "`seed` is an int ≥ 0"),
        ("layergradcam:layer=[a,b]", r"`layer` is the name of one module, or None; got \['a', 'b'\]"),
    ],
)
def test_bad_parameters(text: str, message: str) -> None:
    with pytest.raises(medviz.PluginError, match=message):
        medviz.get_explainer(f"captum.{text}")


def test_a_layer_without_a_grid() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    with pytest.raises(ValueError, match=r"captum needs one whose output is \(B, K, \*s\)"):
        medviz.explain(model, torch.rand(1, 1, 8, 8), "captum.layergradientxactivation:layer=1", 0)
