"""The same maps as captum, where captum has the method; small MONAI networks, 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Callable

import captum.attr
import pytest
import torch
from networks import check_close, explain, images
from networks_monai import densenet, resnet_10, resnet_18, seresnet
from torch import Tensor, nn

from medviz.tensors import resize

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks and attributes on non-linear:UserWarning"),
]

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
CLASSES = torch.tensor([2, 0])


Case = tuple[Callable[[int], nn.Module], int, str]
CASES: list[Case] = [
    (densenet, 2, "features.norm5"),
    (densenet, 3, "features.denseblock3"),
    (resnet_18, 2, "layer3"),
    (resnet_18, 3, "layer2.1.conv1"),
    (resnet_10, 3, "layer3"),
    (seresnet, 2, "layer3"),
]
SIZES = {2: (72, 68), 3: (36, 40, 33)}


def build(make: Callable[[int], nn.Module], ndim: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = make(ndim).eval().to(dtype)
    return model, images(2, 1, *SIZES[ndim], dtype=dtype)


def written_out(model: nn.Module, layer: str, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return activation and gradient at `layer` by plain autograd; a copy goes on, for layers after work in place."""
    kept = {}

    def keep(module: nn.Module, args: object, output: Tensor) -> Tensor:
        kept["a"] = output
        return output.clone()

    handle = model.get_submodule(layer).register_forward_hook(keep)
    score = model(image).gather(1, CLASSES[:, None]).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept["a"])
    return kept["a"].detach(), gradient


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("make", "ndim", "layer"), CASES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_equal(make: Callable[[int], nn.Module], ndim: int, layer: str, dtype: torch.dtype) -> None:
    model, image = build(make, ndim, dtype)
    a, g = written_out(model, layer, image)
    module = model.get_submodule(layer)
    spatial = tuple(range(2, a.ndim))

    def captums(method: type) -> Tensor:
        attribution: Tensor = method(model, module).attribute(image, target=CLASSES)
        return attribution.detach()

    expected = {
        "gradcam": captums(captum.attr.LayerGradCam).relu(),
        "hirescam": captums(captum.attr.LayerGradientXActivation).sum(1, keepdim=True).relu(),
        "layercam": (g.relu() * a).sum(1, keepdim=True).relu(),
        "xgradcam": (torch.nan_to_num((g * a).sum(spatial, keepdim=True) / a.sum(spatial, keepdim=True)) * a)
        .sum(1, keepdim=True)
        .relu(),  # a map of zeros gets no weight
    }
    for method, raw in expected.items():
        attribution = explain(method, model, image, CLASSES, layer=layer)
        assert attribution.raw is not None
        check_close(attribution.raw, raw, TOLERANCE[dtype])
        check_close(attribution.values, resize(raw, image.shape[2:]), TOLERANCE[dtype])


def test_signed_hirescam() -> None:
    model, image = build(densenet, 3, torch.float32)
    layer = captum.attr.LayerGradientXActivation(model, model.get_submodule("features.denseblock3"))
    expected = layer.attribute(image, target=CLASSES).sum(1, keepdim=True)
    raw = explain("hirescam", model, image, CLASSES, layer="features.denseblock3", relu=False).raw
    assert raw is not None
    assert (raw < 0).any()
    check_close(raw, expected)
