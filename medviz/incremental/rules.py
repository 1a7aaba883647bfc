"""What becomes of a box in each kind of operation. Everything that has no rule is run on whole maps."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from medviz.finite import all_finite
from medviz.incremental import resizing, windows
from medviz.incremental.boxes import Box, Same
from medviz.incremental.copying import cut
from medviz.incremental.geometry import Size, Starts, fraction, inside, kept, union, within
from medviz.incremental.nodes import Call, called
from medviz.incremental.operations import (
    CONVOLUTIONS,
    TO_A_TYPE,
    is_along_channels,
    is_arithmetic,
    is_elementwise,
    is_filled,
    is_split,
    of_fixed_norm,
)

_GLOBAL_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_GLOBAL_POOL_FUNCTIONS = {F.adaptive_avg_pool2d, F.adaptive_avg_pool3d}
_POOLS: dict[Any, type[nn.Module]] = {
    **{F.max_pool2d: nn.MaxPool2d, torch.max_pool2d: nn.MaxPool2d, F.avg_pool2d: nn.AvgPool2d},
    **{F.max_pool3d: nn.MaxPool3d, torch.max_pool3d: nn.MaxPool3d, F.avg_pool3d: nn.AvgPool3d},
}
_LEFT = 0.1  # of the magnitudes that make up a mean: above it, a difference of means keeps all but one digit
_POOLS_ALIKE = 5  # arguments up to which the function takes them in the order of the layer
_Window = windows.Window | windows.Transposed | resizing.Resized


@attrs.frozen(eq=False)
class Rules:
    """Makes a box of boxes, one operation at a time.

    Args:
        nd: spatial axes.
        dense: how much of a map a box may fill, before whole maps are quicker.
        growth: how much of a map a box may fill along each axis, before it stops growing and no longer holds all that
            a patch has changed; 1: all of it.
    """

    nd: int
    dense: float = 1.0
    growth: float = 1.0
    _known: dict[Any, _Window | None] = attrs.field(factory=dict, init=False)  # what always says the same

    def __call__(
        self,
        node: fx.Node,
        module: nn.Module | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        clean: Any,
        run: Call,
    ) -> Any:
        """Return what an operation makes of its arguments, of which some are boxes; None where no rule knows it.

        Args:
            node: the operation.
            module: the layer, if it is one.
            args, kwargs: boxes, clean maps and constants.
            clean: what it makes of the clean maps.
            run: runs it.
        """
        target = called(node)
        if target is operator.getitem and type(args[0]) is tuple:
            return args[0][args[1]]
        if target in TO_A_TYPE:  # of another value it asks for the type
            args = (args[0], *map(_outline, args[1:]))
        boxes = [value for value in flat(args) if isinstance(value, Box)]
        if is_split(node):
            return self._split(args, kwargs, clean, run) if boxes else None
        if not isinstance(clean, Tensor):
            return None
        if is_filled(node):
            return _same_rows(run(tuple(map(_outline, args)), kwargs), clean)
        if not boxes and target in ("expand", "repeat"):
            return _repeated(run(fx.node.map_aggregate(args, _outline), kwargs), args[0], clean, target == "expand")
        if not boxes:
            return self._once(node, module, args, kwargs, clean, run)
        if self._is_global_mean(node, module, args, kwargs):
            return global_mean(boxes[0], clean)
        if clean.ndim != self.nd + 2 or not clean.numel():
            return None
        if args[0] is boxes[0] and self._is_alone(node, module, args, kwargs):
            return Box(clean, run((boxes[0].block, *args[1:]), kwargs), boxes[0].reach)
        if args[0] is boxes[0] and _keeps_shape(node, args, kwargs, boxes[0], clean):
            return attrs.evolve(boxes[0], clean=clean)
        window = self._window(node, module, args, kwargs)
        if window is not None:
            return self._through(window, args[0], clean)
        if is_arithmetic(node) and not _has_tensor((), kwargs):
            return self._combine(args, lambda blocks: run(tuple(blocks), kwargs), clean)
        if _axis_of_cat(node, args, kwargs) in (1, -self.nd - 1):
            return self._combine(args[0], lambda blocks: torch.cat(blocks, 1), clean)
        return None

    def _is_global_mean(
        self, node: fx.Node, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        one = (1, (1,) * self.nd, [1] * self.nd)
        if module is not None:
            return type(module) in _GLOBAL_POOLS and getattr(module, "output_size", None) in one
        if node.target in _GLOBAL_POOL_FUNCTIONS:
            return (args[1] if len(args) > 1 else kwargs.get("output_size")) in one
        if node.target in (torch.mean, "mean"):
            axes = kwargs.get("dim", args[1] if len(args) > 1 else None)
            return isinstance(axes, tuple | list) and {a % (self.nd + 2) for a in axes} == set(range(2, self.nd + 2))
        return False

    def _window(
        self, node: fx.Node, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Window | None:
        """Return the window of an operation whose only box is its first argument; None where no rule knows it."""
        if not isinstance(args[0], Box) or _has_box(args[1:], kwargs):
            return None
        if module is not None:
            if node not in self._known:
                self._known[node] = windows.of_module(module, self.nd) or resizing.of_module(module, args[0])
            return self._known[node]
        if called(node) in CONVOLUTIONS:
            return windows.convolution(*args[1:], **kwargs)
        if node.target in _POOLS and len(args) <= _POOLS_ALIKE:
            return windows.of_module(_POOLS[node.target](*args[1:], **kwargs), self.nd)
        if node.target is F.interpolate and not _has_tensor(args[1:], kwargs):
            call = (node, repr((args[1:], kwargs)))
            if call not in self._known:
                self._known[call] = resizing.interpolation(*args, **kwargs)
            return self._known[call]
        if node.target is F.pad:
            return windows.padding(self.nd, *args[1:], **kwargs)
        return windows.piece(*args) if node.target is operator.getitem else None

    def _through(self, window: _Window, box: Box, clean: Tensor) -> Box | None:
        shape = tuple(clean.shape[2:])
        reach, size = self._bounded(*window.reach(box), shape)
        if fraction(size, shape) > self.dense:
            return None
        return Box(clean, window(box, inside(reach, size, shape), size).to(clean.dtype), reach)

    def _bounded(self, reach: Starts, size: Size, shape: Size) -> tuple[Starts, Size]:
        """What is run of the boxes that can have changed: what lies in the map, or less where they may not grow."""
        return within(reach, size, shape) if self.growth == 1 else kept(reach, size, shape, self.growth)

    def _once(
        self,
        node: fx.Node,
        module: nn.Module | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        clean: Tensor,
        run: Call,
    ) -> Same | None:
        """Return what an operation makes of values that have the same rows, from one of them."""
        same = [value for value in flat(args) if isinstance(value, Same)]
        alone = is_elementwise(node, module) or is_arithmetic(node) or _axis_of_cat(node, args, kwargs) == 1
        if not same or not alone or _has_tensor((), kwargs):
            return None
        made = run(fx.node.map_aggregate(args, lambda one: one.clean if isinstance(one, Same) else one), kwargs)
        alike = made.shape == clean.shape and {made.ndim} == {value.clean.ndim for value in same} and len(made) == 1
        return Same(made, same[0].rows) if alike else None

    def _is_alone(self, node: fx.Node, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Return whether an operation makes each voxel from the same voxel of its first argument and from constants."""
        if of_fixed_norm(node, args, kwargs):
            return not _has_box(args[1:], kwargs)
        voxelwise = is_elementwise(node, module) or is_along_channels(node, module, args, kwargs, self.nd)
        return voxelwise and (called(node) in TO_A_TYPE or not _has_tensor(args[1:], kwargs))

    def _split(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], clean: tuple[Tensor, ...], run: Call
    ) -> tuple[Box, ...] | None:
        """Return the boxes of the parts of a map that is split along the channels."""
        box, axis = args[0], kwargs.get("dim", args[2] if len(args) > 2 else 0)
        if axis not in (1, -self.nd - 1) or len(box.shape) != self.nd:
            return None
        parts = run((box.block, *args[1:]), kwargs)
        return tuple(Box(one, block, box.reach) for one, block in zip(clean, parts, strict=True))

    def _combine(self, values: Sequence[Any], run: Callable[[list[Any]], Tensor], clean: Tensor) -> Box | None:
        """Return the box of an operation that works voxel by voxel on several maps of one grid."""
        boxes = [value for value in values if isinstance(value, Box)]
        shape = tuple(clean.shape[2:])
        if any(box.shape != shape for box in boxes):
            return None
        reach, size = self._bounded(*union([box.reach for box in boxes], [box.size for box in boxes]), shape)
        blocks = [_block(value, inside(reach, size, shape), size, shape) for value in values]
        return None if any(block is None for block in blocks) else Box(clean, run(blocks), reach)


def global_mean(box: Box, clean: Tensor) -> Tensor | None:
    """Return the mean over space of each changed map, `(M, C, …)`: the clean one, and what the box has changed.

    None where the difference cannot tell: an infinite value goes or comes; or nearly all of a map goes, and what is
    left of it would be the rounding of what went, which a logarithm or a division then makes as large as the rest.
    """
    before = cut(box.clean, box.starts, box.size)
    change = _summed(box.block - before)
    if not all_finite(change):
        return None
    all_of_it, gone, come = (_summed(values.abs()) for values in (box.clean, before, box.block))
    if (all_of_it - gone + come < _LEFT * (all_of_it + gone + come)).any():
        return None
    change = change / box.clean[0, 0].numel()
    return clean + change.reshape(*change.shape, *clean.shape[2:])


def _summed(values: Tensor) -> Tensor:
    """Return the sum over space, `(M, C)`."""
    return values.sum(tuple(range(2, values.ndim)))


def flat(values: Any) -> list[Any]:
    """Return what stands in nested lists and tuples."""
    return [item for value in values for item in (flat(value) if isinstance(value, list | tuple) else [value])]


def _axis_of_cat(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return along which axis maps are joined; None: that is not what the operation does."""
    return kwargs.get("dim", args[1] if len(args) > 1 else 0) if called(node) is torch.cat else None


def _block(value: Any, starts: Starts, size: Size, shape: Size) -> Any:
    """What an argument holds in the boxes: a block, or the constant that it is; None: neither."""
    if isinstance(value, Box):
        same = value.size == size and (value.starts == starts).all()
        return value.block if same else value.gather(starts, size)
    value = value.clean if isinstance(value, Same) else value
    if not isinstance(value, Tensor):
        return value if isinstance(value, int | float) else None
    if not value.ndim:
        return value  # as it is: unlike others, it never decides the precision of the result
    value = value[(None,) * (len(shape) + 2 - value.ndim)]  # PyTorch puts missing axes first
    space = tuple(value.shape[2:])
    if len(value) > 1 or len(space) != len(shape) or any(n not in (1, m) for n, m in zip(space, shape, strict=True)):
        return None
    if set(space) == {1} and set(shape) != {1}:
        return value  # the same at every voxel
    return cut(value.expand(1, -1, *shape), starts, size)


def _keeps_shape(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], box: Box, clean: Tensor) -> bool:
    """Return whether an operation gives a map the shape that it has, which does not mix rows with channels either."""
    if called(node) not in ("view", "reshape", torch.reshape) or kwargs or clean.shape != box.clean.shape:
        return False
    return flat(args[1:])[0] in (-1, len(box.block))


def _repeated(made: Any, source: Any, clean: Tensor, expanded: bool) -> Same | None:
    """Return what is repeated for each copy; None where not just rows are repeated."""
    known = isinstance(source, Same) or (isinstance(source, Tensor) and (source.ndim < made.ndim or len(source) == 1))
    return _same_rows(made, clean, expanded) if known else None


def _same_rows(made: Tensor, clean: Tensor, expanded: bool = False) -> Same | None:
    """Return what has the same rows, of which the clean value has one; None where it has not."""
    alike = clean.shape[:1] == (1,) and made.shape[1:] == clean.shape[1:]
    return Same(made[:1].clone(), len(made), expanded) if alike else None


def _outline(value: Any) -> Any:
    return value.outline() if isinstance(value, Box | Same) else value


def _has_tensor(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return any(isinstance(value, Tensor | Box | Same) for value in flat([*args, *kwargs.values()]))


def _has_box(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return any(isinstance(value, Box | Same) for value in flat([*args, *kwargs.values()]))
