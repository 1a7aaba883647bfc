"""Eigen-CAM."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from medviz.explainers.layered import LayerExplainer
from medviz.hookspecs import hookimpl
from medviz.probe import Probe
from medviz.tensors import precise


@attrs.frozen(eq=False)
class EigenCAM(LayerExplainer):
    """Project a layer's feature maps on their first principal component, not centred; the same for every target.

    Source: Muhammad and Yeasin 2020, "Eigen-CAM: Class Activation Map using Principal Components",
    https://arxiv.org/abs/2008.00299. Differs: the sign of a singular vector is arbitrary, so that
    each image's projection is turned to a positive sum, and its negative part is cut off.
    """

    uses_target: ClassVar[bool] = False
    zero_for_constant: ClassVar[bool] = False
    scale_free: ClassVar[bool] = True

    @hookimpl
    def explain(self, probe: Probe) -> Tensor:
        return self.fused(probe, lambda layer: _project(self.activation(probe, layer)))


def _project(activation: Tensor) -> Tensor:
    voxels = precise(activation.flatten(2))  # (B, K, V)
    if voxels.shape[1] <= voxels.shape[2]:  # the smaller of the two Gram matrices has the same first component
        vector = torch.linalg.eigh(voxels @ voxels.mT)[1][:, None, :, -1]  # (B, 1, K)
        projection = (vector @ voxels)[:, 0]
    else:
        values, vectors = torch.linalg.eigh(voxels.mT @ voxels)
        projection = values[:, -1:].clamp(min=0).sqrt() * vectors[:, :, -1]
    sign = torch.where(projection.sum(1) < 0, -1, 1)
    grid = (sign[:, None] * projection).relu().reshape(len(voxels), *activation.shape[2:])
    cam: Tensor = grid[:, None].to(activation)
    return cam
