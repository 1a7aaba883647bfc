"""Score-CAM."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from medviz.explainers.layered import LayerExplainer
from medviz.explainers.weighting import weighted_sum
from medviz.hookspecs import hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget
from medviz.tensors import resize


@attrs.frozen(eq=False)
class ScoreCAM(LayerExplainer):
    """Weight a layer's feature maps by the score of the image that each lets through; needs no gradient.

    Source: Wang et al. 2020, "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
    https://arxiv.org/abs/1910.01279, algorithm 1: each map is resized to the image, scaled to [0, 1] and multiplied
    with it; the scores of those images, through a softmax over the maps, are the weights. Costs one forward pass for
    each map. Differs: a map that is constant masks nothing and gets no weight.
    """

    zero_for_constant: ClassVar[bool] = False

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        def one(layer: str) -> Tensor:
            activation = self.activation(probe, layer)
            weights = torch.stack([_weights(probe, target, activation[i], i) for i in range(len(activation))])
            return weighted_sum(weights, activation).relu()

        return self.fused(probe, one)


def _weights(probe: Probe, target: FixedTarget, activation: Tensor, image: int) -> Tensor:
    """Return the weight of each map `(K,)` of one image."""
    varying = (activation.flatten(1) != activation.flatten(1)[:, :1]).any(1)
    scores = activation.new_full((len(activation),), -torch.inf)
    if varying.any():
        masked = _Masked(probe.inputs[image], activation[varying])
        index = torch.full((len(masked),), image, device=activation.device)
        scores[varying] = probe.scores_of(target, masked, index).to(scores)
    return scores.softmax(0) if scores.isfinite().any() else torch.zeros_like(scores)


@attrs.frozen(eq=False)
class _Masked:
    """The image `(C, *S)` as each of the maps `(M, *s)` lets it through; made when a pass needs them."""

    image: Tensor
    maps: Tensor

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, rows: slice) -> Tensor:
        masks = resize(self.maps[rows, None], self.image.shape[1:])  # (m, 1, *S)
        low, high = (f(masks.flatten(1), 1).view(-1, *[1] * (masks.ndim - 1)) for f in (torch.amin, torch.amax))
        return (masks - low) / torch.where(high > low, high - low, 1) * self.image
