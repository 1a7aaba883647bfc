"""The sums that class-activation maps are made of, and how many maps are tried at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_HELD = 2**25  # values of copies that are held at once: 128 MB in float32


def weighted_sum(weights: Tensor, activation: Tensor) -> Tensor:
    """Return the sum over the feature maps `(B, K, *s)`, each times its weight `(B, K)`, as `(B, 1, *s)`."""
    return torch.einsum("bk,bk...->b...", weights, activation)[:, None]


def over_space(features: Tensor) -> Tensor:
    """Return the sum over all spatial axes: from `(B, K, *s)` to `(B, K)`."""
    return features.flatten(2).sum(2)


def in_groups(maps: int, values: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the numbers of all maps in groups, so that copies of `values` numbers for each map of a group fit."""
    yield from torch.split(torch.arange(maps, device=device), max(1, _HELD // values))
