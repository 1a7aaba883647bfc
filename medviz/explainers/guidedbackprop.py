"""Guided backpropagation."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch import Tensor

from medviz.explainers.guided import Guided
from medviz.hookspecs import Explainer, hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget


@attrs.frozen(eq=False)
class GuidedBackprop(Explainer):
    """Take the gradient with respect to the image, letting through rectifiers only what is positive on both sides.

    The map is `(B, C, *S)`, signed: what comes through the rectifiers is positive, the first layer's weights are not.

    Source: Springenberg et al. 2014, "Striving for Simplicity: The All Convolutional Net",
    https://arxiv.org/abs/1412.6806, section 3.4. It shows edges that the network sees and depends little on its upper
    weights (Adebayo et al. 2018, https://arxiv.org/abs/1810.03292): no evidence of why a class was chosen.
    Which rectifiers are meant, and how smooth ones are treated: `medviz.explainers.guided`.
    """

    signed: ClassVar[bool] = True

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        guided = Guided(probe)
        return guided.checked(probe.input_gradient(target, rule=guided.rule))
