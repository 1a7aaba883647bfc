"""Arrays and numbers as tensors, where they are (`torch.set_default_device` is for the network), and maps on a grid."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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


def numpy_of(tensor: Tensor) -> np.ndarray:
    """Return a tensor's values for NumPy, which knows no bfloat16: float32 holds each of its numbers."""
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def plain(tensor: Tensor) -> Tensor:
    """Return a MetaTensor, or any other subclass, as a plain tensor."""
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def is_ordinary(values: Any) -> bool:
    """Return whether this is a floating-point tensor that can be computed with: no sparse, nested or 8-bit one."""
    dense = isinstance(values, Tensor) and values.layout == torch.strided and not values.is_nested
    return dense and values.dtype in _FLOATING and not values.is_meta


def resize(values: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Return `(B, K, *s)` on the grid `size`, interpolated linearly between voxel centres.

    Args:
        values: the values on another grid.
        size: 1 to 3 spatial axes.
        align_corners: let the centres of the corner voxels coincide, and not the outer borders.
    """
    if values.shape[2:] == torch.Size(size):
        return values.clone()
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return F.interpolate(values, size=tuple(size), mode=mode, align_corners=align_corners)


def wide(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32, or as it is where it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def of_each_output(values: Tensor) -> Tensor:
    """Return the largest magnitude of each output `(N,)` in outputs `(M, N, …)`."""
    return values.abs().movedim(1, 0).flatten(1).amax(1)


def precise(tensor: Tensor) -> Tensor:
    """Return `tensor` in float64: on its device or, where that has no such numbers (Apple's GPUs), on the CPU."""
    return (tensor if _has_float64(tensor.device) else tensor.cpu()).double()


@functools.cache
def _has_float64(device: torch.device) -> bool:
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except torch.OutOfMemoryError:
        raise  # it says nothing of the device
    except (TypeError, RuntimeError):
        return False
    return True
