"""Start the graph at what a layer returns, so that whoever holds it goes on from there."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from medviz.probe.outputs import tensors_in


class Starts:
    """Where the graph begins, in the passes of one probe."""

    def __init__(self) -> None:
        self._token = torch.zeros((), device="cpu", requires_grad=True)
        self._begun: list[weakref.ref[Tensor]] = []

    def begin(self, tensor: Tensor) -> Tensor:
        """Return `tensor` itself, from now on the start of a graph; operations after it may still work in place."""
        begun: Tensor = _Start.apply(tensor, self._token)  # type: ignore[no-untyped-call]
        self._begun.append(weakref.ref(begun))
        return begun

    def end(self) -> None:
        """Take the graph off what is still there: a model, or a hook of its own, may have kept it for later."""
        for reference in self._begun:
            tensor = reference()
            if tensor is not None and not tensor._is_view():
                tensor.detach_()
        self._begun.clear()


class _Start(torch.autograd.Function):
    """Make a tensor the start of a graph without a copy."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, token: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


def is_its_own(tensor: Tensor, module: nn.Module, given: Iterable[Any]) -> bool:
    """Return whether a layer made `tensor`, so that all who hold it, or a view of it, hold the layer's output.

    Dropout hands on what it was `given`, and what is done to its output must not be done to its input. A view shares
    its memory with more than the output.
    """
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_inference() or tensor._is_view():
        return False
    if any(tensor is buffer for buffer in module._buffers.values()):
        return False
    memory = _memory(tensor)
    return all(_memory(other) != memory for other in tensors_in(given) if other.layout == torch.strided)


def _memory(tensor: Tensor) -> int:
    memory: int = tensor.untyped_storage()._cdata
    return memory
