"""The same numbers as captum and MONAI where they do the same; small MONAI networks, 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Callable

import captum.attr
import pytest
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval
from monai.networks.layers.factories import Act
from monai.networks.nets import EfficientNetBN, SegResNet
from monai.visualize import GuidedBackpropGrad, VanillaGrad
from networks import check_close, explain, images
from networks_monai import densenet, resnet_10, seresnet
from torch import Tensor, nn

import medviz
from medviz.windows import Grid

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning"),
]

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
CLASSES = torch.tensor([2, 0])
SIZES = {2: (40, 36), 3: (33, 36, 32)}


class Modules(nn.Module):
    """Only ReLUs that are modules, each used once and not in place: what captum can reach."""

    def __init__(self, ndim: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if ndim == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.body = nn.Sequential(
            conv(1, 4, 3, padding=1), norm(4), nn.ReLU(), conv(4, 5, 3, stride=2), nn.ReLU(), conv(5, 6, 3), nn.ReLU()
        )
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).flatten(2).mean(2))


CASES: list[tuple[Callable[[int], nn.Module], int]] = [
    (densenet, 2), (densenet, 3), (resnet_10, 2), (resnet_10, 3), (seresnet, 2), (Modules, 3),
]  # fmt: skip


def build(make: Callable[[int], nn.Module], ndim: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return make(ndim).eval().to(dtype), images(2, 1, *SIZES[ndim], dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("make", "ndim"), CASES)
def test_captums_gradients(make: Callable[[int], nn.Module], ndim: int, dtype: torch.dtype) -> None:
    model, image = build(make, ndim, dtype)
    saliency = captum.attr.Saliency(model).attribute(image.clone(), target=CLASSES, abs=False)
    check_close(explain("vanillagrad", model, image, CLASSES).values, saliency, TOLERANCE[dtype])
    product = captum.attr.InputXGradient(model).attribute(image.clone(), target=CLASSES)
    check_close(explain("inputxgradient", model, image, CLASSES).values, product, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("baseline", [0.0, -1.0])
def test_captums_integrated_gradients(ndim: int, dtype: torch.dtype, baseline: float) -> None:
    model, image = build(Modules, ndim, dtype)
    expected = captum.attr.IntegratedGradients(model).attribute(
        image, baselines=baseline, target=CLASSES, n_steps=16, method="gausslegendre"
    )
    got = explain("integratedgradients", model, image, CLASSES, steps=16, baseline=baseline).values
    check_close(got, expected.detach(), max(TOLERANCE[dtype], 1e-7))  # captum's weights are float32


@pytest.mark.parametrize("ndim", [2, 3])
def test_captums_guided_backpropagation(ndim: int) -> None:
    model, image = build(Modules, ndim)
    expected = captum.attr.GuidedBackprop(model).attribute(image.clone(), target=CLASSES)
    check_close(explain("guidedbackprop", model, image, CLASSES).values, expected.detach())


@pytest.mark.parametrize(("size", "mask", "step"), [((12, 10), 4, 2), ((12, 9), 3, 3), ((9, 7, 11), 3, 2)])
def test_captums_occlusion(size: tuple[int, ...], mask: int, step: int) -> None:
    """Captum too takes the mean over the windows at a voxel. Its last window may stick out of the image and so be
    smaller, where ours is moved inwards: the sizes are such that none does.
    """
    torch.manual_seed(0)
    model, image = Modules(len(size)).eval(), images(2, 1, *size)
    shape, strides = (1, *[mask] * len(size)), (1, *[step] * len(size))
    expected = captum.attr.Occlusion(model).attribute(image, shape, strides=strides, baselines=0.5, target=CLASSES)
    occluder = medviz.get_occluder("medviz-xai/constant", value=0.5)
    got = explain("occlusion", model, image, CLASSES, mask_size=mask, overlap=1 - step / mask, occluder=occluder)
    check_close(got.values, expected.detach())


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.6])
@pytest.mark.parametrize(("size", "mask"), [((24, 20, 31), 16), ((7, 5, 9), 3), ((6, 6, 6), 6), ((9, 8, 7), 1)])
def test_the_windows_of_monais_sliding_window(ndim: int, overlap: float, size: tuple[int, ...], mask: int) -> None:
    shape, masks = size[:ndim], (mask,) * ndim
    windows = Grid.over(shape, tuple(min(m, s) for m, s in zip(masks, shape, strict=True)), overlap,
                        [(0, s) for s in shape]).windows()  # fmt: skip
    interval = _get_scan_interval(shape, windows.size, ndim, (overlap,) * ndim)
    slices = dense_patch_slices(shape, windows.size, interval, return_slice=True)
    assert sorted(windows.corners.tolist()) == sorted([s.start for s in where] for where in slices)


def test_monais_vanilla_gradient() -> None:
    model, image = build(densenet, 2)
    for i, c in enumerate(CLASSES.tolist()):
        expected = VanillaGrad(model)(image[i : i + 1].clone(), index=c)
        check_close(explain("vanillagrad", model, image[i : i + 1], c).values, expected.detach())


@pytest.mark.parametrize("ndim", [2, 3])
def test_guided_backpropagation_does_something_on_monais_resnet(ndim: int) -> None:
    """Where MONAI's own looks for the name "relu", finds none and returns the plain gradient."""
    model, image = build(resnet_10, ndim)
    plain = explain("vanillagrad", model, image[:1], 1).values
    guided = explain("guidedbackprop", model, image[:1], 1).values
    assert (guided - plain).abs().max() > 0.1 * plain.abs().max()
    monais = GuidedBackpropGrad(build(resnet_10, ndim)[0])(image[:1].clone(), index=1).detach()
    check_close(monais, plain)


@pytest.mark.parametrize("name", ["swish"])
def test_monais_activations_that_hide_are_refused_by_name(name: str) -> None:
    model, image = build(Modules, 2)
    model.body[4] = Act[name]()
    with pytest.raises(ValueError, match=r"does not know these activations: body\.4 \(Swish\)"):
        explain("guidedbackprop", model, image, 1)


@pytest.mark.parametrize(
    ("name", "same"), [("memswish", nn.SiLU), ("mish", nn.Mish), ("relu", nn.ReLU), ("leakyrelu", nn.LeakyReLU)]
)
def test_monais_activations_that_call_torchs_are_reached(name: str, same: Callable[[], nn.Module]) -> None:
    model, image = build(Modules, 2)
    model.body[4] = Act[name]()
    got = explain("guidedbackprop", model, image, 1).values
    model.body[4] = same() if name != "leakyrelu" else nn.LeakyReLU(model.body[4].negative_slope)
    check_close(got, explain("guidedbackprop", model, image, 1).values, 1e-6)


def test_networks_that_are_built_with_them() -> None:
    torch.manual_seed(0)
    efficientnet = EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=1, num_classes=3)
    image = images(1, 1, 64, 64)
    assert explain("guidedbackprop", efficientnet.eval(), image, 1).values.any()
    segresnet = SegResNet(2, 8, in_channels=1, out_channels=2).eval()
    target = medviz.SegmentationTarget(1)
    guided = explain("guidedbackprop", segresnet, image, target).values
    plain = explain("vanillagrad", segresnet, image, target).values
    assert (guided - plain).abs().max() > 0.1 * plain.abs().max()


@pytest.mark.parametrize("make", [densenet, seresnet])
def test_integrated_gradients_of_real_networks_add_up(make: Callable[[int], nn.Module]) -> None:
    model, image = build(make, 2)
    with torch.no_grad():
        difference = (model(image) - model(torch.zeros_like(image)))[:, 1]
    values = explain("integratedgradients", model, image, 1).values
    assert ((values.flatten(1).sum(1) - difference).abs() <= 1e-3 * difference.abs()).all()
