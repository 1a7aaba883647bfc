"""XGrad-CAM."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from medviz.explainers.layered import LayerExplainer
from medviz.explainers.weighting import over_space, weighted_sum
from medviz.hookspecs import hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget


@attrs.frozen(eq=False)
class XGradCAM(LayerExplainer):
    """Weight a layer's feature maps by their gradient, averaged with the map itself as the weight of each voxel.

    Source: Fu et al. 2020, "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs",
    https://arxiv.org/abs/2008.02312. Differs: a map that sums to zero gets the weight zero.
    """

    needs_gradient: ClassVar[bool] = True

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        def one(layer: str) -> Tensor:
            activation, gradient = self.activation(probe, layer), self.gradient(probe, layer, target)
            total = over_space(activation)
            weights = over_space(activation * gradient) / torch.where(total == 0, 1, total)
            return weighted_sum(torch.where(total == 0, 0, weights), activation).relu()

        return self.fused(probe, one)
