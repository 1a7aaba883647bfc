"""Small networks of MONAI, 2-D and 3-D, for the tests that hold medviz against its peers."""

from __future__ import annotations

from monai.networks.nets import DenseNet121, SEResNet50, resnet10, resnet18
from torch import nn


def densenet(ndim: int) -> nn.Module:
    return DenseNet121(ndim, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2, 2, 2))


def resnet_18(ndim: int) -> nn.Module:
    return resnet18(spatial_dims=ndim, n_input_channels=1, num_classes=3, widen_factor=0.125)


def resnet_10(ndim: int) -> nn.Module:
    return resnet10(spatial_dims=ndim, n_input_channels=1, num_classes=3, widen_factor=0.125)


def seresnet(ndim: int) -> nn.Module:
    return SEResNet50(spatial_dims=ndim, in_channels=1, num_classes=3, layers=(1, 1, 1, 1))
