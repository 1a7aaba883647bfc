"""What holds for every explainer that reads layers: batches, precisions, targets, and a model that stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    DEVICES,
    GRADIENT,
    LAYERED,
    TOLERANCE,
    Classifier,
    UNet,
    check_close,
    explain,
    images,
)
from torch import Tensor, nn

import medviz

NINE = {
    "ablationcam", "cam", "eigencam", "gradcam", "gradcampp", "hirescam", "layercam", "scorecam", "xgradcam",
}  # fmt: skip
CLASSES = torch.tensor([2, 0, 3, 0, 1])


def test_the_nine_methods_are_there() -> None:
    assert set(LAYERED) >= NINE
    assert {"gradcam", "gradcampp", "hirescam", "layercam", "xgradcam"} <= set(GRADIENT)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("method", LAYERED)
def test_a_batch_equals_its_images_alone(method: str, ndim: int, device: str) -> None:
    model, image = Classifier(ndim).to(device), images(5, 2, *(9, 7, 6)[:ndim]).to(device)
    together = explain(method, model, image, CLASSES)
    assert together.classes == tuple(CLASSES.tolist())
    for i in range(5):
        alone = explain(method, model, image[i : i + 1], int(CLASSES[i]))
        check_close(together.values[i], alone.values[0], TOLERANCE[device])
        check_close(together[i].raw, alone.raw, TOLERANCE[device])  # type: ignore[arg-type]


@pytest.mark.parametrize("method", LAYERED)
def test_the_predicted_class_is_that_of_each_image(method: str) -> None:
    model, image = Classifier(2), images(5, 2, 9, 7, seed=3)
    predicted = model(image).argmax(1)
    assert len(set(predicted.tolist())) > 1
    got, expected = explain(method, model, image), explain(method, model, image, predicted)
    assert got.classes == tuple(predicted.tolist())
    assert got.target == "predicted"
    assert torch.equal(got.values, expected.values)


@pytest.mark.parametrize("method", LAYERED)
def test_the_order_of_the_images_does_not_matter(method: str) -> None:
    model, image, order = Classifier(2), images(5, 2, 8, 8), torch.tensor([3, 1, 4, 0, 2])
    maps = explain(method, model, image, CLASSES).values
    check_close(explain(method, model, image[order], CLASSES[order]).values, maps[order])


@pytest.mark.parametrize("method", LAYERED)
def test_several_targets_equal_single_calls(method: str) -> None:
    model, image = Classifier(3), images(3, 2, 5, 6, 7)
    targets: list[Any] = [0, None, torch.tensor([2, 0, 1]), 3]
    together = medviz.explain(model, image, f"medviz-xai/{method}", targets)
    assert isinstance(together, list)
    assert [a.target for a in together] == ["class 0", "predicted", "classes 2 0 1", "class 3"]
    for attribution, target in zip(together, targets, strict=True):
        check_close(attribution.values, explain(method, model, image, target).values)


_FULL = {torch.float32: 1e-5, torch.float64: 1e-12}
_HALF = {torch.bfloat16: 2e-2, torch.float16: 2e-2}


@st.composite
def _cases(draw: st.DrawFn) -> dict[str, Any]:
    ndim = draw(st.sampled_from([2, 3]))
    return {
        "batch": draw(st.integers(1, 3)),
        "channels": draw(st.integers(1, 3)),
        "size": draw(st.lists(st.integers(3, 11), min_size=ndim, max_size=ndim)),
        "dtype": draw(st.sampled_from([*_FULL, *_HALF])),
        "seed": draw(st.integers(0, 99)),
    }


@pytest.mark.parametrize("method", LAYERED)
@settings(derandomize=True, deadline=None, max_examples=10)
@given(case=_cases())
def test_shapes_and_precisions(method: str, case: dict[str, Any]) -> None:
    """Every result has the contract's shape and type; a batch equals its images alone in each precision."""
    dtype, size = case["dtype"], case["size"]
    model = Classifier(len(size), case["channels"], classes=3, width=3, seed=case["seed"]).to(dtype)
    image = images(case["batch"], case["channels"], *size, seed=case["seed"], dtype=dtype)
    classes = torch.arange(case["batch"]) % 3
    attribution = explain(method, model, image, classes, layer="deep")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert attribution.values.shape[0] == case["batch"]
    assert attribution.values.shape[1] in (1, case["channels"])
    assert list(attribution.values.shape[2:]) == size
    assert attribution.values.dtype == wide
    assert attribution.values.device.type == "cpu"
    assert attribution.signed or (attribution.values >= 0).all()
    assert torch.equal(attribution.image, image)
    last = case["batch"] - 1
    alone = explain(method, model, image[last:], int(classes[last]), layer="deep")
    tolerance = _FULL.get(dtype, _HALF.get(dtype))
    if alone.values.any():
        check_close(attribution.values[last:], alone.values, tolerance)  # type: ignore[arg-type]
    else:
        assert not attribution.values[last:].any()


@pytest.mark.parametrize("dtype", _HALF)
@pytest.mark.parametrize("method", LAYERED)
def test_half_precision_is_near_full_precision(method: str, dtype: torch.dtype) -> None:
    """The network computes in half precision, the map does not: what differs is the network's rounding."""
    image = images(2, 2, 9, 8)
    classes = Classifier(2, seed=1)(image).argmax(1)
    full = explain(method, Classifier(2, seed=1), image, classes)
    half = explain(method, Classifier(2, seed=1).to(dtype), image.to(dtype), classes)
    assert half.values.dtype == torch.float32
    assert half.provenance["layers"] == full.provenance["layers"]
    check_close(half.values, full.values, 5e-2)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return everything that could change in a model, copied."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "identities": [id(p) for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "inplace": [getattr(module, "inplace", None) for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "hooks": [
            [(name, list(value.values())) for name, value in sorted(vars(module).items()) if name.endswith("_hooks")]
            for module in model.modules()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "random": torch.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    """Compare nested snapshots; tensors bit by bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.fixture
def used() -> Classifier:
    """A model in the middle of its training, with mixed flags, gradients, a frozen layer and the user's own hook."""
    model = Classifier(2).train()
    model.stem[1].eval()
    model.stem[0].weight.requires_grad_(False)
    model(images(3, 2, 8, 8)).sum().backward()
    model.deep.register_forward_hook(lambda module, args, output: None)
    return model


@pytest.mark.parametrize("method", LAYERED)
def test_the_model_is_untouched(used: Classifier, method: str) -> None:
    image = images(3, 2, 8, 8).requires_grad_()
    kept = image.detach().clone()
    before = snapshot(used)
    for target in (0, torch.tensor([1, 0, 2])):
        explain(method, used, image, target)
    with pytest.raises(ValueError, match="out of range"):
        explain(method, used, image, 9)
    after = snapshot(used)
    assert not [part for part in before if not same(before[part], after[part])]
    assert torch.equal(image, kept)
    assert image.requires_grad
    assert image.grad is None


def test_the_snapshot_sees_what_it_is_there_for(used: Classifier) -> None:
    changes = {
        "training": lambda m: m.stem[1].train(),
        "inplace": lambda m: setattr(m.stem[2], "inplace", False),
        "requires_grad": lambda m: m.fc.weight.requires_grad_(False),
        "grad": lambda m: setattr(m.fc.bias, "grad", torch.zeros(4)),
        "hooks": lambda m: m.fc.register_forward_hook(print),
        "state": lambda m: m.stem[1].running_mean.add_(1),
        "random": lambda m: torch.rand(1),
    }
    for part, change in changes.items():
        model = copy.deepcopy(used)
        before = snapshot(model)
        change(model)
        after = snapshot(model)
        assert part in [p for p in before if not same(before[p], after[p])]


@pytest.mark.parametrize("method", LAYERED)
def test_it_works_under_no_grad_inference_mode_and_with_a_frozen_model(method: str) -> None:
    model, image = Classifier(2), images(2, 2, 8, 8)
    expected = explain(method, model, image, 1).values
    with torch.no_grad():
        assert torch.equal(explain(method, model, image, 1).values, expected)
    with torch.inference_mode():
        assert torch.equal(explain(method, model, image.clone(), 1).values, expected)
    assert torch.equal(explain(method, model.requires_grad_(False), image, 1).values, expected)


class _Constant(Classifier):
    """A head of zeros with its graph intact."""

    def head(self, features: Tensor) -> Tensor:
        return 0 * super().head(features)


@pytest.mark.parametrize("method", LAYERED)
def test_a_network_that_ignores_the_image_gets_a_map_of_zeros_where_declared(method: str) -> None:
    model = Classifier(2)
    nn.init.zeros_(model.fc.weight)
    explainer = medviz.get_explainer(f"medviz-xai/{method}")
    attribution = explain(method, model, images(2, 2, 8, 8), 1)
    assert bool(attribution.values.any()) is not explainer.zero_for_constant
    if method != "cam":  # which refuses a head that is not one linear layer
        attribution = explain(method, _Constant(2), images(2, 2, 8, 8), 1)
        assert bool(attribution.values.any()) is not explainer.zero_for_constant


@pytest.mark.parametrize("method", LAYERED)
def test_uses_target_is_told_truly(method: str) -> None:
    model, image = Classifier(2), images(2, 2, 8, 8)
    differ = not torch.equal(explain(method, model, image, 0).values, explain(method, model, image, 1).values)
    assert differ is medviz.get_explainer(f"medviz-xai/{method}").uses_target


@pytest.mark.parametrize("method", LAYERED)
def test_one_logit_its_negative_and_a_quantity(method: str) -> None:
    model, image = Classifier(2, classes=1), images(3, 2, 8, 8)
    positive = explain(method, model, image, medviz.BinaryTarget())
    for target in (None, 0, medviz.RegressionTarget(0), medviz.BinaryTarget(positive=True)):
        assert torch.equal(explain(method, model, image, target).values, positive.values)
    negative = explain(method, model, image, medviz.BinaryTarget(positive=False))
    assert negative.scores == tuple(-s for s in positive.scores)  # type: ignore[union-attr]
    turned = copy.deepcopy(model)
    with torch.no_grad():
        turned.fc.weight.neg_()
        turned.fc.bias.neg_()
    expected = explain(method, turned, image, 0)
    assert torch.equal(negative.values, expected.values)


@pytest.mark.parametrize("method", [m for m in LAYERED if m != "cam"])
def test_a_callable_target_is_the_score_it_computes(method: str) -> None:
    model, image = Classifier(2), images(3, 2, 8, 8)
    got = explain(method, model, image, lambda out: out[:, 2])
    check_close(got.values, explain(method, model, image, 2).values)
    assert got.classes is None
    contrast = explain(method, model, image, lambda out: out[:, 2] - out[:, 0])
    if medviz.get_explainer(f"medviz-xai/{method}").uses_target:
        assert not torch.equal(contrast.values, got.values)


@pytest.mark.parametrize("method", LAYERED)
def test_a_batch_norm_without_running_statistics_sees_one_image_at_a_time(method: str) -> None:
    model, image = Classifier(2), images(3, 2, 8, 8)
    model.stem[1] = nn.BatchNorm2d(6, track_running_stats=False).eval()
    together = explain(method, model, image, torch.tensor([1, 0, 2]))
    for i, c in enumerate((1, 0, 2)):
        check_close(together[i].values, explain(method, model, image[i : i + 1], c).values)


@pytest.mark.parametrize("method", [m for m in LAYERED if m != "cam"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_segmentation_networks(method: str, ndim: int) -> None:
    """With the mask None, a tensor and "predicted"; odd sizes; the automatic layer is the coarsest grid."""
    model, image = UNet(ndim), images(2, 1, *(9, 7, 6)[:ndim], seed=5)
    channel = 1
    where = model(image).argmax(1) == channel
    assert where.flatten(1).any(1).all()
    maps = {}
    for name, mask in [("all", None), ("predicted", "predicted"), ("same", where), ("half", where.float() / 2)]:
        target = medviz.SegmentationTarget(channel, mask)
        together = maps[name] = explain(method, model, image, target)
        assert together.classes is None
        assert together.values.shape == (2, 1, *image.shape[2:])
        for i in range(2):
            part = medviz.SegmentationTarget(channel, mask[i : i + 1] if isinstance(mask, Tensor) else mask)
            alone = explain(method, model, image[i : i + 1], part)
            if alone.values.any() or together[i].values.any():
                check_close(together[i].values, alone.values)
    assert any(m.values.any() for m in maps.values())
    assert torch.equal(maps["predicted"].values, maps["same"].values)
    if maps["same"].values.any():
        check_close(maps["half"].values, maps["same"].values)
    assert maps["all"].provenance["layers"] == ["bottom"]
    expected = torch.stack([model(image)[i, channel][where[i]].mean() for i in range(2)])
    check_close(torch.tensor(maps["predicted"].scores), expected)


@pytest.mark.parametrize("method", [m for m in LAYERED if m != "cam"])
def test_a_class_has_no_meaning_for_a_segmentation(method: str) -> None:
    for target in (None, 1):
        with pytest.raises(ValueError, match=r"medviz\.SegmentationTarget"):
            explain(method, UNet(2), images(1, 1, 8, 8), target)
