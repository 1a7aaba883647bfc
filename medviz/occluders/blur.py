"""The blurred image."""

from __future__ import annotations

import math

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from medviz.hookspecs import Occluder, hookimpl
from medviz.tensors import wide
from medviz.validators import number
from medviz.windows import cut_out


@attrs.frozen(eq=False)
class Blur(Occluder):
    """Put the image, blurred by a Gaussian, in the place of what is hidden: it stays plausible and loses its detail.

    Source: Fong and Vedaldi 2017, "Interpretable Explanations of Black Boxes by Meaningful Perturbation",
    https://arxiv.org/abs/1704.03296, section 4.1.

    Args:
        sigma: standard deviation in voxels; > 0.
    """

    sigma: float = attrs.field(default=5.0, validator=number(above=0))

    @hookimpl
    def occlude(self, patches: Tensor, image: Tensor, corners: Tensor) -> Tensor:
        return cut_out(_blur(image, self.sigma), corners, patches.shape[2:])


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Blur `(C, *S)` along one axis after the other; beyond the border the image goes on as it ends."""
    reach = math.ceil(3 * sigma)
    blurred = wide(image)
    offset = torch.arange(-reach, reach + 1, dtype=blurred.dtype, device=image.device)
    kernel = (-0.5 * (offset / sigma) ** 2).exp()
    kernel = (kernel / kernel.sum())[None, None]
    for axis in range(1, image.ndim):
        lines = blurred.movedim(axis, -1)
        padded = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (reach, reach), mode="replicate")
        blurred = F.conv1d(padded, kernel).reshape(lines.shape).movedim(-1, axis)
    return blurred.to(image.dtype)
