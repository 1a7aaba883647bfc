"""A network as a list of operations without in-place surprises, and the clean value of each."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

_IN_PLACE = {operator.iadd, operator.imul, operator.isub, operator.itruediv}


def trace(model: nn.Module) -> fx.GraphModule:
    """Return `model` as a graph that shares its parameters, in which no operation changes an earlier value.

    Raises:
        Exception: whatever stops `torch.fx`, such as control flow that depends on values.
    """
    traced = fx.symbolic_trace(model)
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if in_place(node, traced) and node.all_input_nodes:
            changed, position = node.all_input_nodes[0], order[node]
            # who reads the changed value later means the result; who reads it earlier, what was there before
            changed.replace_all_uses_with(node, delete_user_cb=lambda user, p=position: order[user] > p)
    return traced


def in_place(node: fx.Node, traced: fx.GraphModule) -> bool:
    """Return whether an operation works in place on its first input."""
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op != "call_function":
        return False
    named = getattr(node.target, "__name__", "").endswith("_")
    return node.target in _IN_PLACE or named or bool(node.kwargs.get("inplace", False))


def evaluate(node: fx.Node, traced: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one operation; one that works in place gets a copy of its first input."""
    if in_place(node, traced) and args and isinstance(args[0], Tensor):
        args = (args[0].clone(), *args[1:])
    if node.op == "call_module":
        return traced.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_function":
        assert callable(node.target)
        return node.target(*args, **kwargs)
    raise ValueError(f"an operation of kind {node.op!r} cannot be evaluated.")


def constant(node: fx.Node, traced: fx.GraphModule) -> Any:
    """Return the parameter or buffer that a node stands for."""
    value: Any = traced
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, torch.Tensor) else value
