"""LayerCAM."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch import Tensor

from medviz.explainers.layered import LayerExplainer
from medviz.hookspecs import hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget


@attrs.frozen(eq=False)
class LayerCAM(LayerExplainer):
    """Weight each voxel of a layer's feature maps by its own positive gradient; good for fine, early layers.

    Source: Jiang et al. 2021, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 30,
    https://doi.org/10.1109/TIP.2021.3089943. Differs: the paper scales early layers by tanh before fusing
    them; here every fused map is divided by its largest value.
    """

    needs_gradient: ClassVar[bool] = True

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        def one(layer: str) -> Tensor:
            weighted = self.gradient(probe, layer, target).relu() * self.activation(probe, layer)
            return weighted.sum(1, keepdim=True).relu()

        return self.fused(probe, one)
