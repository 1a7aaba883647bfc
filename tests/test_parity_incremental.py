"""Incremental inference equals whole passes on the networks that MONAI ships, odd sizes included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks import nets
from monai.networks.nets.highresnet import DEFAULT_LAYER_PARAMS_3D
from torch import nn

from medviz.incremental import Incremental
from medviz.incremental.boxes import Box

pytestmark = pytest.mark.parity

FEATURES = (4, 4, 8, 8, 8, 4)
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet": lambda nd: nets.resnet10(spatial_dims=nd, n_input_channels=1, num_classes=2, widen_factor=0.125),
    "resnet of MedicalNet": lambda nd: nets.resnet10(
        spatial_dims=nd, n_input_channels=1, num_classes=2, widen_factor=0.125, shortcut_type="A"
    ),
    "high resolution": lambda nd: nets.HighResNet(
        nd, 1, 2, layer_params=[{**block, "n_features": 4, "repeat": 2} for block in DEFAULT_LAYER_PARAMS_3D]
    ),
    "densenet": lambda nd: nets.DenseNet121(nd, 1, 2, init_features=4, growth_rate=4, block_config=(2, 2, 2, 2)),
    "classifier": lambda nd: nets.Classifier((1, *SIZES[nd]), 2, (4, 8, 8), (2, 2, 2), norm="batch"),
    "unet": lambda nd: nets.UNet(nd, 1, 2, (4, 8, 8), (2, 2), norm="batch"),
    "attention unet": lambda nd: nets.AttentionUnet(nd, 1, 2, (4, 8, 8), (2, 2)),
    "dynamic unet": lambda nd: nets.DynUNet(nd, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], (4, 8, 8), norm_name="batch"),
    "basic unet": lambda nd: nets.BasicUNet(nd, 1, 2, FEATURES, norm="batch"),
    "basic unet ++": lambda nd: nets.BasicUNetPlusPlus(nd, 1, 2, FEATURES, norm="batch"),
    "regression unet": lambda nd: nets.RegUNet(
        nd, 1, 4, 2, out_kernel_initializer="kaiming_uniform", out_activation=None, out_channels=2
    ),
}
SIZES = {2: (96, 88), 3: (48, 48, 56)}
ODD = ["basic unet", "resnet", "densenet"]  # the others cannot take a size that their strides do not divide
CASES = [*((name, nd, 0) for name in NETWORKS for nd in (2, 3)), *((name, 2, 5) for name in ODD)]
CASES.remove(("basic unet ++", 3, 0))  # half a minute


def first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(("name", "nd", "odd"), CASES)
def test_it_equals_whole_passes(name: str, nd: int, odd: int) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name](nd).eval().double()
    image = torch.rand(1, 1, *(n + odd for n in SIZES[nd]), dtype=torch.float64)
    last = torch.tensor(image.shape[2:]) - 6
    corners = torch.stack([torch.zeros(nd).long(), last // 2, last])
    patches = torch.rand(3, 1, *[6] * nd, dtype=torch.float64)
    with torch.no_grad():
        engine = Incremental(model, image)
        result = first(engine.run(patches, corners))
        expected = first(model(Box(image, patches, corners.tolist()).whole()))
    result = result.whole() if isinstance(result, Box) else result
    assert (expected - expected.mean(0)).abs().max() > 1e-8
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    assert engine.share < 1
