"""Checks of explainers: what a map is, in every precision."""

from __future__ import annotations

from typing import Any

import torch

from medviz.hookspecs import Explainer
from medviz.testing import cases
from medviz.testing.models import Classifier
from medviz.testing.outcome import NotApplicable, describe_error, fail, name_of, skip_unless


def check_shape(instance: Explainer) -> None:
    """A map of 1 or C channels on the image's grid, float32, on the CPU, in 2-D and 3-D, for odd and even sizes."""
    explainer = cases.ready(instance)
    for ndim in sorted({cases.axes(instance, n) for n in (2, 3)}):
        batch = cases.images(ndim, channels=2)
        values = cases.run(explainer, Classifier(ndim), batch).values
        allowed = [(len(batch), k, *batch.shape[2:]) for k in (1, 2)]
        if tuple(values.shape) not in allowed or values.dtype != torch.float32 or values.device.type != "cpu":
            fail(
                f"{name_of(instance)} explained float32 images {tuple(batch.shape)}",
                f"float32 values {allowed[0]} or {allowed[1]} on the CPU",
                f"{values.dtype} {tuple(values.shape)} on {values.device}",
                "Return (B, K, *s) from `explain`, K = 1 or the number of channels, and let the pipeline resize it.",
            )


def check_finite(instance: Explainer) -> None:
    """No NaN or infinity: for noise, for images of zeros, of one value, and of very large and very small values."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    noise = cases.images(ndim)
    special = {
        "noise": noise,
        "zeros": torch.zeros_like(noise),
        "one value": torch.full_like(noise, 3.0),
        "values around 10,000": noise * 1e4,
        "values around 0.0001": noise * 1e-4,
    }
    for name, batch in special.items():
        try:
            values = explainer(Classifier(ndim), batch, 0).values  # type: ignore[union-attr]
            got = "" if torch.isfinite(values).all() else "NaN or infinite values"
        except Exception as err:
            got = describe_error(err)
        if got:
            fail(
                f"{name_of(instance)} explained images of {name}",
                "a finite map",
                got,
                "Look for a division by a sum, a range or a score that can be 0, and for exp of a large number.",
            )


def check_sign(instance: Explainer) -> None:
    """The declared range holds: without `signed` no value is negative, whatever is explained; with it some are."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    negative = False
    for seed in range(2):
        for target in range(3):
            values = cases.run(explainer, Classifier(ndim, seed=seed), cases.images(ndim, seed=seed), target).values
            negative = negative or bool((values < 0).any())
            if negative and not explainer.signed:
                fail(
                    f"{name_of(instance)}, which does not declare `signed`, explained class {target}",
                    "values ≥ 0",
                    "negative values",
                    "Declare `signed: ClassVar[bool] = True`, or cut off what is negative.",
                )
    if explainer.signed and not negative:
        fail(
            f"{name_of(instance)}, which declares `signed`, explained three classes of two networks",
            "negative values too, which speak against a class",
            "none",
            "Remove the declaration: it gives pictures the colours of two signs.",
        )


def check_layer(instance: Explainer) -> None:
    """Two layers give two maps: the one that is named is the one that is read."""
    skip_unless(instance.needs_layer and cases.has(instance, "layer"), "it reads no layer, or takes none by name.")
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    skip_unless(not explainer.needs_gap, "it reads only the last layer before global average pooling.")
    model, batch = Classifier(ndim), cases.images(ndim)
    first, second = (cases.run(cases.changed(explainer, layer=name), model, batch).values for name in ("stem", "deep"))
    if torch.equal(first, second):
        fail(
            f"{name_of(instance)} explained one network with layer='stem' and with layer='deep'",
            "two maps",
            "the same map twice",
            "Read `probe.activation(self.layer)` and `probe.gradient(self.layer, target)`.",
        )


def check_declarations(instance: Explainer) -> None:
    """A method that declares `needs_layer` has a parameter `layer`, whose layers the pass is made for."""
    if instance.needs_layer and not hasattr(instance, "layer"):
        fail(
            f"{name_of(instance)}, which declares `needs_layer`, was asked for its `layer`",
            "a name, several, or None for the automatic choice",
            "no such parameter",
            "Subclass `LayerExplainer`, add a field `layer`, or remove the declaration.",
        )


def check_device_and_dtype(instance: Explainer) -> None:
    """A float64 network gets a float64 map, computed in float64; where there is a GPU, the same map comes from it."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    model, batch = Classifier(ndim), cases.images(ndim)
    single = cases.run(explainer, model, batch).values
    double = cases.run(explainer, model.double(), batch.double()).values
    if double.dtype != torch.float64 or (double.any() and torch.equal(double.float().double(), double)):
        fail(
            f"{name_of(instance)} explained a float64 network",
            "values computed in float64",
            f"{double.dtype} with the precision of float32" if double.dtype == torch.float64 else str(double.dtype),
            "Make every tensor with `.to(probe.inputs)` or `new_zeros`, and do not call `.float()`.",
        )
    _check_close(instance, "a float64 network", double, single, 1e-3, "Do not cast to a fixed precision.")
    if torch.cuda.is_available():
        far = cases.run(explainer, model.float().cuda(), batch).values
        _check_close(instance, "a network on the GPU", far, single, 1e-2, "Make tensors on `probe.inputs.device`.")


def check_bfloat16(instance: Explainer) -> None:
    """A bfloat16 network gets a finite float32 map, nearly that of the float32 network."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    model, batch = Classifier(ndim), cases.images(ndim)
    single = cases.run(explainer, model, batch).values
    half = cases.run(explainer, model.bfloat16(), batch.bfloat16()).values
    similar = float(torch.nn.functional.cosine_similarity(half.flatten().double(), single.flatten().double(), 0))
    if half.dtype != torch.float32 or not (similar > 0.9 or not single.any()):
        fail(
            f"{name_of(instance)} explained a bfloat16 network",
            "a float32 map like that of the float32 network, cosine similarity above 0.9",
            f"{half.dtype}, {similar:.2f}",
            "Sum and divide in float32, as what the probe returns is.",
        )


def check_float16(instance: Explainer) -> None:
    """A float16 network with small gradients gets a finite float32 map that is not empty, or is refused."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    model, batch = Classifier(ndim), cases.images(ndim)
    with torch.no_grad():
        for parameter in model.fc.parameters():
            parameter.mul_(1e-4)
    single = cases.run(explainer, model, batch).values
    try:
        half: Any = explainer(model.half(), batch.half(), 0)
    except ValueError as err:
        raise NotApplicable(f"it refuses float16: {err}") from err
    if half.values.dtype != torch.float32 or (single.any() and not half.values.any()):
        fail(
            f"{name_of(instance)} explained a float16 network whose last layer has small weights",
            "a float32 map that is not empty, for that of the float32 network is not, or a ValueError",
            f"{half.values.dtype}, {'some' if half.values.any() else 'no'} values other than 0",
            "Multiply in float32, as what the probe returns is: the product of small float16 numbers is 0.",
        )


def _check_close(
    instance: Explainer, what: str, values: torch.Tensor, expected: torch.Tensor, tolerance: float, advice: str
) -> None:
    if (off := cases.distance(values, expected)) > tolerance:
        fail(
            f"{name_of(instance)} explained {what}",
            f"the float32 map of the CPU within {tolerance:g} of its maximum",
            f"a difference of {off:.2g} of the maximum",
            advice,
        )
