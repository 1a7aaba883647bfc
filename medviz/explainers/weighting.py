"""The sums that class-activation maps are made of."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_sum(weights: Tensor, activation: Tensor) -> Tensor:
    """Return the sum over the feature maps `(B, K, *s)`, each times its weight `(B, K)`, as `(B, 1, *s)`."""
    return torch.einsum("bk,bk...->b...", weights, activation)[:, None]


def over_space(features: Tensor) -> Tensor:
    """Return the sum over all spatial axes: from `(B, K, *s)` to `(B, K)`."""
    return features.flatten(2).sum(2)
