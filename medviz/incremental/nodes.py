"""What a node of a graph stands for: its operation, its arguments, and what it does to them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

# what `a += b` and its like call; a tensor has no `@=`
IN_PLACE = {
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod),
    *(operator.ipow, operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift),
}
_FACTS = ("shape", "ndim", "dtype", "device", "layout", "is_cuda")
_FACT_METHODS = ("size", "dim", "ndimension", "numel", "nelement", "is_floating_point")
_IS_FACT, _LAYER = "medviz_is_fact", "medviz_layer"

Call = Callable[[tuple[Any, ...], dict[str, Any]], Any]


def operation(node: fx.Node, module: nn.Module | None) -> Call:
    """Return what a node does with its arguments; `module` is the layer that it calls, if it calls one."""
    target: Any = node.target
    if module is not None:
        return lambda args, kwargs: module(*args, **kwargs)
    if node.op == "call_method":
        return lambda args, kwargs: getattr(args[0], target)(*args[1:], **kwargs)
    return lambda args, kwargs: target(*args, **kwargs)


def layer(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """Return the layer that a node calls, if it calls one; it is looked up once."""
    if node.op != "call_module":
        return None
    if _LAYER not in node.meta:
        node.meta[_LAYER] = root.get_submodule(str(node.target))
    found: nn.Module = node.meta[_LAYER]
    return found


def give_layer(node: fx.Node, root: fx.GraphModule, module: nn.Module) -> None:
    """Let a node that calls a layer call another one."""
    node.target = f"medviz_{node.name}"  # a node's name is its own; a layer's, without its dots, may not be
    root.add_submodule(node.target, module)
    node.meta[_LAYER] = module


def arguments(node: fx.Node, values: Mapping[fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a node is given, where `values` are those of the nodes before it."""
    args: Any = fx.map_arg(node.args, values.__getitem__)
    kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
    return tuple(args), dict(kwargs)


def constant(node: fx.Node, root: nn.Module) -> Any:
    """Return the parameter or buffer that a node stands for."""
    value: Any = root
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else value


def clean_value(node: fx.Node, root: nn.Module, run: Call, values: Mapping[fx.Node, Any]) -> Any:
    """Return what a node behind the image gives; `run` does it."""
    if node.op == "placeholder":
        return node.args[0] if node.args else None  # an argument that is not given
    if node.op == "get_attr":
        return constant(node, root)
    args, kwargs = arguments(node, values)
    return args[0] if node.op == "output" else run(args, kwargs)


def on_a_copy(run: Call) -> Call:
    """Return an operation that works in place as one that leaves its first argument alone."""

    def copied(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return run((args[0].clone(), *args[1:]) if args and isinstance(args[0], Tensor) else args, kwargs)

    return copied


def in_place(node: fx.Node, root: nn.Module) -> bool:
    """Return whether an operation works in place on its first input.

    Raises:
        TypeError: it writes its result into another value, with `out`.
    """
    if node.kwargs.get("out") is not None:
        raise TypeError(f"{node.name} writes its result into `out`")
    if node.op == "call_module":
        return bool(getattr(layer(node, root), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op != "call_function":
        return False
    # `operator.and_` has its name for another reason
    named = getattr(node.target, "__name__", "").endswith("_") and not _is_of(node.target, "_operator")
    return node.target in IN_PLACE or named or bool(node.kwargs.get("inplace", False))


def called(node: fx.Node) -> Any:
    """Return the function that a node calls, or the name of the method; None: it calls a layer, or nothing.

    A layer may have the name of a method.
    """
    return node.target if node.op in ("call_function", "call_method") else None


def is_fact(node: fx.Node) -> bool:
    """Return whether a value is a size, a type or a device, or made of those."""
    if _IS_FACT not in node.meta:
        node.meta[_IS_FACT] = _finds_fact(node)
    known: bool = node.meta[_IS_FACT]
    return known


def _finds_fact(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _FACT_METHODS
    if node.target is getattr and node.args[1] in _FACTS:
        return True
    made = node.target is getattr or _is_of(node.target, "_operator", "math")
    return made and bool(node.all_input_nodes) and all(map(is_fact, node.all_input_nodes))


def _is_of(function: Any, *modules: str) -> bool:
    return getattr(function, "__module__", "") in modules
