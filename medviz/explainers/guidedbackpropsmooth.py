"""Guided backpropagation, smoothed."""

from __future__ import annotations

import attrs
from torch import Tensor

from medviz.explainers.guided import Guided
from medviz.explainers.smoothing import SmoothExplainer
from medviz.hookspecs import hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget


@attrs.frozen(eq=False)
class GuidedBackpropSmooth(SmoothExplainer):
    """Average the guided gradients of noisy copies of the image, `(B, C, *S)`; the target stays the clean image's.

    Source: `guidedbackprop` (Springenberg et al. 2014, https://arxiv.org/abs/1412.6806) in the place of the gradient in
    `smoothgrad` (Smilkov et al. 2017, https://arxiv.org/abs/1706.03825).
    """

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        guided = Guided(probe)
        return guided.checked(self.smooth(probe, target, guided.rule))
