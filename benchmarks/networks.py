"""The networks that are measured: MONAI's, with one channel, three classes and random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn


@attrs.frozen
class Network:
    """A network and its deepest layer.

    Args:
        make: returns it.
        nd: spatial axes.
        deepest: the last layer with a spatial extent.
    """

    make: Callable[[], nn.Module]
    nd: int
    deepest: str

    def model(self, device: str = "cpu") -> nn.Module:
        """Return the network in eval mode, with the same weights in each call."""
        torch.manual_seed(0)
        return self.make().eval().to(device)

    def image(self, edge: int, device: str = "cpu") -> Tensor:
        """Return one image `(1, 1, *S)` of values in [0, 1)."""
        return torch.rand(1, 1, *[edge] * self.nd, generator=torch.Generator().manual_seed(1)).to(device)

    def size(self, edge: int) -> str:
        """Return the size of an image as it is written."""
        return f"{edge}{'²' if self.nd == 2 else '³'}"


def _monai(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    try:
        from monai.networks import nets
    except ImportError as err:
        raise ImportError(
            "the benchmarks measure networks of MONAI, which is not installed; "
            "run pip install -r benchmarks/requirements.txt"
        ) from err
    made: nn.Module = getattr(nets, name)(*args, **kwargs)
    return made


def _resnet(nd: int) -> Network:
    return Network(partial(_monai, "resnet18", spatial_dims=nd, n_input_channels=1, num_classes=3), nd, "layer4")


def _densenet(nd: int) -> Network:
    return Network(partial(_monai, "DenseNet121", nd, 1, 3), nd, "class_layers.relu")


NETWORKS = {
    "3-D ResNet18": _resnet(3),
    "3-D DenseNet121": _densenet(3),
    "2-D ResNet18": _resnet(2),
    "2-D DenseNet121": _densenet(2),
}


def own(model: nn.Module) -> nn.Module:
    """Return a copy: some libraries leave hooks and settings on a model, which must not slow the others down."""
    return copy.deepcopy(model)


def channels_last(value: nn.Module | Tensor, nd: int) -> Any:
    """Return a network or an image with its channels last in memory, as PyTorch's own guide does it."""
    made: Any = value
    return made.to(memory_format=torch.channels_last if nd == 2 else torch.channels_last_3d)


def inference(model: nn.Module, image: Tensor) -> Any:
    """Run the network without a graph: what everything is compared with."""
    with torch.no_grad():
        return model(image)
