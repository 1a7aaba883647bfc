"""The gradient of the score with respect to the image."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch import Tensor

from medviz.hookspecs import Explainer, hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget


@attrs.frozen(eq=False)
class VanillaGrad(Explainer):
    """Take the gradient of the score with respect to each voxel of each channel.

    Source: Simonyan et al. 2013, "Deep Inside Convolutional Networks: Visualising Image Classification Models and
    Saliency Maps", https://arxiv.org/abs/1312.6034, section 3. Differs: the paper shows the largest magnitude over the
    channels; here each channel's signed gradient is kept, `(B, C, *S)`, and renderers reduce it.
    Unit: the score's for one unit of the image.
    """

    signed: ClassVar[bool] = True

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        return probe.input_gradient(target)
