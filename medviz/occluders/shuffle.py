"""Shuffled voxels."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from medviz.hookspecs import Occluder, hookimpl


@attrs.frozen(eq=False)
class Shuffle(Occluder):
    """Shuffle the voxels of each window: its histogram stays, its structure goes. All channels move together.

    Args:
        seed: of the order, which is the same for all windows.
    """

    stochastic: ClassVar[bool] = True

    seed: int = attrs.field(default=0, validator=attrs.validators.instance_of(int))

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        flat = patches.flatten(2)
        order = torch.randperm(flat.shape[2], generator=torch.Generator().manual_seed(self.seed))
        return flat[:, :, order.to(patches.device)].reshape(patches.shape)
