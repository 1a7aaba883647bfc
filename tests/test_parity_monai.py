"""The same maps as MONAI where MONAI is right: an int class, its own normaliser and interpolation switched off."""

from __future__ import annotations

from collections.abc import Callable

import monai.visualize
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from networks import check_close, explain, images
from networks_monai import densenet, resnet_10, resnet_18, seresnet
from torch import Tensor, nn

import medviz
from medviz.tensors import resize

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),  # MONAI's own hooks
]

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
SIZES = {2: (72, 68), 3: (68, 40, 33)}


CASES = [
    (densenet, 2, "features.denseblock4"),
    (densenet, 3, "features.denseblock3"),
    (resnet_18, 2, "layer3"),
    (resnet_18, 3, "layer4"),
    (resnet_10, 2, "layer4"),
    (seresnet, 2, "layer3"),
]


def build(make: Callable[[int], nn.Module], ndim: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return make(ndim).eval().to(dtype), images(2, 1, *SIZES[ndim], dtype=dtype)


def unscaled(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("make", "ndim", "layer"), CASES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_gradcam(make: Callable[[int], nn.Module], ndim: int, layer: str, dtype: torch.dtype) -> None:
    model, image = build(make, ndim, dtype)
    for target in (0, 2):
        attribution = explain("gradcam", model, image, target, layer=layer)
        peer = monai.visualize.GradCAM(model, target_layers=layer, postprocessing=unscaled)
        raw = peer.compute_map(image.clone(), class_idx=target).detach()
        assert attribution.raw is not None
        check_close(attribution.raw, raw, TOLERANCE[dtype])
        check_close(attribution.values, resize(raw, image.shape[2:]), TOLERANCE[dtype])
        if dtype == torch.float32:
            check_close(attribution.values, peer(image.clone(), class_idx=target).detach())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("ndim", [2, 3])
def test_cam(ndim: int, dtype: torch.dtype) -> None:
    """MONAI calls the linear layer at each voxel, so that its map holds the bias at each voxel."""
    model, image = build(densenet, ndim, dtype)
    classes = torch.tensor([2, 0])
    attribution = explain("cam", model, image, classes, layer="class_layers.relu")
    peer = monai.visualize.CAM(model, "class_layers.relu", "class_layers.out", postprocessing=unscaled)
    raw = peer.compute_map(image.clone(), class_idx=classes).detach()
    bias = model.class_layers.out.bias.detach()[classes].view(-1, *[1] * (ndim + 1))
    assert attribution.raw is not None
    check_close(attribution.raw, raw - bias, TOLERANCE[dtype])
    check_close(attribution.values, resize(raw, image.shape[2:]) - bias, TOLERANCE[dtype])
    automatic = explain("cam", model, image, classes)
    assert automatic.provenance["layers"] == ["class_layers.relu"]
    check_close(automatic.values, attribution.values, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("make", "layer"), [(densenet, "class_layers.relu"), (resnet_10, "layer4"), (seresnet, "layer4")]
)
@pytest.mark.parametrize("method", ["gradcam", "gradcampp", "layercam", "hirescam", "xgradcam", "eigencam", "cam"])
def test_the_automatic_layer(make: Callable[[int], nn.Module], layer: str, method: str) -> None:
    """Also where operations after the layer work in place."""
    model, image = build(make, 2, torch.float32)
    automatic = explain(method, model, image, 1)
    assert automatic.provenance["layers"] == [layer]
    check_close(automatic.values, explain(method, model, image, 1, layer=layer).values)


def test_the_affine_of_a_metatensor_is_kept() -> None:
    model, image = build(resnet_10, 3, torch.float32)
    affine = np.array([[-2, 0, 0, 90], [0, 2, 0, -120], [0, 0, 3, -70], [0, 0, 0, 1.0]])
    meta = MetaTensor(image, affine=affine)
    attribution = explain("gradcam", model, meta, 1)
    assert attribution.affine is not None
    assert (attribution.affine == np.stack([affine] * 2)).all()
    assert attribution.spacing == ((2.0, 2.0, 3.0),) * 2
    assert type(attribution.values) is type(attribution.image) is Tensor
    assert torch.equal(attribution.values, explain("gradcam", model, image, 1).values)
    assert (meta.affine.numpy() == affine).all()
    assert explain("gradcam", model, MetaTensor(image), 1).affine is None  # an identity that nobody has given


def test_a_batch_of_mixed_classes_where_monai_mixes_them_up() -> None:
    model, image = build(densenet, 2, torch.float32)
    classes = torch.tensor([2, 0])
    got = explain("gradcam", model, image, classes, layer="features.denseblock3")
    for i in range(2):
        peer = monai.visualize.GradCAM(model, "features.denseblock3", postprocessing=unscaled)
        check_close(got[i].values, peer(image[i : i + 1].clone(), class_idx=int(classes[i])).detach())
    assert isinstance(got, medviz.Attribution)
