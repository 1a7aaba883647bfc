"""Ablation-CAM."""

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

_ROUNDING = 1e-5  # of the score: as much can a batch of another size change it


@attrs.frozen(eq=False)
class AblationCAM(LayerExplainer):
    """Weight a layer's feature maps by how much the score falls when each is set to zero; needs no gradient.

    Source: Desai and Ramaswamy 2020, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via
    Gradient-free Localization", WACV, https://doi.org/10.1109/WACV45572.2020.9093360. Costs one forward pass for each
    map. Differs: the fall is divided by the magnitude of the score and not by the score, which would turn the map
    around where the score is negative.
    """

    scale_free: ClassVar[bool] = True

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        def one(layer: str) -> Tensor:
            weights = torch.stack([self._falls(probe, target, layer, i) for i in range(len(probe.inputs))])
            scores = probe.scores(target).abs()[:, None]
            if (weights.abs() <= _ROUNDING * scores).all():
                probe.gradient(layer, target)  # says so where there is no way from the layer to the score
            weights = weights / torch.where(scores == 0, 1, scores)
            return weighted_sum(weights, self.activation(probe, layer)).relu()

        return self.fused(probe, one)

    def _falls(self, probe: Probe, target: FixedTarget, layer: str, image: int) -> Tensor:
        """Return how much the score of one image falls without each map, `(K,)`."""
        features, picture = probe.activation(layer), probe.inputs[image]
        axis = self._map_axis(probe, layer, features)
        maps = features.shape[axis]
        index = torch.full((maps,), image, device=features.device)
        ablated = _Ablated(features[image], axis - 1)
        images = picture.expand(maps, *picture.shape)
        return probe.scores(target)[image] - probe.scores_of(target, images, index, replace={layer: ablated})

    def _map_axis(self, probe: Probe, layer: str, features: Tensor) -> int:
        """Return the axis of a layer's own output that counts the maps: the one that ends up second in the grid."""
        maps = self.grid(probe, layer, features).shape[1]
        for axis in range(1, features.ndim):
            if features.shape[axis] == maps:
                number = torch.arange(maps, device=features.device).to(features)
                marked = number.view(maps, *[1] * (features.ndim - 1 - axis)).expand_as(features)
                if (self.grid(probe, layer, marked).movedim(1, -1) == number).all():
                    return axis
        raise ValueError(
            f"AblationCAM cannot tell which axis of `layer` {layer!r}, {tuple(features.shape)}, counts the {maps} maps "
            "that `reshape` makes of it; a `reshape` that only moves axes and leaves tokens out would do."
        )


@attrs.frozen(eq=False)
class _Ablated:
    """A layer's features of one image, each row with another map, along `axis`, set to zero; made when needed."""

    features: Tensor
    axis: int

    def __len__(self) -> int:
        return self.features.shape[self.axis]

    def __getitem__(self, rows: slice) -> Tensor:
        maps = torch.arange(len(self), device=self.features.device)[rows]
        ablated = self.features.expand(len(maps), *self.features.shape).clone()
        ablated.movedim(self.axis + 1, 1)[torch.arange(len(maps), device=maps.device), maps] = 0
        return ablated
