"""A constant."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from medviz.hookspecs import Occluder, hookimpl
from medviz.validators import number


@attrs.frozen(eq=False)
class Constant(Occluder):
    """Put one value in the place of what is hidden.

    Args:
        value: in the units of the image that the network gets.
    """

    value: float = attrs.field(default=0.0, validator=number())

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        return torch.full_like(patches, self.value)
