"""Trace a network for images of one size: what it decides by sizes and types is decided as for this image."""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from medviz.incremental.nodes import IN_PLACE, clean_value, in_place, is_fact, layer, on_a_copy, operation
from medviz.incremental.operations import is_split
from medviz.validators import as_python

_T = TypeVar("_T")
_ALONE = threading.Lock()  # `torch.fx` itself puts its own functions into `nn.Module` while it traces


def traced(model: nn.Module, image: Tensor) -> fx.GraphModule:
    """Return `model` as a graph that shares its parameters.

    Args:
        model: the network.
        image: `(1, C, *S)`; its size, type and device count, and not its values.

    Raises:
        Exception: whatever stops `torch.fx`, such as control flow that depends on values or on the number of images.
    """
    own = any(module._buffers for module in model.modules() if not type(module).__module__.startswith("torch."))
    *first, (functions, buffers) = _ATTEMPTS if own else _ATTEMPTS[:-1]
    with _ALONE:
        for fewer, open_buffers in first:
            with contextlib.suppress(Exception), _taking_proxies(fewer):
                return _trace(model, image, open_buffers)
        with _taking_proxies(functions):
            return _trace(model, image, buffers)


def _trace(model: nn.Module, image: Tensor, buffers: bool) -> fx.GraphModule:
    """Trace once, with `buffers` that are traced themselves: they can be expanded to sizes then, but not be asked."""
    tracer = _Tracer(model, image)
    tracer.proxy_buffer_attributes = buffers
    try:
        return _Uncompiled(model, tracer.trace(model))
    finally:
        tracer.forget()


class _Uncompiled(fx.GraphModule):
    """A graph that is run node by node: of generated code, `torch.fx` would keep the text for ever."""

    def recompile(self) -> Any:
        return None


class _Tracer(fx.Tracer):
    """Answers Python's questions about sizes and types: `if x.shape[2] % 2`, `for n in x.shape`, `len(x.shape)`.

    They are asked of stand-ins, which have a size and a type but no values, so that nothing can be decided by a value
    that a patch may change. There is one of a single image and one of two, so that nothing can be decided by the number
    of images either.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()
        self._registered = set(model.modules())
        self._image = image
        self._mode: Any = None
        self._values: tuple[dict[fx.Node, Any], dict[fx.Node, Any]] = ({}, {})
        self._asking = False

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        def of_the_image(model: Any, image: Any) -> Any:  # what else its forward takes has the defaults, as in a pass
            return root_fn(model, image)

        return super().create_args_for_root(of_the_image, is_module, concrete_args)

    def create_arg(self, a: Any) -> Any:
        return super().create_arg(as_python(a))

    # while stand-ins go through the network, its layers and parameters are what they are

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        inline = self._asking or m not in self._registered  # some networks make a pooling layer in each pass
        return forward(*args, **kwargs) if inline else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        return attr_val if self._asking else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return self.answer(obj, bool) if is_fact(obj.node) else super().to_bool(obj)

    def iter(self, obj: Any) -> Iterator[Any]:
        # the sizes themselves stay open: the first is the number of copies that are run at once
        known = is_fact(obj.node) or is_split(obj.node)
        return iter([obj[i] for i in range(self.answer(obj, len))]) if known else super().iter(obj)

    def answer(self, obj: fx.Proxy, kind: Callable[[Any], _T]) -> _T:
        """Return a size or the like as `kind`: bool, int, len.

        Raises:
            TypeError: it depends on voxels, or on the number of images.
        """
        if not is_fact(obj.node) and not (kind is len and is_split(obj.node)):
            raise TypeError(f"the value of {obj.node.name} is asked for while the network is traced")
        one, two = map(kind, self._facts(obj.node))
        if one != two:
            raise TypeError(f"what Python asks of {obj.node.name} depends on the number of images")
        return one

    def forget(self) -> None:
        """Let go of the stand-ins: `torch.fx` keeps a tracer until Python next looks for cycles."""
        for values in self._values:
            values.clear()

    def _facts(self, asked: fx.Node) -> tuple[Any, Any]:
        """Return a fact for one image and for two."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        self._mode = self._mode or FakeTensorMode(allow_non_fake_inputs=True)
        self._asking = True
        try:
            with self._mode:
                for images, values in enumerate(self._values, 1):
                    for node in self.graph.nodes:
                        if node not in values:
                            values[node] = self._run(node, images, values)
        finally:
            self._asking = False
        return self._values[0][asked], self._values[1][asked]

    def _run(self, node: fx.Node, images: int, values: dict[fx.Node, Any]) -> Any:
        if node.op == "placeholder" and not values:
            return self._image.new_empty(images, *self._image.shape[1:])
        run = operation(node, layer(node, self.root))
        return clean_value(node, self.root, on_a_copy(run) if in_place(node, self.root) else run, values)


@contextlib.contextmanager
def _taking_proxies(replacements: _Replacements) -> Iterator[None]:
    """Let functions of PyTorch that look at what they are given take what is traced: for all threads, meanwhile."""
    kept = [(where, name, getattr(where, name)) for where, name in replacements]
    try:
        for where, name, function in kept:
            setattr(where, name, replacements[where, name](function))
        yield
    finally:
        for where, name, function in kept:
            setattr(where, name, function)


def _of_its_type(ask: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """`torch.jit.isinstance`, which MONAI's networks ask: what is traced is the tensor that it stands for."""
    voxels = torch.empty(0, device="cpu")

    def answer(obj: Any, kind: Any) -> bool:
        return ask(fx.node.map_aggregate(obj, lambda one: voxels if isinstance(one, fx.Proxy) else one), kind)

    return answer


def _itself(as_tensor: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.as_tensor`, which returns a tensor as it is."""

    def made(data: Any, *args: Any, **kwargs: Any) -> Any:
        alone = not args and not kwargs
        itself = alone and isinstance(data, fx.Proxy) and not is_fact(data.node)
        return data if itself else as_tensor(data, *args, **kwargs)

    return made


def _recorded(make: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.zeros` and the like, where they are given sizes that are traced."""

    def made(*args: Any, **kwargs: Any) -> Any:
        proxies: list[fx.Proxy] = []
        fx.node.map_aggregate([args, kwargs], lambda one: proxies.append(one) if isinstance(one, fx.Proxy) else None)
        return proxies[0].tracer.create_proxy("call_function", make, args, kwargs) if proxies else make(*args, **kwargs)

    return made


_Replacements = Mapping[tuple[Any, str], Callable[[Any], Any]]
_ASKING: _Replacements = {(torch.jit, "isinstance"): _of_its_type}
_MAKING: _Replacements = {
    **_ASKING,
    (torch, "as_tensor"): _itself,
    **{(torch, name): _recorded for name in ("zeros", "ones", "full")},
}
# what is replaced meanwhile, no more than it takes; and whether buffers are traced themselves
_ATTEMPTS: tuple[tuple[_Replacements, bool], ...] = ((_ASKING, False), (_MAKING, False), (_MAKING, True))


def _assigned(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], fx.Proxy]:
    """Return the method of an augmented assignment: fx takes `a += b` for `a = a + b`, which leaves `a` alone."""

    def method(value: Any, other: Any) -> fx.Proxy:
        made: fx.Proxy = value.tracer.create_proxy("call_function", function, (value, other), {})
        return made

    return method


class _Known:
    """What the values that are traced have in common."""

    node: fx.Node
    tracer: Any

    def __len__(self) -> int:
        return self._as(len)

    def __index__(self) -> int:
        return self._as(operator.index)

    def __int__(self) -> int:
        return self._as(int)

    def __float__(self) -> float:
        return self._as(float)

    @property
    def ndim(self) -> int:
        """A number at once, for it may be looked up in a dict."""
        return int(self.__getattr__("ndim"))

    @property
    def device(self) -> torch.device:
        """Where it is, at once: its name may be asked for as a text."""
        where: torch.device = self.__getattr__("device")._as(lambda device: device)
        return where

    @property
    def data(self) -> Any:
        """The values without their graph, which a pass of patched copies has not."""
        return self.__getattr__("detach")()

    def _as(self, kind: Callable[[Any], _T]) -> _T:
        answer: _T = self.tracer.answer(self, kind)
        return answer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # how NumPy and others find out what they are given
        value: Any = self
        return _Attribute(value, name)


for _function in IN_PLACE:
    setattr(_Known, f"__{_function.__name__}__", _assigned(_function))


class _Proxy(_Known, fx.Proxy):
    """A value that is traced."""


class _Attribute(_Known, fx.proxy.Attribute):
    """An attribute or method of a value that is traced."""
