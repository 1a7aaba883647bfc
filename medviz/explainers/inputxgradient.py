"""Input × gradient."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch import Tensor

from medviz.hookspecs import Explainer, hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget


@attrs.frozen(eq=False)
class InputXGradient(Explainer):
    """Multiply each voxel with the gradient of the score there; for a linear network, what each voxel contributes.

    The map is `(B, C, *S)`, signed, in the score's unit. A voxel whose value is 0 gets 0, whatever the network sees in
    it: what 0 stands for in the image matters.

    Source: Shrikumar et al. 2016, "Not Just a Black Box: Learning Important Features Through Propagating Activation
    Differences", https://arxiv.org/abs/1605.01713, section 3.
    """

    signed: ClassVar[bool] = True

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        return probe.inputs * probe.input_gradient(target)
