"""Which kinds of operations there are, for the rules and for the tracer."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from medviz.incremental.nodes import called

CONVOLUTIONS: frozenset[Any] = frozenset({F.conv2d, F.conv3d, torch.conv2d, torch.conv3d})
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_ELEMENTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid),
    *(nn.Threshold, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink),
)
_ELEMENTWISE: frozenset[Any] = frozenset(
    {
        *(F.relu, torch.relu, torch.relu_, F.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu),
        *(F.mish, F.hardswish, F.hardtanh, F.hardsigmoid, F.softplus, F.softsign, F.logsigmoid, F.threshold),
        *(F.sigmoid, torch.sigmoid, torch.tanh, F.tanh, F.dropout, F.dropout2d, F.dropout3d),
        *(torch.neg, operator.neg, torch.abs, torch.exp, torch.log, torch.sqrt, torch.square, torch.clamp),
        *("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "neg", "abs", "exp", "log", "sqrt", "square"),
        *("clamp", "clamp_", "contiguous", "clone", "detach", "to", "type_as", "float", "double", "half", "bfloat16"),
        *(operator.invert, torch.logical_not, "logical_not"),
    }
)
_ARITHMETIC: frozenset[Any] = frozenset(
    {
        *(operator.add, operator.iadd, torch.add, "add", "add_", operator.sub, operator.isub, torch.sub, "sub", "sub_"),
        *(operator.mul, operator.imul, torch.mul, "mul", "mul_", operator.pow, operator.ipow, torch.pow, "pow"),
        *(operator.truediv, operator.itruediv, torch.div, "div", "div_", torch.where, "where"),
        *(torch.maximum, "maximum", torch.max, "max", torch.minimum, "minimum", torch.min, "min"),
        *(operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne),
        *(operator.and_, operator.or_, operator.xor, torch.logical_and, torch.logical_or),
    }
)
_OF_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_SOFTMAXES = (nn.Softmax, nn.LogSoftmax)
_ALONG_CHANNELS: frozenset[Any] = frozenset(
    {
        *(torch.softmax, F.softmax, "softmax", torch.log_softmax, F.log_softmax, "log_softmax"),
        *(torch.mean, "mean", torch.sum, "sum", torch.amax, "amax", torch.amin, "amin"),
    }
)
_OF_A_TYPE = ("new_zeros", "new_ones", "new_full")
TO_A_TYPE = ("type_as", "to")
_FILLED: frozenset[Any] = frozenset({torch.zeros, torch.ones, torch.full, *_OF_A_TYPE})
_SPLITS: frozenset[Any] = frozenset({torch.split, "split", torch.chunk, "chunk"})


def is_elementwise(node: fx.Node, module: nn.Module | None) -> bool:
    """Return whether an operation works on each voxel of its first argument by itself."""
    if module is not None:
        return type(module) in _ELEMENTWISE_MODULES or (type(module) in _NORMS and _has_statistics(module))
    return called(node) in _ELEMENTWISE


def is_arithmetic(node: fx.Node) -> bool:
    """Return whether an operation works voxel by voxel on several maps and numbers."""
    return called(node) in _ARITHMETIC


def of_fixed_norm(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a batch-norm function with running statistics is given, by name; nothing: it is none.

    It works on each voxel by itself. timm's networks call it.

    Args:
        node: the operation.
        args, kwargs: what it is given, values or nodes.
    """
    given = dict(zip(_OF_BATCH_NORM, args, strict=False)) | dict(kwargs) if called(node) is F.batch_norm else {}
    fixed = given.get("running_mean") is not None and given.get("training", False) is False
    return given if fixed else {}


def is_along_channels(
    node: fx.Node, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any], nd: int
) -> bool:
    """Return whether an operation works on the channels of each voxel by itself, as a softmax over classes does."""
    if module is not None:
        return type(module) in _SOFTMAXES and module.dim in (1, -nd - 1)
    if called(node) == "repeat":
        sizes = args[1] if isinstance(args[-1], tuple | list) else args[1:]
        return len(sizes) == nd + 2 and {sizes[0], *sizes[2:]} == {1}
    axes = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return called(node) in _ALONG_CHANNELS and axes in (1, -nd - 1, (1,), [1])


def is_filled(node: fx.Node) -> bool:
    """Return whether an operation makes a tensor of one value."""
    return called(node) in _FILLED


def asked_for_type(node: fx.Node) -> list[fx.Node]:
    """Return the tensors that an operation asks for nothing but type and device."""
    asked: list[Any] = []
    if called(node) in _OF_A_TYPE:
        asked = [node.args[0]]
    elif called(node) in TO_A_TYPE:
        asked = [one for one in node.args[1:2] if one is not node.args[0]]
    return [one for one in asked if isinstance(one, fx.Node)]


def is_split(node: fx.Node) -> bool:
    """Return whether an operation takes a map apart: it returns several tensors."""
    return called(node) in _SPLITS


def weight_of(node: fx.Node, module: nn.Module | None) -> Any:
    """Return the weight of a convolution or linear layer, or the node whose value it is; None: it is neither."""
    if module is not None:
        return getattr(module, "weight", None)
    if called(node) not in (*CONVOLUTIONS, F.linear):
        return None
    return node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)


def _has_statistics(norm: nn.Module) -> bool:
    return getattr(norm, "running_mean", None) is not None
