"""SmoothGrad, and VarGrad."""

from __future__ import annotations

import attrs
from torch import Tensor

from medviz.explainers.smoothing import SmoothExplainer
from medviz.hookspecs import hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget


@attrs.frozen(eq=False)
class SmoothGrad(SmoothExplainer):
    """Average the gradients of noisy copies of the image; the target stays that of the clean image.

    The map is `(B, C, *S)`. Each sample is one field of noise `(C, *S)`, the same for every image of a batch.

    Source: Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", https://arxiv.org/abs/1706.03825,
    section 2; their variance, VarGrad: Adebayo et al. 2018, "Sanity Checks for Saliency Maps",
    https://arxiv.org/abs/1810.03292.
    """

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        return self.smooth(probe, target)
