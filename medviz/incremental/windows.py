"""Operations that make each output of a window of their input: which boxes they reach, and what stands in them."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from medviz.incremental.boxes import Box
from medviz.incremental.copying import parts
from medviz.incremental.geometry import Size, Starts
from medviz.incremental.nodes import Call

Margin = Sequence[tuple[int, int]]

_WITH_3D = 5  # axes of 3-D maps
_PRECISE = 4  # bytes of a number
_CONSTANT_PADS = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad3d)


@attrs.frozen
class Window:
    """A convolution or pooling, or a piece of the map: windows of one voxel.

    Args:
        kernel, stride, dilation: along each axis.
        padding: along each axis, before and after the map; below 0 that much of the map is left out.
        run: the operation, without padding.
        outside: the value of the padding, or how `torch.nn.functional.pad` makes it from the map: "reflect" …
    """

    kernel: Size
    stride: Size
    padding: Margin
    dilation: Size
    run: Callable[[Tensor], Tensor]
    outside: float | str = 0.0

    def reach(self, box: Box) -> tuple[Starts, Size]:
        """Return the boxes of the output that a box of the input can reach: their first voxels and size."""
        size = tuple((n + e - 2) // s + 1 for n, e, s in zip(box.size, self._extent, self.stride, strict=True))
        return -((np.subtract(self._extent, self._low) - 1 - box.reach) // self.stride), size

    def __call__(self, box: Box, starts: Starts, size: Size) -> Tensor:
        """Return the output inside of the boxes, `(M, C, *size)`."""
        need = [(n - 1) * s + e for n, s, e in zip(size, self.stride, self._extent, strict=True)]
        where = starts * self.stride - self._low
        if isinstance(self.outside, float):
            return self.run(box.gather(where, need, self.outside))
        return self.run(self._mirrored(box, self.outside, where, need))

    @property
    def _extent(self) -> list[int]:
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]

    @property
    def _low(self) -> list[int]:
        return [before for before, _ in self.padding]

    def _mirrored(self, box: Box, mode: str, where: Starts, need: Sequence[int]) -> Tensor:
        """Return the boxes of maps that are padded with what they hold themselves."""
        padded = F.pad(box.whole(), [m for both in reversed(self.padding) for m in both], mode=mode)
        return parts(padded, where + self._low, need)


@attrs.frozen
class Transposed:
    """A transposed convolution: each voxel of the input adds to a window of the output.

    Args:
        kernel, stride, padding, dilation: along each axis.
        run: the operation, without padding.
    """

    kernel: Size
    stride: Size
    padding: Size
    dilation: Size
    run: Callable[[Tensor], Tensor]

    def reach(self, box: Box) -> tuple[Starts, Size]:
        """Return the boxes of the output that a box of the input can reach: their first voxels and size."""
        size = tuple((n - 1) * s + e for n, e, s in zip(box.size, self._extent, self.stride, strict=True))
        return box.reach * self.stride - self.padding, size

    def __call__(self, box: Box, starts: Starts, size: Size) -> Tensor:
        """Return the output inside of the boxes, `(M, C, *size)`."""
        axes = list(zip(self._extent, self.stride, strict=True))
        back = [-(-(e - 1) // s) for e, s in axes]  # how many voxels of the input before its own reach an output
        where = (starts + self.padding) // self.stride - back
        need = [(s - 1 + b * s + n - 1) // s + 2 for n, (_, s), b in zip(size, axes, back, strict=True)]
        made = self.run(box.gather(where, need))
        return parts(made, starts + self.padding - where * self.stride, size)

    @property
    def _extent(self) -> list[int]:
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]


def of_module(module: nn.Module, nd: int) -> Window | Transposed | None:
    """Return the window of a layer; None for what has features that have no rule."""
    # the very types, but for a parametrised weight, which is made anew when it is read: another class may do otherwise
    kind = type_before_parametrizations(module)
    if kind in (nn.Conv2d, nn.Conv3d):
        c: Any = module
        return convolution(c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups, c.padding_mode)
    if kind in (nn.ConvTranspose2d, nn.ConvTranspose3d):
        return _transposed(module)
    pool: Any = module
    if type(module) in _CONSTANT_PADS:
        return padding(nd, pool.padding, value=pool.value)
    if type(module) in (nn.MaxPool2d, nn.MaxPool3d):
        how = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
        return None if pool.return_indices else max_pool(nd, *how)
    if type(module) in (nn.AvgPool2d, nn.AvgPool3d) and not pool.ceil_mode:
        counted = pool.count_include_pad and not pool.divisor_override
        return avg_pool(nd, pool.kernel_size, pool.stride, pool.padding, counted, pool.divisor_override)
    return None


def convolution(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    mode: str = "zeros",
) -> Window | None:
    """Return the window of a convolution; None where its padding shows what is no neighbour of the windows there."""
    kernel, nd = tuple(weight.shape[2:]), weight.ndim - 2
    stride, dilation = each_axis(stride, nd), each_axis(dilation, nd)
    margin = _margin(padding, kernel, dilation)
    near = all((k - 1) * d >= 2 * max(both) for k, d, both in zip(kernel, dilation, margin, strict=True))
    if mode == "circular" or (mode != "zeros" and not near):
        return None
    function: Any = F.conv2d if nd == 2 else F.conv3d

    def run(block: Tensor) -> Tensor:
        out: Tensor = function(block, weight, bias, stride, 0, dilation, groups)
        return out

    outside = 0.0 if mode == "zeros" else mode
    return Window(kernel, stride, margin, dilation, run, outside)


def max_pool(
    nd: int, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Window:
    """Return the window of a maximum over windows; with `ceil` the last ones may hang over the padding's edge."""
    kernel, dilation = each_axis(kernel, nd), each_axis(dilation, nd)
    stride, margin = each_axis(stride or kernel, nd), _margin(each_axis(padding, nd), kernel, dilation)
    margin = [(low, high + (s - 1) * ceil) for (low, high), s in zip(margin, stride, strict=True)]
    function: Any = F.max_pool2d if nd == 2 else F.max_pool3d
    pool = functools.partial(function, kernel_size=kernel, stride=stride, dilation=dilation)
    run = _Pooled(kernel, stride, dilation, torch.maximum, 1, pool)
    return Window(kernel, stride, margin, dilation, run, float("-inf"))


def avg_pool(
    nd: int, kernel: Any, stride: Any = None, padding: Any = 0, counted: bool = True, divisor: int | None = None
) -> Window | None:
    """Return the window of a mean over windows; None where the padding is not `counted` in it."""
    kernel, padding = each_axis(kernel, nd), each_axis(padding, nd)
    if any(padding) and not counted:
        return None
    stride, ones = each_axis(stride or kernel, nd), (1,) * nd
    function: Any = F.avg_pool2d if nd == 2 else F.avg_pool3d
    pool = functools.partial(function, kernel_size=kernel, stride=stride, divisor_override=divisor)
    run = _Pooled(kernel, stride, ones, torch.add, divisor or math.prod(kernel), pool)
    return Window(kernel, stride, _margin(padding, kernel, ones), ones, run)


def whole_mean(node: fx.Node, module: nn.Module | None) -> Call | None:
    """Return what a layer that takes means over windows does to whole 3-D maps; None for any other one.

    PyTorch's own takes three to ten times as long on a CPU, most where the channels come last.
    """
    if type(module) is not nn.AvgPool3d or len(node.args) != 1 or any(each_axis(module.padding, 3)):
        return None
    window = of_module(module, 3)
    if window is None:
        return None
    return lambda args, kwargs: window.run(*args) if args[0].ndim == _WITH_3D else module(*args)


def padding(nd: int, pad: Any, mode: str = "constant", value: Any = None) -> Window | None:
    """Return what `torch.nn.functional.pad` does; None where it adds channels or rows, or repeats the map."""
    if not isinstance(pad, tuple | list) or any(pad[2 * nd :]) or (mode != "constant" and any(pad)):
        return None
    both = [*pad, *[0] * 2 * nd]
    ones, margin = (1,) * nd, [(both[2 * i], both[2 * i + 1]) for i in reversed(range(nd))]  # the last axis comes first
    return Window(ones, ones, margin, ones, lambda block: block, float(value or 0))


def piece(box: Box, index: Any) -> Window | None:
    """Return what a slice along each axis takes out of a map; None for any other index, and where it takes rows."""
    each: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(one, slice) and one is not Ellipsis for one in each) or each.count(Ellipsis) > 1:
        return None
    nd, at = len(box.shape), each.index(Ellipsis) if Ellipsis in each else len(each)
    before, after = each[:at], each[at + 1 :]
    every = [*before, *[slice(None)] * (nd + 2 - len(before) - len(after)), *after]
    rows, channels, *space = every
    if rows != slice(None):
        return None
    taken = [range(n)[one] for one, n in zip(space, box.shape, strict=True)]
    run = operator.itemgetter((rows, channels, *(slice(None, None, r.step) for r in taken)))
    ones = (1,) * nd
    return Window(ones, tuple(r.step for r in taken), [(-r.start, 0) for r in taken], ones, run)


@attrs.frozen
class _Pooled:
    """A maximum or mean over windows: on a CPU one axis after the other gives the same in a third of the time or less.

    Args:
        kernel, stride, dilation: along each axis.
        join: of two maps, voxel by voxel.
        divisor: of what all voxels of a window joined give.
        pool: PyTorch's own.
    """

    kernel: Size
    stride: Size
    dilation: Size
    join: Callable[[Tensor, Tensor], Tensor]
    divisor: int
    pool: Callable[[Tensor], Tensor]

    def __call__(self, block: Tensor) -> Tensor:
        rounds = self.divisor != 1 and block.itemsize < _PRECISE  # each sum to half precision
        if block.is_cuda or rounds or set(self.kernel) == {1}:  # of one voxel it would be a view, not a new map
            return self.pool(block)
        for axis, (k, s, d) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True), start=2):
            last = (block.shape[axis] - (k - 1) * d - 1) // s * s + 1
            shifted = [block.narrow(axis, i * d, last).unfold(axis, 1, s).squeeze(-1) for i in range(k)]
            block = functools.reduce(self.join, shifted)
        return block if self.divisor == 1 else block / self.divisor


def _transposed(conv: Any) -> Transposed | None:
    nd = len(conv.kernel_size)
    stride, groups, dilation = tuple(conv.stride), conv.groups, tuple(conv.dilation)
    function: Any = F.conv_transpose2d if nd == 2 else F.conv_transpose3d

    def run(block: Tensor) -> Tensor:
        out: Tensor = function(block, conv.weight, conv.bias, stride, 0, 0, groups, dilation)
        return out

    return Transposed(tuple(conv.kernel_size), stride, tuple(conv.padding), dilation, run)


def _margin(padding: Any, kernel: Size, dilation: Size) -> Margin:
    """Return the padding before and after the map along each axis; "same" puts the odd voxel after it."""
    if padding == "same":
        total = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    return [(p, p) for p in each_axis(0 if padding == "valid" else padding, len(kernel))]


def each_axis(value: Any, nd: int) -> tuple[Any, ...]:
    """Return an argument for each axis, which PyTorch takes as one number for all of them too."""
    if not isinstance(value, tuple | list):
        return (value,) * nd
    return tuple(value) * (nd if len(value) == 1 else 1)
