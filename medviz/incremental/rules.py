"""What becomes of a box in each kind of operation. Everything that has no rule is run on whole maps."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medviz.incremental.boxes import Box, Starts, union

ELEMENTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity),
    *(nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.BatchNorm2d, nn.BatchNorm3d),
)
ELEMENTWISE_FUNCTIONS: frozenset[Any] = frozenset(
    {
        *(F.relu, torch.relu, torch.relu_, F.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu),
        *(F.mish, F.hardswish, F.hardtanh, F.hardsigmoid, F.softplus, F.sigmoid, torch.sigmoid, torch.tanh, F.tanh),
        *(F.dropout, F.dropout2d, F.dropout3d, torch.neg, torch.abs, torch.exp, torch.clamp, operator.neg),
    }
)
ELEMENTWISE_METHODS = frozenset(
    {"relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "contiguous", "clone"}
)
ARITHMETIC: frozenset[Any] = frozenset(
    {
        *(operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub),
        *(operator.mul, operator.imul, torch.mul, operator.truediv, operator.itruediv, torch.div),
    }
)
GLOBAL_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@attrs.frozen
class Window:
    """An operation that makes each output of a window of its input.

    Args:
        kernel, stride, padding, dilation: along each axis.
        outside: the value of the padding.
        run: the operation, without padding.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    outside: float
    run: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, module: nn.Module, nd: int) -> Window | None:
        """Return the window of a convolution or pooling; None where it has features that have no rule."""
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            return cls._of_convolution(module)
        if isinstance(module, nn.MaxPool2d | nn.MaxPool3d | nn.AvgPool2d | nn.AvgPool3d):
            return cls._of_pool(module, nd)
        return None

    @classmethod
    def _of_convolution(cls, conv: nn.Conv2d | nn.Conv3d) -> Window | None:
        padding = conv.padding
        if padding == "same" or conv.padding_mode != "zeros":
            return None
        pad = (0,) * len(conv.kernel_size) if isinstance(padding, str) else tuple(padding)
        function: Any = F.conv2d if isinstance(conv, nn.Conv2d) else F.conv3d

        def run(block: Tensor) -> Tensor:
            out: Tensor = function(block, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
            return out

        return cls(tuple(conv.kernel_size), tuple(conv.stride), pad, tuple(conv.dilation), 0.0, run)

    @classmethod
    def _of_pool(cls, pool: Any, nd: int) -> Window | None:
        kernel, padding = _each(pool.kernel_size, nd), _each(pool.padding, nd)
        stride = _each(pool.stride, nd)
        largest = isinstance(pool, nn.MaxPool2d | nn.MaxPool3d)
        if pool.ceil_mode or (largest and pool.return_indices):
            return None
        if not largest and any(padding) and (not pool.count_include_pad or pool.divisor_override):
            return None
        dilation = _each(pool.dilation, nd) if largest else (1,) * nd

        def run(block: Tensor) -> Tensor:
            functions: Any = (F.max_pool2d, F.max_pool3d) if largest else (F.avg_pool2d, F.avg_pool3d)
            extra = {"dilation": dilation} if largest else {"divisor_override": pool.divisor_override}
            out: Tensor = functions[nd - 2](block, kernel, stride, 0, **extra)
            return out

        return cls(kernel, stride, padding, dilation, float("-inf") if largest else 0.0, run)

    def reach(self, box: Box, shape: Sequence[int]) -> tuple[Starts, tuple[int, ...]]:
        """Return the boxes of the output, of `shape`, that a box of the input can reach."""
        size, starts = [], []
        extent = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        for n, e, s, whole in zip(box.size, extent, self.stride, shape, strict=True):
            size.append(min((n + e - 2) // s + 1, whole))
        for start in box.starts:
            first = [
                -((e - 1 - p - a) // s) for a, e, s, p in zip(start, extent, self.stride, self.padding, strict=True)
            ]
            starts.append([min(max(f, 0), w - n) for f, w, n in zip(first, shape, size, strict=True)])
        return starts, tuple(size)

    def __call__(self, box: Box, starts: Starts, size: tuple[int, ...]) -> Tensor:
        """Return the output inside of the boxes, `(M, C, *size)`."""
        need = [
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(size, self.stride, self.kernel, self.dilation, strict=True)
        ]
        where = [[a * s - p for a, s, p in zip(start, self.stride, self.padding, strict=True)] for start in starts]
        return self.run(box.gather(where, need, self.padding, self.outside))


def combine(values: Sequence[Any], run: Callable[[list[Any]], Tensor], clean: Tensor) -> Box | None:
    """Return the box of an operation that works voxel by voxel on several maps of one grid.

    Args:
        values: boxes, clean maps `(1, C, *S)`, and constants that are the same at every voxel.
        run: the operation, on the blocks.
        clean: its clean result, `(1, C, *S)`.
    """
    boxes = [value for value in values if isinstance(value, Box)]
    shape = tuple(clean.shape[2:])
    if any(tuple(box.clean.shape[2:]) != shape for box in boxes):
        return None
    starts, size = union(boxes, shape)
    blocks: list[Any] = []
    for value in values:
        if isinstance(value, Box):
            same = value.size == size and value.starts == starts
            blocks.append(value.block if same else value.gather(starts, size, (0,) * len(size), 0.0))
        elif isinstance(value, Tensor) and value.ndim == clean.ndim and tuple(value.shape[2:]) == shape:
            blocks.append(Box(value, value.new_empty(len(starts), value.shape[1], *size), starts).clean_block())
        elif _is_uniform(value):
            blocks.append(value)
        else:
            return None
    return Box(clean, run(blocks), starts)


def _is_uniform(value: Any) -> bool:
    """Whether a value is the same at every voxel and for every row: a number, or a tensor such as `(1, C, 1, 1)`."""
    if isinstance(value, Tensor):
        return value.ndim == 0 or all(n == 1 for n in (value.shape[0], *value.shape[2:]))
    return isinstance(value, int | float)


def global_mean(box: Box, clean: Tensor) -> Tensor:
    """Return the mean over space of each changed map, `(M, C, …)`: the clean one, and what the box has changed."""
    voxels = box.clean[0, 0].numel()
    change = (box.block - box.clean_block()).flatten(2).sum(2) / voxels
    return clean + change.reshape(*change.shape, *clean.shape[2:])


def _each(value: Any, nd: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * nd
