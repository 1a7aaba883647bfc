"""Find the layer to explain in the pass that is made anyway."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from medviz.probe.cut import Cut
from medviz.probe.layers import Layer, hand_on, hooked
from medviz.probe.outputs import first_tensor

_log = logging.getLogger("medviz")


class _Mark(torch.autograd.Function):
    """Make a tensor the start of a graph without a copy, and let operations after it still work in place."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, token: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


def _ends_in_channels(module: nn.Module, last: int) -> bool:
    """Whether a module works along the last axis, so that what looks like `(B, K, *s)` is `(B, *s, K)`."""
    if type(module) is nn.Linear:
        return bool(module.out_features == last)
    return type(module) is nn.LayerNorm and tuple(module.normalized_shape) == (last,)


@attrs.define
class _Seen:
    name: str
    type: str
    shape: tuple[int, ...] | None
    parametrised: bool
    spatial: bool
    channels_last: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape or ())


class RollingCut:
    """Watch all layers and find the one that the automatic choice takes, in the pass that is made anyway.

    With `graph`, each spatial output starts the graph anew and lets go of the one before, so that after the pass the
    graph reaches from the output to the last spatial layer and no further: its gradient is ready.
    """

    def __init__(self, model: nn.Module, images: Tensor, graph: bool) -> None:
        self.model = model
        self.batch, self.ndim = len(images), images.ndim
        self.token = torch.zeros((), device=images.device, requires_grad=True) if graph else None
        self.seen: list[_Seen] = []
        self.tensor: Tensor | None = None
        self._version = -1
        self._last: _Seen | None = None

    def hooks(self) -> contextlib.AbstractContextManager[None]:
        """Watch during the block."""
        named = [(name, module) for name, module in self.model.named_modules() if name]
        hookable = [(n, m) for n, m in named if not isinstance(m, torch.jit.ScriptModule)]
        return hooked([(module, self._hook(name)) for name, module in hookable])

    def _hook(self, name: str) -> Any:
        def watch(module: nn.Module, args: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            shape = None if tensor is None else tuple(tensor.shape)
            spatial = shape is not None and len(shape) == self.ndim and math.prod(shape[2:]) > 1
            seen = _Seen(name, type(module).__name__, shape, bool(list(module.parameters(recurse=False))), spatial)
            seen.channels_last = spatial and shape is not None and _ends_in_channels(module, shape[-1])
            self.seen.append(seen)
            if tensor is None or not spatial or shape is None or shape[0] != self.batch:
                return None
            if tensor is self.tensor and tensor._version == self._version:
                # a container hands on the output of its last child: the outermost name stands for both
                if self._last is not None and self._last.name.startswith(f"{name}."):
                    self._last.spatial = False
                    self._last = seen
                else:
                    seen.spatial = False
                return None
            if self.token is not None and torch.is_grad_enabled():
                marked: Tensor = _Mark.apply(tensor.as_subclass(Tensor).detach(), self.token)  # type: ignore[no-untyped-call]
                self.tensor = marked
            else:
                self.tensor = tensor
            self._last, self._version = seen, self.tensor._version
            return None if self.tensor is tensor else hand_on(output, tensor, self.tensor, [module])

        return watch

    def cut(self, name: str) -> Cut | None:
        """Return the cut that the pass has ended with, at the layer `name`.

        None: its output was changed in place afterwards, or was made where the model switches gradients off.
        """
        if self.tensor is None or self.tensor._version != self._version:
            return None
        if self.token is not None and not self.tensor.requires_grad:
            return None
        cut = Cut({name: self.model.get_submodule(name)}, self.token is not None)
        cut.tensors[name] = self.tensor
        cut.calls[name] = sum(seen.name == name for seen in self.seen)
        return cut

    def choose(self, output: Tensor) -> str:
        """Return the name of the layer that the automatic choice takes for this output.

        `(B, N)`: the last layer with a spatial extent. `(B, N, *S)`: the last one on the coarsest grid before the last
        layer that has parameters, which is never the logits themselves.

        Raises:
            ValueError: no layer suits, or the model goes on with tokens.
        """
        if output.ndim > 2:
            return self._coarsest()
        spatial = [i for i, seen in enumerate(self.seen) if seen.spatial]
        tokens = [seen for seen in self.seen[spatial[-1] + 1 if spatial else 0 :] if self._is_tokens(seen)]
        if tokens:
            raise ValueError(
                "`layer` cannot be chosen for a model that works on tokens (B, N, C); name one whose tokens the score "
                "still depends on: before the last attention, such as the first norm of the last block. The model's "
                f"token layers end with {[seen.name for seen in tokens][-4:]}."
            )
        if spatial and any(seen.channels_last for seen in self.seen):
            raise ValueError(
                "`layer` cannot be chosen for a model that works on (B, *s, C), channels last; name one, with "
                'reshape="channels_last".'
            )
        if not spatial:
            raise ValueError("no layer of the model returns a spatial extent (B, K, *s); nothing can be mapped.")
        return self.seen[spatial[-1]].name

    def _coarsest(self) -> str:
        parametrised = [i for i, seen in enumerate(self.seen) if seen.parametrised]
        before = [seen for seen in self.seen[: parametrised[-1] if parametrised else 0] if seen.spatial and seen.shape]
        if not before:
            raise ValueError("no spatial layer comes before the model's last layer; name one with `layer`.")
        coarsest = min(math.prod(seen.shape[2:]) for seen in before if seen.shape)
        return [seen.name for seen in before if seen.shape and math.prod(seen.shape[2:]) == coarsest][-1]

    def _is_tokens(self, seen: _Seen) -> bool:
        return seen.shape is not None and len(seen.shape) == 3 and seen.shape[0] == self.batch and seen.shape[1] > 1

    def layers(self, output: Tensor) -> list[Layer]:
        """Return what was called, in the model's order; of several calls of one module the last."""
        try:
            automatic = self.choose(output)
        except ValueError as err:
            _log.info("%s", err)
            automatic = ""
        last = {seen.name: seen for seen in self.seen}
        order = [name for name, _ in self.model.named_modules() if name in last]
        return [Layer(n, last[n].type, last[n].shape, n == automatic) for n in order]
