"""Cut the graph at named layers, or replace what they return."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medviz.probe.copies import copy_on_write
from medviz.probe.layers import hand_on, hooked
from medviz.probe.outputs import first_tensor


class Cut:
    """Keep what named layers return, and start the graph at the first of them.

    The output of a layer that does not yet require a gradient becomes a leaf: below it, autograd records nothing. The
    model goes on with a copy, so that an in-place operation after the layer changes neither the kept activation nor
    its gradient. A layer that is called several times in one pass keeps its last call.

    Args:
        layers: the modules, by name.
        graph: whether there will be a backward pass.
    """

    def __init__(self, layers: Mapping[str, nn.Module], graph: bool) -> None:
        self.layers = dict(layers)
        self.graph = graph
        self.tensors: dict[str, Tensor] = {}
        self.calls: Counter[str] = Counter()
        self._again = False

    def hooks(self) -> contextlib.AbstractContextManager[None]:
        """Watch during the block: the forward pass."""
        return hooked([(module, self._hook(name)) for name, module in self.layers.items()])

    def hooks_again(self) -> contextlib.AbstractContextManager[None]:
        """Cut as before during the block, a backward pass: a checkpoint runs its part of the model once more."""
        self._again = True
        return self.hooks()

    def _hook(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            if tensor is None:
                raise ValueError(f"`layer` {name!r} returns a {type(output).__name__} without a floating tensor.")
            if self.graph and not torch.is_grad_enabled():
                raise ValueError(
                    f"`layer` {name!r} runs without gradients inside the model (reentrant checkpointing, or a "
                    "torch.no_grad() in its forward); use checkpoint(…, use_reentrant=False), or another layer."
                )
            kept = tensor.as_subclass(Tensor)
            if not kept.requires_grad:
                kept = kept.detach().requires_grad_(self.graph)
            if not self._again:
                self.calls[name] += 1
                self.tensors[name] = kept
            return hand_on(output, tensor, copy_on_write(kept), module.modules())

        return keep

    def add(self, name: str, module: nn.Module, tensor: Tensor, calls: int) -> None:
        """Add a layer whose output was kept in another way, in the same pass."""
        self.layers[name], self.tensors[name], self.calls[name] = module, tensor, calls

    def finish(self) -> None:
        """Raise a `ValueError` where a layer was never called."""
        for name in self.layers:
            if not self.calls[name]:
                raise ValueError(f"`layer` {name!r} was not called in the forward pass of this image; name another.")


class Replace:
    """Make layers return given tensors, in the last of their calls.

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

    def hooks(self) -> contextlib.AbstractContextManager[None]:
        """Replace during the block."""
        return hooked([(module, self._hook(name)) for name, module in self.layers.items()])

    def _hook(self, name: str) -> Any:
        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            self._called[name] += 1
            if self._called[name] != self.calls[name]:
                return None
            tensor, new = first_tensor(output), self.tensors[name]
            if tensor is None or tensor.shape != new.shape:
                shape = None if tensor is None else tuple(tensor.shape)
                raise ValueError(f"`replace` gives `layer` {name!r} {tuple(new.shape)}; it returns {shape}.")
            return hand_on(output, tensor, new.to(tensor.device, tensor.dtype, copy=True), module.modules())

        return replace
