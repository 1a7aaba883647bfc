"""Start the graph at what a layer returns, so that whoever holds it goes on from there."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from medviz.probe.outputs import tensors_in


class Starts:
    """Where the graph begins, in the passes of one probe."""

    def __init__(self) -> None:
        self._token = torch.zeros((), device="cpu", requires_grad=True)
        self._begun: list[weakref.ref[Tensor]] = []

    def begin(self, tensor: Tensor, beside: Any = ()) -> Tensor:
        """Return `tensor` itself with a node of the graph of its own, at which its gradient arrives.

        Where it had no graph it is the start of one. Operations after it may still work in place, and what was saved of
        it for a backward pass stays good.

        Args:
            tensor: what a layer returns.
            beside: where views of it may lie, which go on from the node as well.

        Raises:
            ValueError: one of the views cannot.
        """
        views = [other for other in tensors_in(beside) if other._is_view() and other._base is tensor]
        # another version tells views of the node, and spoils what was saved of the tensor: only where there are views
        with contextlib.nullcontext() if views else _unsafe_preserve_version_counter(tensor):
            begun = _in_place(_Node, tensor) if tensor.requires_grad else _in_place(_Start, tensor, self._token)
        try:
            _ = [view.grad_fn for view in views]
        except RuntimeError as err:
            raise ValueError(
                "the layer returns, or keeps, parts of its output that cannot be followed: made by chunk or split, or "
                "under torch.no_grad(). Name a layer inside of it, or one after it."
            ) from err
        self._begun.append(weakref.ref(begun))
        return begun

    def end(self) -> None:
        """Take the graph off what is still there: a model, or a hook of its own, may have kept it for later."""
        for reference in self._begun:
            tensor = reference()
            if tensor is not None and not tensor._is_view():
                tensor.detach_()
        self._begun.clear()


def _in_place(function: Any, tensor: Tensor, *more: Tensor) -> Tensor:
    same: Tensor = function.apply(tensor, *more)
    return same


class _Start(torch.autograd.Function):
    """Make a tensor the start of a graph without a copy."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, token: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


class _Node(torch.autograd.Function):
    """Give a tensor that has a graph one more node, without a copy."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def is_its_own(tensor: Tensor, module: nn.Module, given: Any) -> bool:
    """Return whether a layer made `tensor`, so that all who hold it hold the layer's output.

    Dropout hands on what it was `given`, and what is done to its output must not be done to its input. A view shares
    its memory with more than the output. A tensor that is being optimised is the caller's.
    """
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_inference() or tensor._is_view():
        return False
    if (tensor.is_leaf and tensor.requires_grad) or any(tensor is buffer for buffer in module._buffers.values()):
        return False
    try:
        memory = memory_of(tensor)
        return all(memory_of(other) != memory for other in tensors_in(given) if other.layout == torch.strided)
    except (RuntimeError, NotImplementedError):  # inside of torch.vmap there is no memory
        return False


def memory_of(tensor: Tensor) -> int:
    """Return a number that stands for the memory of a tensor: a view has that of its base, a lazy copy another."""
    memory: int = tensor.untyped_storage()._cdata
    return memory
