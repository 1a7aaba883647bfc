"""Sequences of PyTorch's own layers: what they do is known before they run."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

_FEWEST = 3  # layers: fewer are watched in less time than they are looked at
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Sigmoid, nn.GELU)
_LAYERS: frozenset[Any] = frozenset((*_CONVOLUTIONS, *_NORMS, *_ACTIVATIONS))
_CALLED = ("__call__", "_wrapped_call_impl", "_call_impl", "__getattr__", "forward")
_IN_F = "conv2d conv3d pad batch_norm relu relu6 hardtanh leaky_relu elu silu mish hardswish gelu"
_IN_TORCH = "conv2d conv3d batch_norm relu relu_ sigmoid"
_hooks = operator.itemgetter("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_hooks_of_all = operator.attrgetter(
    "_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_pre_hooks", "_global_backward_hooks"
)
_tensors = operator.itemgetter("_parameters", "_buffers")
_training = operator.itemgetter("training")


@attrs.frozen(eq=False)
class Known:
    """A sequence of PyTorch's own convolutions, batch-norms and activations, as PyTorch makes them.

    As long as it `is_plain`, no code but PyTorch's runs in it: nobody has replaced a method or a weight, hooked a layer
    or put it into training. The first layer makes new memory, and what the others do in place they do to that.
    """

    sequence: nn.Sequential
    _layers: Sequence[nn.Module]
    _attributes: int
    _weights: Sequence[Tensor | None]

    @classmethod
    def among(cls, found: Iterable[nn.Module], largest: int) -> Iterator[Known]:
        """Yield those of a model's modules that are such a sequence, where it is worth knowing.

        Args:
            found: the modules; their weights are plain tensors.
            largest: of how many numbers the weights of the convolutions are fewer.
        """
        if any(map(operator.is_not, _code(), _CODE)):
            return
        for module in found:
            if type(module) is nn.Sequential and len(module._modules) >= _FEWEST:
                layers: Any = list(module._modules.values())
                kinds = list(map(type, layers))
                if _LAYERS.issuperset(kinds) and kinds[0] not in _ACTIVATIONS:
                    owns: list[Any] = list(map(vars, layers))
                    if _are_as_made(kinds, owns, largest):
                        yield cls(module, layers, sum(map(len, owns)), list(_held(owns)))

    def is_plain(self) -> bool:
        """Return whether it is so still, asked when it is called: its network may have hooked a layer just now."""
        owns: list[Any] = list(map(vars, self._layers))
        return (
            not any(chain.from_iterable(map(_hooks, owns)))
            and not any(map(_training, owns))
            and sum(map(len, owns)) == self._attributes
            and all(map(operator.is_, _held(owns), self._weights))
            and list(self.sequence._modules.values()) == self._layers
            and not any(_hooks_of_all(nn_module))
        )


def _code() -> Iterator[Any]:
    """Yield the functions that a plain sequence may run: libraries replace some, to count or to change what is done."""
    for kind in (nn.Sequential, *_LAYERS):
        yield from _called(kind)
    for kind in _CONVOLUTIONS:
        yield kind._conv_forward
    for kind in _NORMS:
        yield kind._check_input_dim
    yield from _in_f(F)
    yield from _in_torch(torch)


_called, _in_f, _in_torch = (operator.attrgetter(*names) for names in (_CALLED, _IN_F.split(), _IN_TORCH.split()))
_CODE = list(_code())


@functools.cache
def _sizes() -> dict[Any, int]:
    """Return how many attributes a layer of each kind has, as PyTorch makes it: whoever replaces a method adds one."""
    given: dict[Any, tuple[int, ...]] = {**dict.fromkeys(_CONVOLUTIONS, (1, 1, 1)), **dict.fromkeys(_NORMS, (1,))}
    with torch.device("meta"):
        return {kind: len(vars(kind(*given.get(kind, ())))) for kind in _LAYERS}


def _held(owns: Iterable[dict[str, Any]]) -> Iterator[Tensor | None]:
    """Yield the parameters and buffers of layers with these attributes."""
    return chain.from_iterable(map(dict.values, chain.from_iterable(map(_tensors, owns))))


def _are_as_made(kinds: list[Any], owns: list[Any], largest: int) -> bool:
    """Return whether layers with these attributes have what their classes give them, and no large weights."""
    for kind, own in zip(kinds, owns, strict=True):
        if kind in _CONVOLUTIONS:
            weight = own["_parameters"].get("weight")
            if weight is None or weight.numel() >= largest:
                return False
        elif kind in _NORMS and own["_buffers"].get("running_mean") is None:
            return False
    return sum(map(len, owns)) == sum(map(_sizes().__getitem__, kinds))
