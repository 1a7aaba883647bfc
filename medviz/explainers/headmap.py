"""What a network's last layers say at every voxel."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from medviz.explainers.layered import LayerExplainer
from medviz.hookspecs import hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget


@attrs.frozen(eq=False)
class HeadMap(LayerExplainer):
    """Evaluate a network's head, made for pooled features, on the features of each voxel by itself.

    Source: Zhou et al. 2016, "Learning Deep Features for Discriminative Localization",
    https://arxiv.org/abs/1512.04150, eq. 2, in the form that `monai.visualize.CAM` documents. For a linear head it is
    the explainer `cam` plus the bias at every voxel. Differs from that: any head is taken, and whether the score is the
    mean of the map is not checked.

    Args:
        head: from the model to the module that turns pooled features `(M, K)` into outputs `(M, N)`.
    """

    signed: ClassVar[bool] = True

    head: Callable[[nn.Module], nn.Module] = attrs.field(validator=attrs.validators.is_callable(), kw_only=True)

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        def one(layer: str) -> Tensor:
            features = self.activation(probe, layer)
            with probe.model() as model, torch.no_grad():
                outputs = evaluate_everywhere(self.head(model), features)
            voxels = outputs[0, 0].numel()
            image = torch.arange(len(features), device=features.device).repeat_interleave(voxels)
            rows = outputs.flatten(2).movedim(1, -1).flatten(0, 1)
            return probe.scores(target, rows, image).reshape(len(features), 1, *outputs.shape[2:])

        return self.fused(probe, one)


def evaluate_everywhere(head: nn.Module, features: Tensor) -> Tensor:
    """Return what `head` makes of each voxel of the features `(B, K, *s)`, in one call: `(B, N, *s)`.

    Raises:
        ValueError: it does not take as many features, or does not return one row for each voxel.
    """
    rows = features.movedim(1, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    parameter = next(head.parameters(), flat)
    flat = flat.to(parameter.device, parameter.dtype)
    if isinstance(head, nn.modules.conv._ConvNd):  # a convolution of one voxel is a linear layer
        flat = flat.reshape(*flat.shape, *[1] * (head.weight.ndim - 2))
    try:
        outputs = head(flat).flatten(1)
    except RuntimeError as err:
        raise ValueError(
            f"the head, a {type(head).__name__}, does not take the {rows.shape[-1]} features of the layer: {err}"
        ) from err
    if len(outputs) != len(flat):
        raise ValueError(f"the head returned {tuple(outputs.shape)} for {len(flat)} voxels; expected a row for each.")
    everywhere: Tensor = outputs.reshape(*rows.shape[:-1], -1).movedim(-1, 1)
    return everywhere
