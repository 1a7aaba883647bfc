"""Grad-CAM++."""

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
class GradCAMpp(LayerExplainer):
    """Weight a layer's feature maps by their positive gradients, each voxel by its share in the map.

    Source: Chattopadhyay et al. 2018, "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks",
    https://arxiv.org/abs/1710.11063, eq. 19. With Y = exp(S), the derivatives of Y are exp(S) times powers of
    the gradient g of the score S, and the factor exp(S) leaves the voxel's share:
    α = g² / (2 g² + g³ Σ A), where Σ A is the sum of the map over space.
    Differs: the one exp(S) that is left in the weights is dropped. It is one positive factor for each image, so that it
    changes a map's scale and nothing else, and it overflows float32 for scores above 88.
    """

    needs_gradient: ClassVar[bool] = True

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        def one(layer: str) -> Tensor:
            activation, gradient = self.activation(probe, layer), self.gradient(probe, layer, target)
            return weighted_sum(over_space(_share(activation, gradient) * gradient.relu()), activation).relu()

        return self.fused(probe, one)


def _share(activation: Tensor, gradient: Tensor) -> Tensor:
    """Return α `(B, K, *s)`, eq. 19 divided by g², which neither over- nor underflows: 1 / (2 + g Σ A); 0 where g is 0.

    A denominator of zero, which only activations of both signs can give, counts as no share.
    """
    total = over_space(activation).reshape(*activation.shape[:2], *[1] * (activation.ndim - 2))
    denominator = 2 + gradient * total
    share = torch.where(denominator == 0, 0, 1 / torch.where(denominator == 0, 1, denominator))
    return torch.where(gradient == 0, 0, share)
