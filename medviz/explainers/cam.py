"""Class activation mapping, the original."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from medviz.explainers.layered import LayerExplainer, as_name
from medviz.explainers.weighting import weighted_sum
from medviz.hookspecs import hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget


@attrs.frozen(eq=False)
class CAM(LayerExplainer):
    """Weight a layer's feature maps by the weights of the linear layer that follows their global average pooling.

    Source: Zhou et al. 2016, "Learning Deep Features for Discriminative Localization",
    https://arxiv.org/abs/1512.04150, eq. 2. The map is signed; its mean over space is the score less the bias. Differs:
    that identity is checked, so that a network for which the method is not valid gets an error and not a map.

    Args:
        fc: dotted name of the linear layer, or of a convolution with a kernel of one voxel, that makes the logits;
            None: the only one that fits.
    """

    signed: ClassVar[bool] = True
    needs_gap: ClassVar[bool] = True

    fc: str | None = attrs.field(default=None, converter=attrs.converters.optional(as_name), kw_only=True)

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        if target.classes is None:
            raise ValueError(f"CAM explains one output of a linear layer; the target {target.label!r} is not one.")
        classes = target.classes.to(probe.inputs.device)

        def one(layer: str) -> Tensor:
            activation = self.activation(probe, layer)
            weight, bias = self._linear(probe, activation.shape[1])
            cam = weighted_sum(target.sign * weight[classes], activation)
            _check_gap(cam, probe.scores(target), target.sign * bias[classes], layer)
            return cam

        return self.fused(probe, one)

    def _linear(self, probe: Probe, features: int) -> tuple[Tensor, Tensor]:
        """Return the weight `(N, K)` and the bias `(N,)` of the linear layer."""
        shape = (probe.output.shape[1], features)
        names = probe.module_names() if self.fc is None else [self.fc]
        found = {name: p for name in names if _fits(p := probe.parameters_of(name), shape)}
        if len(found) != 1:
            raise ValueError(
                f"CAM needs one linear layer from {shape[1]} features to {shape[0]} logits; "
                f"{'these fit: ' + str(list(found)) if found else 'none of ' + str(names[-8:]) + ' fits'}. "
                "Name it with `fc`, or another `layer`."
            )
        (parameters,) = found.values()
        weight = parameters["weight"].flatten(1).to(probe.output.dtype)
        return weight, parameters.get("bias", weight.new_zeros(shape[0])).to(weight)


def _fits(parameters: dict[str, Tensor], shape: tuple[int, int]) -> bool:
    weight = parameters.get("weight")
    return weight is not None and weight.ndim > 1 and tuple(weight.flatten(1).shape) == shape


def _check_gap(cam: Tensor, scores: Tensor, bias: Tensor, layer: str) -> None:
    expected = cam.flatten(1).mean(1) + bias
    size = cam.abs().flatten(1).mean(1) + scores.abs()
    if not torch.all((expected - scores).abs() <= 0.02 * size):
        raise ValueError(
            f"CAM is not valid for `layer` {layer!r}: its mean map plus bias is {expected.tolist()}, the scores are "
            f"{scores.tolist()}. It needs global average pooling and one linear layer right after it; use gradcam."
        )
