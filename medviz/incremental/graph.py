"""A network as a list of operations without in-place surprises, batch-norm folded into what comes before it."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from medviz.incremental import tracing
from medviz.incremental.nodes import IN_PLACE, called, constant, give_layer, in_place, is_fact, layer
from medviz.incremental.operations import of_fixed_norm

_OF_NORM, _EPS = ("running_mean", "running_var", "eps", "weight", "bias"), 1e-5
_RELU: frozenset[Any] = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"})
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
# what returns a new tensor, whatever it is given
_NEW_MODULES = (
    *(nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.BatchNorm2d, nn.BatchNorm3d, nn.ReLU),
    *(nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.Linear, nn.GroupNorm, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_NEW_FUNCTIONS: frozenset[Any] = frozenset(
    {*(operator.add, operator.sub, operator.mul, operator.truediv, *IN_PLACE), torch.add, torch.cat, *_RELU}
    | {F.conv2d, F.conv3d, F.conv_transpose2d, F.conv_transpose3d, F.linear}
    | {F.batch_norm, F.group_norm, F.instance_norm}
)


def as_graph(model: nn.Module, image: Tensor) -> fx.GraphModule:
    """Return `model` as a graph that shares its parameters, in which no operation changes an earlier value.

    Args, errors: as `tracing.traced`.
    """
    traced = tracing.traced(model, image)
    _drop_identities(traced)
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if in_place(node, traced) and node.all_input_nodes and not is_fact(node):
            changed, position = node.all_input_nodes[0], order[node]
            # who reads the changed value later means the result; who reads it earlier, what was there before
            changed.replace_all_uses_with(node, delete_user_cb=lambda user, p=position: order[user] > p)
    for node in reversed(list(traced.graph.nodes)):
        if is_fact(node) and not node.users:  # it was asked while the network was traced
            traced.graph.erase_node(node)
    _fold(traced)
    _pool_first(traced)
    return traced


def _drop_identities(traced: fx.GraphModule) -> None:
    """Take out the layers that return what they are given itself: whoever changes the one changes the other."""
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and len(node.all_input_nodes) == len(node.args) == 1 and not node.kwargs:
            module: Any = layer(node, traced)
            if type(module) is nn.Identity or (type(module) in _DROPOUTS and not module.training):
                node.replace_all_uses_with(node.all_input_nodes[0])
                traced.graph.erase_node(node)


def _fold(traced: fx.GraphModule) -> None:
    """Put each batch-norm into a copy of the convolution before it, where nobody else reads that one's output."""
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        conv: Any = layer(before, traced)
        if calls[before.target] > 1 or len(before.users) > 1 or type(conv) not in (nn.Conv2d, nn.Conv3d):
            continue
        norm = _fixed_norm(node, traced)
        if norm is None:
            continue
        fused = copy.deepcopy(conv)
        fused.weight, fused.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *norm)
        give_layer(before, traced, fused)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)


def _fixed_norm(node: fx.Node, traced: fx.GraphModule) -> Sequence[Any] | None:
    """Return a batch-norm's mean, variance, epsilon, weight and bias; None: it is none, or not the same for all."""
    module: Any = layer(node, traced)
    if type(module) in (nn.BatchNorm2d, nn.BatchNorm3d) and len(node.args) == 1 and not node.kwargs:
        fixed = module.running_mean is not None and not module.training
        return [getattr(module, name) for name in _OF_NORM] if fixed else None
    given = of_fixed_norm(node, node.args, node.kwargs)
    held = [given.get(name) for name in _OF_NORM]
    held[_OF_NORM.index("eps")] = given.get("eps", _EPS)
    if not given or any(isinstance(one, fx.Node) and one.op != "get_attr" for one in held):
        return None
    return [constant(one, traced) if isinstance(one, fx.Node) else one for one in held]


def _pool_first(traced: fx.GraphModule) -> None:
    """Take each mean over windows before a 1 × 1 convolution and not after it: the same, for a part of the voxels."""
    for pool in list(traced.graph.nodes):
        conv = pool.args[0] if pool.op == "call_module" and len(pool.args) == 1 and not pool.kwargs else None
        if not isinstance(conv, fx.Node) or conv.op != "call_module" or conv.kwargs or len(conv.users) > 1:
            continue
        if _is_pointwise(layer(conv, traced)) and _is_mean(layer(pool, traced)):
            before = conv.all_input_nodes[0]
            pool.replace_all_uses_with(conv)
            pool.args, conv.args = (before,), (pool,)
            conv.prepend(pool)


def _is_pointwise(conv: Any) -> bool:
    if type(conv) not in (nn.Conv2d, nn.Conv3d) or {*conv.kernel_size, *conv.stride} != {1}:
        return False
    return isinstance(conv.padding, str) or not any(conv.padding)


def _is_mean(pool: Any) -> bool:
    known = type(pool) in (nn.AvgPool2d, nn.AvgPool3d)
    return known and pool.padding in (0, (0, 0), (0, 0, 0)) and not (pool.ceil_mode or pool.divisor_override)


def is_new(node: fx.Node, traced: fx.GraphModule) -> bool:
    """Return whether the value of an operation is a tensor that shares memory with no other one's."""
    if node.op == "call_module":
        return type(layer(node, traced)) in _NEW_MODULES
    return called(node) in _NEW_FUNCTIONS


def is_relu(node: fx.Node, traced: fx.GraphModule) -> bool:
    """Return whether an operation is a ReLU, which can always work in place."""
    if node.op == "call_module":
        return type(layer(node, traced)) is nn.ReLU
    return called(node) in _RELU


def last_uses(traced: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """Return, for each node, whose values nobody needs after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        for used in node.all_input_nodes:
            last[used] = node
    done: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last.items():
        done.setdefault(node, []).append(used)
    return done
