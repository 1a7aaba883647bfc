"""Grad-CAM."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch import Tensor

from medviz.explainers.layered import LayerExplainer
from medviz.explainers.weighting import over_space, weighted_sum
from medviz.hookspecs import hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget


@attrs.frozen(eq=False)
class GradCAM(LayerExplainer):
    """Weight a layer's feature maps by their mean gradient and keep the positive part.

    Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    https://arxiv.org/abs/1610.02391, eqs. 1 and 2. Differs: linear resizing, in 2-D and 3-D; several layers fused.
    """

    needs_gradient: ClassVar[bool] = True

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        def one(layer: str) -> Tensor:
            activation, gradient = self.activation(probe, layer), self.gradient(probe, layer, target)
            voxels = gradient[0, 0].numel()
            return weighted_sum(over_space(gradient) / voxels, activation).relu()

        return self.fused(probe, one)
