"""How the values of maps follow each other in memory: on a CPU, convolutions are quicker where channels come last."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from medviz.incremental.graph import is_new
from medviz.incremental.nodes import called, in_place, is_fact, layer

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes
# what takes or tells values as they lie, by a part of its name: it says something else where they lie in another order
_AS_THEY_LIE = ("stride", "resize_", "set_")


def order(maps: Tensor) -> torch.memory_format:
    """Return the order of maps `(M, C, *S)`: channels last, or any other one as the contiguous one."""
    last = _LAST.get(maps.ndim)
    # of one channel both orders are alike, but for the step, by which PyTorch tells too
    if last is None or maps.stride(1) != 1 or maps.shape[2:].numel() == 1 or not maps.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def empty(like: Tensor, rows: int, size: Sequence[int]) -> Tensor:
    """Return room for boxes `(rows, C, *size)` of maps `(M, C, *S)`, in their order."""
    shape = (rows, like.shape[1], *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=order(like))


def repeated(clean: Tensor, rows: int) -> Tensor:
    """Return copies `(rows, C, *S)` of one map `(1, C, *S)`, in its order."""
    return clean.expand(rows, *clean.shape[1:]).clone(memory_format=order(clean))


def channels_last(maps: Tensor) -> Tensor:
    """Return maps or weights with the channels last in memory; in the same memory where the numbers lie so already.

    So do those of one voxel, and those of one channel, which differ by a step that is never made.
    """
    last = _LAST[maps.ndim]
    if order(maps) == last or maps.shape[2:].numel() == 1:
        return maps
    if maps.shape[1] == 1 and maps.is_contiguous():
        return maps.as_strided(maps.shape, (maps.stride(0), 1, *maps.stride()[2:]))
    return maps.clone(memory_format=last)


def layers_channels_last(traced: fx.GraphModule, image: Tensor) -> dict[fx.Node, nn.Module]:
    """Return, for each node that calls a convolution, a copy of that with its weight's channels last.

    PyTorch then makes its output so, and what comes after follows. There is none on a GPU, and where an operation in
    place changes a value of which there may be views: `flatten` makes one, or a copy, as the order has it.
    """
    if image.device.type != "cpu":
        return {}
    nodes = traced.graph.nodes
    if any(in_place(node, traced) and not is_fact(node) and not _has_no_views(node, traced) for node in nodes):
        return {}
    layers: dict[fx.Node, Any] = {node: layer(node, traced) for node in nodes}
    known = {module: _channels_last(module) for module in layers.values() if _is_convolution(module)}
    return {node: known[module] for node, module in layers.items() if module in known}


def depends_on_order(node: fx.Node, values: Sequence[object]) -> bool:
    """Return whether an operation does something else with these values than if they were contiguous, or fails."""
    target = called(node)
    if target in ("view", "view_as"):
        return any(isinstance(value, Tensor) and not value.is_contiguous() for value in values)
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return any(part in name for part in _AS_THEY_LIE)


def _is_convolution(module: nn.Module) -> bool:
    """Return whether it is one of PyTorch's own, whose weight is not made anew by a hook."""
    return type(module) in (nn.Conv2d, nn.Conv3d) and "weight" in module._parameters


def _channels_last(convolution: nn.Conv2d | nn.Conv3d) -> nn.Module:
    made = copy.copy(convolution)
    weight = nn.Parameter(channels_last(convolution.weight.detach()), requires_grad=False)
    made._parameters = {**convolution._parameters, "weight": weight}
    return made


def _has_no_views(node: fx.Node, traced: fx.GraphModule) -> bool:
    """Return whether nobody but an operation in place can hold the memory that it writes to."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node) or not is_new(first, traced):
        return False
    return all(user is node or is_new(user, traced) or is_fact(user) for user in first.users)
