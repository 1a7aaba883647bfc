"""The mean of the image."""

from __future__ import annotations

import attrs
from torch import Tensor

from medviz.hookspecs import Occluder, hookimpl


@attrs.frozen(eq=False)
class MeanImage(Occluder):
    """Put the mean of the whole image, of each channel its own, in the place of what is hidden."""

    @hookimpl
    def occlude(self, patches: Tensor, image: Tensor) -> Tensor:
        mean = image.mean(tuple(range(1, image.ndim)), keepdim=True)
        return mean.expand_as(patches).clone()
