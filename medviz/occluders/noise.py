"""Noise."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from medviz.hookspecs import Occluder, hookimpl
from medviz.tensors import wide
from medviz.validators import SEED, number
from medviz.windows import cut_out


@attrs.frozen(eq=False)
class Noise(Occluder):
    """Put Gaussian noise with the mean and the deviation of each channel in the place of what is hidden.

    One field of noise `(C, *S)` lies under the whole image, the same for every image, and is seen through the window.

    Args:
        scale: times the channel's standard deviation; ≥ 0.
        seed: of the field, in [0, 2³²).
    """

    stochastic: ClassVar[bool] = True

    scale: float = attrs.field(default=1.0, validator=number(least=0))
    seed: int = attrs.field(default=0, validator=SEED)

    @hookimpl
    def occlude(self, patches: Tensor, image: Tensor, corners: Tensor) -> Tensor:
        source = torch.Generator().manual_seed(self.seed)
        field = torch.randn(image.shape, generator=source, dtype=torch.float32, device="cpu").to(image.device)
        axes = tuple(range(1, image.ndim))
        values = wide(image)
        noise = values.mean(axes, keepdim=True) + self.scale * values.std(axes, correction=0, keepdim=True) * field
        return cut_out(noise.to(image.dtype), corners, patches.shape[2:])
