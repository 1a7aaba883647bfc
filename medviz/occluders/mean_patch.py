"""The mean of the window."""

from __future__ import annotations

import attrs
from torch import Tensor

from medviz.hookspecs import Occluder, hookimpl


@attrs.frozen(eq=False)
class MeanPatch(Occluder):
    """Put the mean of each window, of each channel its own, in its place: what is lost is the texture."""

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        mean = patches.mean(tuple(range(2, patches.ndim)), keepdim=True)
        return mean.expand_as(patches).clone()
