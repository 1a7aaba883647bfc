"""Shuffled voxels."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from medviz.hookspecs import Occluder, hookimpl
from medviz.validators import SEED


@attrs.frozen(eq=False)
class Shuffle(Occluder):
    """Shuffle the voxels of each window: its histogram stays, its structure goes. All channels move together.

    Args:
        seed: of the order, in [0, 2³²), which is the same for all windows.
    """

    stochastic: ClassVar[bool] = True

    seed: int = attrs.field(default=0, validator=SEED)

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        flat = patches.flatten(2)
        order = torch.randperm(flat.shape[2], generator=torch.Generator().manual_seed(self.seed), device="cpu")
        return flat[:, :, order.to(patches.device)].reshape(patches.shape)
