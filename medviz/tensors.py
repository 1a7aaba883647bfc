"""Arrays and numbers as tensors, where they are: `torch.set_default_device` is for the network, not for medviz."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(value: Any) -> Tensor:
    """Return a tensor as it is, and anything else that holds numbers as a tensor on the CPU, without a copy if it can.

    An array that torch cannot wrap is copied: turned round (`np.flip`), of another byte order, or read-only.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        return torch.as_tensor(value, device="cpu")
    array = np.asarray(value)
    if array.ndim and (min(array.strides) < 0 or not array.dtype.isnative or not array.flags.writeable):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(array, device="cpu")
