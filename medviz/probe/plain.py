"""Sequences of PyTorch's own layers: what they do is known before they run.

A plain sequence holds only PyTorch's own convolutions, batch-norms and activations, as PyTorch makes them. No code but
PyTorch's runs in it: no layer is in training, has hooks, a `forward` of its own or another kind of weight. The first
one makes new memory, and what the others do in place they do to that.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, repeat
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as nn_module

_FEWEST = 3  # layers: fewer are watched in less time than they are looked at
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Sigmoid, nn.GELU)
_LAYERS: frozenset[Any] = frozenset((*_CONVOLUTIONS, *_NORMS, *_ACTIVATIONS))
_FORWARDS = {kind: kind.forward for kind in (nn.Sequential, *_LAYERS)}
_NONE_OR_PARAMETER = (type(None), nn.Parameter)
_hooks = operator.itemgetter("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_training = operator.itemgetter("training")


def sequences(found: Iterable[nn.Module], largest: int) -> Iterator[tuple[nn.Sequential, tuple[nn.Module, ...]]]:
    """Yield those of a model's modules that may be plain, where it is worth knowing, each with its layers.

    Args:
        found: the modules.
        largest: of how many numbers the weights of their convolutions are fewer.
    """
    if any(kind.forward is not forward for kind, forward in _FORWARDS.items()):
        return
    for module in found:
        if type(module) is nn.Sequential and len(module._modules) >= _FEWEST and "forward" not in vars(module):
            layers = tuple(module._modules.values())
            if _are_own(layers) and all(map(_has_own_weights, layers, repeat(largest))):
                yield module, layers


def is_plain(sequence: nn.Sequential, layers: Collection[nn.Module]) -> bool:
    """Return whether a sequence with these layers is plain, asked when it is called: it may have been hooked just now.

    Args:
        sequence, layers: as `sequences` yields them.
    """
    owns = list(map(vars, layers))
    return (
        not any(chain.from_iterable(map(_hooks, owns)))
        and not any(map(_training, owns))
        and not any(map(operator.contains, owns, repeat("forward")))
        and tuple(sequence._modules.values()) == layers
        and not nn_module._has_any_global_hook()  # type: ignore[no-untyped-call]
    )


def _are_own(layers: tuple[nn.Module | None, ...]) -> bool:
    return _LAYERS.issuperset(map(type, layers)) and type(layers[0]) not in _ACTIVATIONS


def _has_own_weights(layer: nn.Module, largest: int) -> bool:
    kind = type(layer)
    if kind in _ACTIVATIONS:
        return True
    own: Any = vars(layer)
    weight, bias = map(own["_parameters"].get, ("weight", "bias"))
    if type(bias) not in _NONE_OR_PARAMETER:
        return False
    if kind in _CONVOLUTIONS:
        return type(weight) is nn.Parameter and weight.numel() < largest
    mean, variance = map(own["_buffers"].get, ("running_mean", "running_var"))
    return type(weight) in _NONE_OR_PARAMETER and type(mean) is type(variance) is Tensor
