"""HiResCAM."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch import Tensor

from medviz.explainers.layered import LayerExplainer
from medviz.hookspecs import hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget
from medviz.validators import of_type


@attrs.frozen(eq=False)
class HiResCAM(LayerExplainer):
    """Multiply a layer's feature maps by their gradient, voxel by voxel, and sum over the maps.

    Source: Draelos and Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
    networks", https://arxiv.org/abs/2011.08891. Where one linear layer follows, the signed map sums to the score
    less its bias.

    Args:
        relu: keep the positive part, as for Grad-CAM; False: signed values, negative ones speak against the target.
    """

    needs_gradient: ClassVar[bool] = True

    relu: bool = attrs.field(default=True, validator=of_type(bool), kw_only=True)

    @property
    def signed(self) -> bool:  # type: ignore[override]
        """Whether negative values are kept."""
        return not self.relu

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        def one(layer: str) -> Tensor:
            product = self.gradient(probe, layer, target) * self.activation(probe, layer)
            total = product.sum(1, keepdim=True)
            return total.relu() if self.relu else total

        return self.fused(probe, one)
