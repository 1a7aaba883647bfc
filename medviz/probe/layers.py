"""Watch layers while a model runs: cut the graph there, replace what they return, or find the one to explain."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from medviz.errors import suggest
from medviz.probe.outputs import first_tensor, replace_tensor

_log = logging.getLogger("medviz")


@attrs.frozen
class Layer:
    """A module that was called in a forward pass.

    Args:
        name: its dotted name.
        type: the name of its class.
        shape: the shape of its output in the last call; None: the output holds no tensor.
        automatic: the automatic choice takes this one.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None
    automatic: bool = False


def module_of(model: nn.Module, name: str) -> nn.Module:
    """Return the module called `name`.

    Raises:
        ValueError: there is none, or it takes no hooks.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in modules or not name:
        raise ValueError(
            f"`layer` {name!r} is not in the model{suggest(name, modules)} "
            "List the layers with dict(model.named_modules()) or `medviz layers`."
        )
    refuse_scripted(modules[name], f"`layer` {name!r}")
    return modules[name]


def refuse_scripted(module: nn.Module, what: str) -> None:
    """Raise a `ValueError` where `module` is scripted or traced: its hooks would never be called."""
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{what} is a scripted or traced module, which takes no hooks; use a method that needs no layer "
            "(occlusion, input gradients), or load the weights into the ordinary module."
        )


@contextlib.contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, Any]]) -> Iterator[None]:
    handles: list[Any] = []
    try:
        handles += [module.register_forward_hook(hook) for module, hook in hooks]
        yield
    finally:
        for handle in handles:
            handle.remove()


class Cut:
    """Keep what named layers return, and start the graph at the first of them.

    The output of a layer that does not yet require a gradient becomes a leaf: below it, autograd records nothing. The
    model goes on with a copy, so that an in-place operation after the layer changes neither the kept activation nor
    its gradient. A layer that is called several times in one pass keeps its last call.
    """

    def __init__(self, layers: Mapping[str, nn.Module], graph: bool) -> None:
        self.layers = layers
        self.graph = graph
        self.tensors: dict[str, Tensor] = {}
        self.calls: Counter[str] = Counter()
        self._originals: dict[str, Tensor] = {}

    @classmethod
    def of(cls, name: str, module: nn.Module, rolling: RollingCut) -> Cut:
        """Return the cut that a rolling cut has ended with."""
        cut = cls({name: module}, rolling.token is not None)
        if rolling.tensor is not None:
            cut.tensors[name] = rolling.tensor
        cut.calls[name] = sum(seen.name == name for seen in rolling.seen)
        return cut

    def hooks(self) -> contextlib.AbstractContextManager[None]:
        """Watch during the block."""
        return _hooked([(module, self._hook(name)) for name, module in self.layers.items()])

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
            self.calls[name] += 1
            self.tensors[name] = kept
            self._originals[name] = tensor
            return replace_tensor(output, tensor, kept.clone())

        return keep

    def finish(self, model: nn.Module) -> None:
        """Hold what was kept against what was asked for.

        Raises:
            ValueError: a layer was never called, or its output is kept on a module, past the cut.
        """
        for name in self.layers:
            if not self.calls[name]:
                raise ValueError(f"`layer` {name!r} was not called in the forward pass of this image; name another.")
        kept_on = {id(original): name for name, original in self._originals.items()}
        for owner, module in model.named_modules():
            for attribute, value in vars(module).items():
                if self.graph and isinstance(value, Tensor) and id(value) in kept_on:
                    raise ValueError(
                        f"`layer` {kept_on[id(value)]!r}: the model keeps its output on "
                        f"`{(owner + '.') if owner else ''}{attribute}` and may go on from there, past the cut; "
                        "let forward() use the layer's return value, or name another layer."
                    )
        self._originals.clear()


class Replace:
    """Make layers return given tensors, in the last of the calls that were counted in the clean pass."""

    def __init__(
        self, layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], calls: Mapping[str, int]
    ) -> None:
        self.layers, self.tensors, self.last = layers, tensors, calls
        self.calls: Counter[str] = Counter()

    def hooks(self) -> contextlib.AbstractContextManager[None]:
        """Replace during the block."""
        return _hooked([(module, self._hook(name)) for name, module in self.layers.items()])

    def _hook(self, name: str) -> Any:
        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            self.calls[name] += 1
            if self.calls[name] != self.last[name]:
                return None
            tensor, new = first_tensor(output), self.tensors[name]
            if tensor is None or tensor.shape != new.shape:
                shape = None if tensor is None else tuple(tensor.shape)
                raise ValueError(f"`replace` gives `layer` {name!r} {tuple(new.shape)}; it returns {shape}.")
            return replace_tensor(output, tensor, new.to(tensor.device, tensor.dtype, copy=True))

        return replace


class _Mark(torch.autograd.Function):
    """Make a tensor the start of a graph without a copy, and let operations after it still work in place."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, token: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


@attrs.define
class _Seen:
    name: str
    type: str
    shape: tuple[int, ...] | None
    parametrised: bool
    spatial: bool

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
        return _hooked([(module, self._hook(name)) for name, module in hookable])

    def _hook(self, name: str) -> Any:
        def watch(module: nn.Module, args: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            shape = None if tensor is None else tuple(tensor.shape)
            spatial = shape is not None and len(shape) == self.ndim and math.prod(shape[2:]) > 1
            seen = _Seen(name, type(module).__name__, shape, bool(list(module.parameters(recurse=False))), spatial)
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
            return None if self.tensor is tensor else replace_tensor(output, tensor, self.tensor)

        return watch

    @property
    def intact(self) -> bool:
        """Whether the last spatial output is still what its layer returned: nothing changed it in place."""
        return self.tensor is not None and self.tensor._version == self._version

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
            near = [seen.name for seen in tokens][-8:]
            raise ValueError(
                "`layer` cannot be chosen for a model that works on tokens (B, N, C); name one before the last "
                f"attention, whose tokens the score still depends on, for example one of {near}."
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
