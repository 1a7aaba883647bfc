"""Ablation-CAM."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from medviz.explainers.layered import LayerExplainer
from medviz.explainers.weighting import weighted_sum
from medviz.hookspecs import hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget


@attrs.frozen(eq=False)
class AblationCAM(LayerExplainer):
    """Weight a layer's feature maps by how much the score falls when each is set to zero; needs no gradient.

    Source: Desai and Ramaswamy 2020, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via
    Gradient-free Localization", WACV, https://doi.org/10.1109/WACV45572.2020.9093360, eqs. 5 and 6. Costs one forward
    pass for each map. Differs: the fall is divided by the magnitude of the score and not by the score, which would turn
    the map around where the score is negative.
    """

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        def one(layer: str) -> Tensor:
            weights = torch.stack([self._falls(probe, target, layer, i) for i in range(len(probe.inputs))])
            scores = probe.scores(target).abs()[:, None]
            weights = weights / torch.where(scores == 0, 1, scores)
            return weighted_sum(weights, self.activation(probe, layer)).relu()

        return self.fused(probe, one)

    def _falls(self, probe: Probe, target: FixedTarget, layer: str, image: int) -> Tensor:
        """Return how much the score of one image falls without each map, `(K,)`."""
        clean = probe.activation(layer)[image]
        axis = self._map_axis(clean)
        count = clean.shape[axis]
        ablated = clean.expand(count, *clean.shape).clone()
        every = torch.arange(count, device=clean.device)
        ablated.movedim(axis + 1, 1)[every, every] = 0
        index = torch.full((count,), image, device=clean.device)
        images = probe.inputs[image].expand(count, *probe.inputs.shape[1:])
        scores = probe.scores_of(target, images, index, replace={layer: ablated})
        return probe.scores(target)[image] - scores

    def _map_axis(self, features: Tensor) -> int:
        """Return where the maps are counted in one image's features: last in tokens `(N, K)` and channels-last."""
        return features.ndim - 1 if features.ndim == 2 or self.reshape == "channels_last" else 0
