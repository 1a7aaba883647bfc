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
    """Where the graph begins, in the passes of one probe.

    Attributes:
        followed: views of a layer's output that were made before are told of the node; autograd may then refuse what it
            has saved of the output. False: they are not, and the gradient does not count the ways through them.
    """

    def __init__(self) -> None:
        self.followed = True
        self._token = torch.zeros((), device="cpu", requires_grad=True)
        self._begun: list[weakref.ref[Tensor]] = []

    def begin(self, tensor: Tensor, module: nn.Module, output: Any) -> Tensor:
        """Return `tensor` itself with a node of the graph of its own, at which its gradient arrives.

        Where it had no graph it is the start of one. Operations after it may still work in place.

        Args:
            tensor: what a layer returns.
            module: the layer.
            output: everything that it returns.
        """
        kept = list(tensors_in(vars(module)))
        views = any(other._is_view() and other._base is tensor for other in (*kept, *tensors_in(output)))
        # what has a graph, or is kept, may have been saved for another backward pass, which its version would spoil
        saved = tensor.requires_grad or any(other is tensor for other in kept)
        told = self.followed and (views or not saved)
        with contextlib.nullcontext() if told else _unsafe_preserve_version_counter(tensor):
            begun = _in_place(_Node, tensor) if tensor.requires_grad else _in_place(_Start, tensor, self._token)
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


def may_be_written(tensor: Tensor, module: nn.Module, given: Any, output: Any) -> bool:
    """Return whether another content of `tensor` is the layer's output for all who hold it, and nothing else.

    Nobody may hold its memory but the layer's output and what the layer keeps: a table of the model may lie there too.
    """
    repeats = any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
    if repeats or not is_its_own(tensor, module, given) or tensor.untyped_storage().nbytes() != tensor.nbytes:
        return False
    held = (other for other in (*module.parameters(), *module.buffers()) if other.layout == torch.strided)
    memory = memory_of(tensor)
    if memory in set(map(memory_of, held)):
        return False
    kept = (other for part in module.modules() for other in tensors_in(vars(part)))
    known = {id(other) for other in (tensor, *tensors_in(output), *kept) if _lies_at(other, memory)}
    return holders_of(tensor) <= len(known)


def _lies_at(tensor: Tensor, memory: int) -> bool:
    return tensor.layout == torch.strided and memory_of(tensor) == memory


def memory_of(tensor: Tensor) -> int:
    """Return a number that stands for the memory of a tensor: a view has that of its base, a lazy copy another."""
    memory: int = tensor.untyped_storage()._cdata
    return memory


def holders_of(tensor: Tensor) -> float:
    """Return how many tensors, itself among them, lie in the memory of a tensor; infinity where nobody knows."""
    try:
        storage = tensor.untyped_storage()
        return int(torch._C._storage_Use_Count(storage._cdata)) - 1  # one is the storage that was asked for
    except (AttributeError, RuntimeError):  # a private function; and a sparse tensor has no storage
        return float("inf")
