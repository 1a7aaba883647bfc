"""Small images, on which a network is asked something before its large passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

_LEAST = 256  # voxels: of fewer, all may lie where nothing changes, such as below the bend of a ReLU


def widest(images: Tensor) -> int:
    """Return which of the images `(B, C, *S)` has the widest range of values: it tells most."""
    values = images.flatten(1)
    return int((values.amax(1) - values.amin(1)).argmax())


def smaller(image: Tensor, steps: Sequence[int]) -> Iterator[Tensor]:
    """Yield an image `(1, C, *S)` with every so manieth voxel along each axis only; never with too few, but whole."""
    for step in steps:
        every: tuple[Any, ...] = (..., *[slice(None, None, step)] * (image.ndim - 2))
        small = image[every]
        if small[0, 0].numel() >= _LEAST or step == 1:
            yield small
