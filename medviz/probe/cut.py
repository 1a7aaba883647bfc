"""Cut the graph at named layers, or replace what they return."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from medviz.probe.copies import copy_on_write
from medviz.probe.layers import Hook, hand_on, hooked
from medviz.probe.order import usual_order
from medviz.probe.outputs import first_tensor
from medviz.probe.starts import Starts, is_its_own, may_be_written
from medviz.probe.watch import stop_where_shared


class Cut:
    """Keep what named layers return, and start the graph at the first of them.

    The output of a layer that does not yet require a gradient starts the graph: below it, autograd records nothing.
    What is kept is a copy of it, so that an operation in place after the layer changes neither the activation nor its
    gradient. A layer that is called several times in one pass keeps its last call.

    Args:
        layers: the modules, by name.
        starts: where the graph begins; None: there will be no backward pass.
        usual: whether maps lie in the usual order in memory where the graph begins, whatever order they had.
    """

    def __init__(self, layers: Mapping[str, nn.Module], starts: Starts | None, usual: bool = False) -> None:
        self.layers = dict(layers)
        self.starts = starts
        self._usual = usual
        self.tensors: dict[str, Tensor] = {}
        self.edges: dict[str, GradientEdge] = {}  # where the gradient of each arrives
        self._alive: dict[str, Tensor] = {}
        self.calls: Counter[str] = Counter()

    def hooks(self) -> contextlib.AbstractContextManager[None]:
        """Watch during the block: the forward pass."""
        return hooked([(module, self._hook(name)) for name, module in self.layers.items()])

    def hooks_again(self, everywhere: bool) -> contextlib.AbstractContextManager[None]:
        """Cut as before during the block, a backward pass: a checkpoint runs its part of the model once more.

        Args:
            everywhere: in whatever thread: the backward pass of another device than the CPU runs in threads of its own.
        """
        return hooked([(module, self._hook(name, again=True)) for name, module in self.layers.items()], everywhere)

    def _hook(self, name: str, again: bool = False) -> Hook:
        def keep(module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
            tensor = first_tensor(output)
            if tensor is None:
                raise ValueError(f"`layer` {name!r} returns a {type(output).__name__} without a floating tensor.")
            if self.starts and not torch.is_grad_enabled():
                raise ValueError(
                    f"`layer` {name!r} runs without gradients inside the model (reentrant checkpointing, or a "
                    "torch.no_grad() in its forward); use checkpoint(…, use_reentrant=False), or another layer."
                )
            own = is_its_own(tensor, module, given)
            start = tensor if own else copy_on_write(tensor.as_subclass(Tensor))
            if self.starts and (own or not start.requires_grad):
                if self._usual and not start.requires_grad:
                    start = usual_order(start)
                start = self.starts.begin(start, module, output)
            if not again:
                self.add(name, module, start, self.calls[name] + 1)
            return None if own else hand_on(output, tensor, start, module.modules())

        return keep

    def add(self, name: str, module: nn.Module, tensor: Tensor, calls: int) -> None:
        """Keep what a layer has returned in the last of its calls; with a graph, `tensor` is its start or a part."""
        self.layers[name], self.calls[name] = module, calls
        self.tensors[name] = copy_on_write(tensor.detach())
        if self.starts:
            edge = self.edges[name] = get_gradient_edge(tensor)
            if not hasattr(edge, "ownership_token"):
                self._alive[name] = _after(tensor)

    def finish(self) -> None:
        """Raise a `ValueError` where a layer was never called."""
        for name in self.layers:
            if not self.calls[name]:
                raise ValueError(
                    f"`layer` {name!r} was not called in the forward pass of this image; name another. (Calls in "
                    "threads of the model's own are not seen.)"
                )


@torch.enable_grad()
def _after(tensor: Tensor) -> Tensor:
    """Return something empty that comes after `tensor` in the graph, whose node lives with it.

    In PyTorch 2.6 an edge does not own its node; a backward pass to where a freed tensor was ends the interpreter.
    """
    return tensor[None].narrow(0, 0, 0).clone()


@attrs.frozen
class _Written:
    """A tensor that was written into: where it lay in its memory, and what stood there."""

    tensor: weakref.ref[Tensor]
    place: tuple[Any, ...]
    before: Tensor

    def put_back(self) -> None:
        if (tensor := self.tensor()) is not None:  # its shape may be another by now
            torch.as_strided(tensor, *self.place).copy_(self.before)


class Replace:
    """Make layers return given tensors, in the last of their calls.

    They are written into what a layer returns, so that whoever holds it sees them; what stood there comes back.

    Args:
        layers: the modules, by name.
        tensors: what each returns instead.
        calls: how often each is called in one pass.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], calls: Mapping[str, int]
    ) -> None:
        self.layers, self.tensors, self.calls = layers, tensors, calls
        self._called: Counter[str] = Counter()
        self._written: dict[int, _Written] = {}  # in the order in which it was done

    def run(self, passing: Callable[[], Tensor]) -> Tensor:
        """Return the output of a pass in which they are replaced, in memory of its own."""
        try:
            with hooked([(module, self._hook(name)) for name, module in self.layers.items()]):
                return passing()
        finally:
            for written in reversed(list(self._written.values())):
                written.put_back()

    def _write(self, tensor: Tensor, new: Tensor) -> None:
        number = sum(self._called.values())
        gone = weakref.ref(tensor, lambda _: self._written.pop(number, None))
        stop_where_shared(tensor)
        place = (tensor.size(), tensor.stride(), tensor.storage_offset())
        self._written[number] = _Written(gone, place, copy_on_write(tensor))
        tensor.copy_(new)

    def _hook(self, name: str) -> Hook:
        def replace(module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
            self._called[name] += 1
            if self._called[name] != self.calls[name]:
                return None
            tensor, new = first_tensor(output), self.tensors[name]
            if tensor is None or tensor.shape != new.shape:
                shape = None if tensor is None else tuple(tensor.shape)
                raise ValueError(f"`replace` gives `layer` {name!r} {tuple(new.shape)}; it returns {shape}.")
            if not may_be_written(tensor, module, given, output):
                return hand_on(output, tensor, new.to(tensor.device, tensor.dtype, copy=True), module.modules())
            self._write(tensor, new)
            return None

        return replace
