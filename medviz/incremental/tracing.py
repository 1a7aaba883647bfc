"""Trace a network for images of one size: what it decides by sizes and types is decided as for this image."""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from medviz.incremental.nodes import clean_value, in_place, is_fact, layer, on_a_copy, operation

_ALONE = threading.Lock()  # `torch.fx` itself puts its own functions into `nn.Module` while it traces


def traced(model: nn.Module, image: Tensor) -> fx.GraphModule:
    """Return `model` as a graph that shares its parameters.

    Args:
        model: the network.
        image: `(1, C, *S)`. It is run only as far as the network asks for sizes in Python.

    Raises:
        Exception: whatever stops `torch.fx`, such as control flow that depends on values.
    """
    tracer = _Tracer(model, image)
    with _ALONE, _knowing_types():
        return fx.GraphModule(model, tracer.trace(model))


class _Tracer(fx.Tracer):
    """Answers Python's questions about sizes and types: `if x.shape[2] % 2`, `for n in x.shape`, `len(x.shape)`."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()
        self._registered = set(model.modules())
        self._image = image
        self._values: dict[fx.Node, Any] = {}
        self._running = False

    # while a part of the network is run, its layers and parameters are what they are

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        inline = self._running or m not in self._registered  # some networks make a pooling layer in each pass
        return forward(*args, **kwargs) if inline else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.fact(obj)) if is_fact(obj.node) else super().to_bool(obj)

    def iter(self, obj: Any) -> Iterator[Any]:
        # the sizes themselves stay open: the first is the number of copies that are run at once
        return iter([obj[i] for i in range(len(self.fact(obj)))]) if is_fact(obj.node) else super().iter(obj)

    def fact(self, obj: fx.Proxy) -> Any:
        """Return the value of a size or the like, as it is for the image.

        Raises:
            TypeError: it depends on voxels.
        """
        if not is_fact(obj.node):
            raise TypeError(f"the value of {obj.node.name} is asked for while the network is traced")
        self._running = True
        try:
            for node in self.graph.nodes:
                if node not in self._values:
                    self._values[node] = self._run(node)
        finally:
            self._running = False
        return self._values[obj.node]

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder" and not self._values:
            return self._image
        run = operation(node, layer(node, self.root))
        return clean_value(node, self.root, on_a_copy(run) if in_place(node, self.root) else run, self._values)


@contextlib.contextmanager
def _knowing_types() -> Iterator[None]:
    """Let `torch.jit.isinstance`, which MONAI's networks ask, take what is traced for the tensor that it stands for."""
    ask: Any = torch.jit.isinstance

    def answer(obj: Any, kind: Any) -> Any:
        return issubclass(Tensor, kind) if isinstance(obj, fx.Proxy) and isinstance(kind, type) else ask(obj, kind)

    torch.jit.isinstance = answer
    try:
        yield
    finally:
        torch.jit.isinstance = ask


class _Known:
    """What the values that are traced have in common."""

    node: fx.Node
    tracer: Any

    def __len__(self) -> int:
        size: Sequence[int] = self.tracer.fact(self)
        return len(size)

    def __index__(self) -> int:
        return operator.index(self.tracer.fact(self))

    def __int__(self) -> int:
        return int(self.tracer.fact(self))

    def __float__(self) -> float:
        return float(self.tracer.fact(self))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # how NumPy and others find out what they are given
        value: Any = self
        return _Attribute(value, name)

    # fx takes `a += b` for `a = a + b`, which leaves `a` alone

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._into(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._into(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._into(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._into(operator.itruediv, other)

    def _into(self, function: Callable[[Any, Any], Any], other: Any) -> fx.Proxy:
        made: fx.Proxy = self.tracer.create_proxy("call_function", function, (self, other), {})
        return made


class _Proxy(_Known, fx.Proxy):
    """A value that is traced."""


class _Attribute(_Known, fx.proxy.Attribute):
    """An attribute or method of a value that is traced."""
