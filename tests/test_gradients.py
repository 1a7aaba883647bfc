"""Gradients with respect to the image, on paper: vanillagrad, inputxgradient, smoothgrad and integratedgradients."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ASKED, DEVICES, Classifier, UNet, check_close, explain, images
from torch import Tensor, nn

import medviz

SMOOTH = ["smoothgrad", "guidedbackpropsmooth"]
STATISTICS = ["mean", "magnitude", "variance"]
SIZES = {2: (7, 5), 3: (5, 4, 3)}


class Plane(nn.Module):
    """score_n = Σ w_n · x + b_n: the gradient is w_n, whatever the image is."""

    def __init__(self, channels: int, *size: int, classes: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(images(classes, channels, *size, seed=7))
        self.bias = nn.Parameter(torch.arange(float(classes)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("b...,n...->bn", x, self.weight) + self.bias


class Power(nn.Module):
    """score_n = Σ w_n · x^p."""

    def __init__(self, power: int, channels: int, *size: int, classes: int = 3) -> None:
        super().__init__()
        self.power = power
        self.weight = nn.Parameter(images(classes, channels, *size, seed=8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("b...,n...->bn", x**self.power, self.weight)


class Sign(nn.Module):
    """Two logits, Σ x and -Σ x: which is larger hangs on the noise."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1, keepdim=True)
        return torch.cat([total, -total], 1)


def of_classes(weight: Tensor, classes: Tensor) -> Tensor:
    return weight.detach()[classes]


def noise(seed: int, samples: int, image: Tensor, spread: float) -> Tensor:
    """The noise as documented, (n, B, C, *S): one field (C, *S) for each sample, times the range of each image."""
    source = torch.Generator().manual_seed(seed)
    fields = torch.stack([torch.randn(image.shape[1:], generator=source) for _ in range(samples)])[:, None]
    ranges = image.flatten(1).amax(1) - image.flatten(1).amin(1)
    return spread * ranges.view(-1, *[1] * (image.ndim - 1)) * fields


@pytest.mark.parametrize("ndim", SIZES)
def test_the_gradient_of_a_linear_network_is_its_weight(ndim: int) -> None:
    size, classes = SIZES[ndim], torch.tensor([2, 0])
    model, image = Plane(2, *size), images(2, 2, *size)
    gradient = explain("vanillagrad", model, image, classes)
    assert gradient.signed
    check_close(gradient.values, of_classes(model.weight, classes), 1e-6)
    product = explain("inputxgradient", model, image, classes)
    assert product.signed
    check_close(product.values, image * of_classes(model.weight, classes), 1e-6)
    check_close(product.values.flatten(1).sum(1), torch.tensor(product.scores) - model.bias[classes])


@pytest.mark.parametrize("ndim", SIZES)
@pytest.mark.parametrize("make", [Classifier, UNet])
def test_the_gradient_is_that_of_a_finite_difference(make: Any, ndim: int) -> None:
    model, image = make(ndim, 1, 3).double(), images(1, 1, *SIZES[ndim], dtype=torch.float64)
    target = 1 if make is Classifier else medviz.SegmentationTarget(1)
    values = explain("vanillagrad", model, image, target).values
    step = 1e-6
    for voxel in range(0, image.numel(), 7):
        moved = torch.zeros_like(image).flatten()
        moved[voxel] = step
        moved = moved.view_as(image)
        slope = (model(image + moved) - model(image - moved))[:, 1].mean() / (2 * step)
        assert values.flatten()[voxel].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("method", SMOOTH)
def test_without_noise_smoothgrad_is_the_gradient(method: str) -> None:
    model, image = Classifier(2), images(3, 2, 9, 7)
    plain = explain(method.removesuffix("smooth").replace("smoothgrad", "vanillagrad"), model, image, 1).values
    assert torch.equal(explain(method, model, image, 1, stdev_spread=0, n_samples=1).values, plain)
    check_close(explain(method, model, image, 1, stdev_spread=0, n_samples=7).values, plain, 1e-6)
    magnitude = explain(method, model, image, 1, stdev_spread=0, n_samples=7, statistic="magnitude")
    check_close(magnitude.values, plain.abs(), 1e-6)
    flat = torch.full((1, 2, 9, 7), 3.0)  # an image without a range has no noise
    plain = explain("vanillagrad", model, flat, 1).values
    check_close(explain("smoothgrad", model, flat, 1, n_samples=3).values, plain, 1e-6)


@pytest.mark.parametrize("n", [1, 4, 64])
def test_magnitude_does_not_depend_on_the_number_of_samples(n: int) -> None:
    model, image = Plane(2, 6, 5), images(2, 2, 6, 5)
    magnitude = explain("smoothgrad", model, image, 1, n_samples=n, statistic="magnitude")
    assert not magnitude.signed
    check_close(magnitude.values, of_classes(model.weight, torch.tensor([1, 1])).abs(), 1e-6)


def test_the_variance_of_a_linear_network_is_zero() -> None:
    model, image = Plane(2, 6, 5).double(), images(2, 2, 6, 5, dtype=torch.float64)
    variance = explain("smoothgrad", model, image, 1, n_samples=9, statistic="variance").values
    assert variance.max() <= 1e-15 * model.weight.square().max()


@pytest.mark.parametrize("ndim", SIZES)
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_closed_forms_on_a_quadratic_network(ndim: int, batch_size: Any) -> None:
    """One field of noise for each sample, the same for every image, times each image's own range."""
    size, classes = SIZES[ndim], torch.tensor([2, 0, 1])
    model, image = Power(2, 2, *size), images(3, 2, *size) * torch.tensor([1.0, 5.0, 0.2]).view(-1, *[1] * (ndim + 1))
    weight = of_classes(model.weight, classes)
    gradients = 2 * weight * (image + noise(11, 6, image, 0.3))
    expected = {
        "mean": gradients.mean(0),
        "magnitude": gradients.square().mean(0).sqrt(),
        "variance": gradients.var(0, correction=0),
    }
    for statistic, values in expected.items():
        got = explain(
            "smoothgrad", model, image, classes, stdev_spread=0.3, n_samples=6, statistic=statistic, seed=11,
            batch_size=batch_size,
        )  # fmt: skip
        assert got.signed == (statistic == "mean")
        check_close(got.values, values, 2e-6)


def test_the_target_is_that_of_the_clean_image() -> None:
    image = images(1, 1, 6, 6)
    image += 0.01 - image.mean()
    noisy = image + noise(0, 25, image, 0.15)[:, 0]
    assert 3 < int((Sign()(noisy).argmax(1) == 1).sum()) < 22  # the noise does change the class
    attribution = explain("smoothgrad", Sign(), image, seed=0)
    assert attribution.classes == (0,)
    assert (attribution.values == 1).all()


@pytest.mark.parametrize("method", [*SMOOTH, "rise"])
def test_a_seed_repeats_a_map_and_none_records_a_fresh_one(method: str) -> None:
    model, image = Classifier(2), images(2, 2, 9, 7)
    few: dict[str, Any] = {"n_masks": 9, "cells": 3} if method == "rise" else {"n_samples": 3}
    one = explain(method, model, image, 1, seed=5, **few)
    assert torch.equal(explain(method, model, image, 1, seed=5, **few).values, one.values)
    assert not torch.equal(explain(method, model, image, 1, seed=6, **few).values, one.values)
    fresh, other = (explain(method, model, image, 1, **few) for _ in range(2))
    assert not torch.equal(fresh.values, other.values)
    seed = fresh.provenance["seed"]
    assert isinstance(seed, int)
    assert torch.equal(explain(method, model, image, 1, seed=seed, **few).values, fresh.values)


@pytest.mark.parametrize("method", [*SMOOTH, "rise"])
def test_the_global_generators_go_on_as_if_nothing_had_happened(method: str) -> None:
    few: dict[str, Any] = {"n_masks": 9} if method == "rise" else {"n_samples": 3}

    def draw() -> tuple[Any, ...]:
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    def seed() -> None:
        torch.manual_seed(1), np.random.seed(1), random.seed(1)

    model, image = Classifier(2), images(1, 2, 8, 8)
    seed()
    expected = draw()
    seed()
    first = explain(method, model, image, 1, seed=3, **few).values
    assert draw() == expected
    assert torch.equal(explain(method, model, image, 1, seed=3, **few).values, first)


@pytest.mark.parametrize("method", [*SMOOTH, "integratedgradients", "vanillagrad", "inputxgradient", "rise"])
@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    size=st.lists(st.integers(3, 8), min_size=2, max_size=3),
    batch=st.integers(1, 4),
    channels=st.integers(1, 3),
    statistic=st.sampled_from(STATISTICS),
)
def test_a_batch_equals_single_images_and_no_batch_size_matters(
    method: str, size: list[int], batch: int, channels: int, statistic: str
) -> None:
    parameters: dict[str, Any] = {
        "rise": {"n_masks": 7, "cells": 3, "seed": 2},
        "integratedgradients": {"steps": 5, "baseline": "min"},
    }.get(method, {"n_samples": 5, "seed": 2, "statistic": statistic} if method in SMOOTH else {})
    model = Classifier(len(size), channels, width=3).double()
    image = images(batch, channels, *size, dtype=torch.float64)
    classes = torch.arange(batch) % 4
    together = explain(method, model, image, classes, **parameters).values
    assert together.any()
    for batch_size in (1, 2, 3):
        check_close(explain(method, model, image, classes, batch_size=batch_size, **parameters).values, together, 1e-9)
    last = explain(method, model, image[-1:], int(classes[-1]), **parameters).values
    if last.any():
        check_close(together[-1:], last, 1e-9)


@pytest.mark.parametrize(
    ("method", "parameters"), [("smoothgrad", {"n_samples": 4, "seed": 0}), ("integratedgradients", {"steps": 8})]
)
def test_copies_of_a_batch_in_one_pass_keep_their_images_and_classes(method: str, parameters: dict[str, Any]) -> None:
    model, image, classes = Classifier(2), images(2, 2, 9, 8), torch.tensor([0, 3])
    together = explain(method, model, image, classes, batch_size=64, **parameters).values
    for i in range(2):
        alone = explain(method, model, image[i : i + 1], int(classes[i]), **parameters).values
        check_close(together[i : i + 1], alone)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["vanillagrad", "smoothgrad", "integratedgradients", "inputxgradient"])
def test_half_precision_networks(method: str, dtype: torch.dtype, device: str) -> None:
    parameters: dict[str, Any] = {"seed": 1} if method == "smoothgrad" else {}
    image = images(2, 2, 9, 8).to(dtype)  # representable in both
    full = explain(method, Classifier(2), image.float(), 1, **parameters)
    half = explain(method, Classifier(2).to(device, dtype), image.to(device), 1, **parameters)
    assert half.values.dtype == torch.float32
    assert half.values.device.type == "cpu"
    check_close(half.values, full.values, 0.1)
    assert torch.corrcoef(torch.stack([half.values.flatten(), full.values.flatten()]))[0, 1] > 0.99


def test_small_gradients_of_a_half_network_do_not_vanish() -> None:
    """A mean over 3 million voxels: each gradient is far below the smallest number of float16."""
    model = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(1, 2)).half()
    nn.init.ones_(model[2].weight)
    image = images(1, 1, 144, 144, 144).half()
    values = explain("vanillagrad", model, image, 0).values
    assert torch.allclose(values, torch.full_like(values, 1 / 144**3), rtol=1e-2, atol=0)


ROWS: list[int] = []


class Counting(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        ROWS.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize(
    ("method", "parameters", "copies"),
    [
        ("vanillagrad", {}, 1),
        ("smoothgrad", {"n_samples": 7}, 7),
        ("guidedbackpropsmooth", {"n_samples": 7}, 7),
        ("integratedgradients", {"steps": 7}, 8),  # and the baseline, to see whether they add up
        ("rise", {"n_masks": 7}, 7),
    ],
)
def test_no_pass_is_larger_than_the_batch_size(method: str, parameters: dict[str, Any], copies: int) -> None:
    for batch_size in (1, 3):
        ROWS.clear()
        explain(method, Counting(2), images(3, 2, 8, 8), 1, batch_size=batch_size, **parameters)
        assert max(ROWS) <= batch_size
        # the clean images, and what the method asks for
        assert sum(ROWS) == 3 + 3 * copies + ASKED * (batch_size > 1)


@pytest.mark.parametrize("method", ["vanillagrad", "smoothgrad", "guidedbackprop", "integratedgradients", "rise"])
def test_autocast(method: str) -> None:
    parameters: dict[str, Any] = {"seed": 1} if method in ("smoothgrad", "rise") else {}
    model, image = Classifier(2), images(2, 2, 9, 8)
    explainer = medviz.get_explainer(f"medviz-xai/{method}", **parameters)
    full, half = (explainer(model, image, 1, autocast=dtype) for dtype in (False, torch.bfloat16))
    assert isinstance(full, medviz.Attribution)
    assert isinstance(half, medviz.Attribution)
    assert half.values.dtype == torch.float32
    assert not torch.equal(half.values, full.values)
    assert torch.corrcoef(torch.stack([half.values.flatten(), full.values.flatten()]))[0, 1] > 0.95


BASELINES: dict[Any, Any] = {
    0: lambda x: torch.zeros_like(x),
    -1.5: lambda x: torch.full_like(x, -1.5),
    "min": lambda x: x.amin(tuple(range(2, x.ndim)), keepdim=True).expand_as(x),
    "mean": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True).expand_as(x),
}


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("ndim", SIZES)
def test_integrated_gradients_of_a_linear_network(ndim: int, baseline: Any) -> None:
    size, classes = SIZES[ndim], torch.tensor([2, 0])
    model, image = Plane(2, *size), images(2, 2, *size)
    got = explain("integratedgradients", model, image, classes, steps=1, baseline=baseline)
    assert got.signed
    check_close(got.values, (image - BASELINES[baseline](image)) * of_classes(model.weight, classes))


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("power", [2, 3, 4, 5, 6])
def test_integrated_gradients_are_exact_for_polynomials(power: int, baseline: Any) -> None:
    """n steps of Gauss-Legendre integrate a gradient of degree 2n - 1 exactly: w · (x^p - x0^p) at each voxel."""
    model, image = Power(power, 2, 4, 3).double(), images(2, 2, 4, 3, dtype=torch.float64)
    start = BASELINES[baseline](image)
    got = explain("integratedgradients", model, image, 1, steps=(power + 1) // 2, baseline=baseline).values
    assert got.dtype == torch.float64
    check_close(got, model.weight.detach()[1] * (image**power - start**power), 1e-12)


def smooth(model: nn.Module) -> nn.Module:
    """Put a SiLU in the place of every ReLU."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, nn.SiLU())
    return model


def incompleteness(model: nn.Module, image: Tensor, baseline: Any, **parameters: Any) -> tuple[float, float]:
    """Return by how much a map's sum misses the difference of the scores, as a fraction of it, and of all magnitudes.

    The worst of the images of the batch.
    """
    target: Any = torch.tensor([2, 0])
    with torch.no_grad():
        difference = model(image) - model(BASELINES[baseline](image))
    if difference.ndim > 2:
        target, difference = medviz.SegmentationTarget(2), difference[:, 2].flatten(1).mean(1)
    else:
        difference = difference.gather(1, target[:, None])[:, 0]
    values = explain("integratedgradients", model, image, target, baseline=baseline, **parameters).values
    error = (values.flatten(1).sum(1) - difference).abs()
    return float((error / difference.abs()).max()), float((error / values.abs().flatten(1).sum(1)).max())


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("ndim", SIZES)
@pytest.mark.parametrize("make", [Classifier, UNet])
def test_integrated_gradients_sum_to_the_difference_of_the_scores(make: Any, ndim: int, baseline: Any) -> None:
    image = images(2, 1, *(9, 8, 7)[:ndim], seed=4)
    assert incompleteness(smooth(make(ndim, 1, 3)), image, baseline)[0] <= 1e-3
    # a ReLU's gradient jumps on the way: the error falls with the number of steps, not faster
    assert incompleteness(make(ndim, 1, 3), image, baseline)[1] <= 1e-2
    assert incompleteness(make(ndim, 1, 3), image, baseline, steps=1024)[1] <= 1e-3


def test_too_few_steps_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model, image = Power(6, 1, 4, 3), images(2, 1, 4, 3)
    explain("integratedgradients", model, image, 1)
    assert "steps" not in caplog.text
    explain("integratedgradients", model, image, 1, steps=1)
    assert "take more `steps`" in caplog.text


def test_several_baselines_are_several_answers() -> None:
    model, image = Classifier(2), images(1, 2, 8, 8)
    maps = [explain("integratedgradients", model, image, 1, baseline=b).values for b in BASELINES]
    assert all(not torch.equal(a, b) for i, a in enumerate(maps) for b in maps[:i])


@pytest.mark.parametrize("method", ["smoothgrad", "integratedgradients", "vanillagrad"])
def test_model_arguments_follow_their_images(method: str) -> None:
    class Scaled(Plane):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) * scale[:, None]

    model, image, scale = Scaled(1, 5, 4), images(3, 1, 5, 4), torch.tensor([1.0, -2.0, 5.0])
    few: dict[str, Any] = {"n_samples": 4} if method == "smoothgrad" else {}
    got = explain(method, model, image, 1, model_args=(medviz.per_image(scale),), batch_size=2, **few).values
    plain = model.weight.detach()[1].expand_as(image) * (image if method == "integratedgradients" else 1)
    check_close(got, plain * scale.view(3, 1, 1, 1))


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("smoothgrad", {"n_samples": 0}, "`n_samples` is an int ≥ 1; got 0"),
    ("smoothgrad", {"n_samples": 2.5}, "`n_samples` is an int ≥ 1; got 2.5"),
    ("smoothgrad", {"n_samples": True}, "`n_samples` is an int ≥ 1; got True"),
    ("smoothgrad", {"stdev_spread": -0.1}, "`stdev_spread` is a finite number ≥ 0; got -0.1"),
    ("smoothgrad", {"stdev_spread": float("inf")}, "`stdev_spread` is a finite number ≥ 0; got inf"),
    ("smoothgrad", {"stdev_spread": "a"}, "`stdev_spread` is a finite number ≥ 0; got 'a'"),
    ("smoothgrad", {"statistic": "median"}, "statistic"),
    ("smoothgrad", {"seed": -1}, "`seed` is an int ≥ 0 and < 4294967296; got -1"),
    ("guidedbackpropsmooth", {"seed": 2**32}, "`seed` is an int"),
    ("integratedgradients", {"steps": 0}, "`steps` is an int ≥ 1; got 0"),
    ("integratedgradients", {"baseline": "max"}, "`baseline` is a finite number, 'min' or 'mean'; got 'max'"),
    ("integratedgradients", {"baseline": float("nan")}, "`baseline` is a finite number"),
    ("integratedgradients", {"baseline": None}, "`baseline` is a finite number"),
    ("integratedgradients", {"baseline": True}, "`baseline` is a finite number, 'min' or 'mean'; got True"),
    ("rise", {"keep": 1.0}, "`keep` is a finite number > 0 and < 1; got 1.0"),
    ("rise", {"keep": 0}, "`keep` is a finite number > 0 and < 1; got 0"),
    ("rise", {"n_masks": 0}, "`n_masks` is an int ≥ 1; got 0"),
    ("rise", {"cells": 0}, "`cells` is an int ≥ 1; got 0"),
    ("rise", {"fill": float("nan")}, "`fill` is a finite number; got nan"),
]


@pytest.mark.parametrize(("method", "parameters", "message"), WRONG)
def test_wrong_parameters_say_what_is_wrong(method: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(medviz.PluginError, match=re.escape(message)):
        medviz.get_explainer(f"medviz-xai/{method}", **parameters)
    with pytest.raises(ValueError, match=re.escape(message)):
        type(medviz.get_explainer(f"medviz-xai/{method}"))(**parameters)


class Detached(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


@pytest.mark.parametrize("method", ["vanillagrad", "inputxgradient", "guidedbackprop", "integratedgradients", *SMOOTH])
def test_a_network_that_cuts_its_graph_says_so(method: str) -> None:
    with pytest.raises(ValueError, match=r"the score 'class 1' does not depend on the image"):
        explain(method, Detached(2), images(1, 2, 8, 8), 1)


class Root(nn.Module):
    """The slope of the root at zero is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sqrt().sum(1, keepdim=True)


def test_an_infinite_gradient_is_an_error() -> None:
    with pytest.raises(ValueError, match="gradient of the score holds values that are NaN or infinite"):
        explain("vanillagrad", Root(), torch.zeros(1, 1, 4, 4), 0)
