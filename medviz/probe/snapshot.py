"""What containers and tensors hold, kept cheaply: a large network has thousands of both, and few of them change."""

from __future__ import annotations

import operator
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

_KINDS = (dict, list, set, deque, tuple)
_PLAIN = {bool, int, float, str, type(None)}  # what most attributes are
_SMALL = 2**16  # numbers; larger tensors are compared by themselves, for together they would need their size once more


class Containers:
    """The content of every container among some values and inside of them."""

    def __init__(self) -> None:
        self._empty: list[Any] = []
        self._filled: list[tuple[Any, Any]] = []
        self._seen: set[int] = set()
        self._roles: dict[type, str] = {}

    def keep(self, values: Iterable[Any]) -> list[Tensor]:
        """Keep what the containers among `values` hold; return the tensors among them, for which it does nothing."""
        tensors = []
        for value in values:
            kind = type(value)
            role = self._roles.get(kind) or self._role(kind)
            if role == "tensor":
                tensors.append(value)
            elif role == "container":
                if not value:
                    self._empty.append(value)
                elif id(value) not in self._seen:
                    self._seen.add(id(value))
                    self._keep_filled(value)
        return tensors

    def _role(self, kind: type) -> str:
        """Return what values of a type are here, worked out once for each: there are tens of thousands of values."""
        role = "tensor" if issubclass(kind, Tensor) else "container" if issubclass(kind, _KINDS) else "plain"
        self._roles[kind] = role
        return role

    def _keep_filled(self, container: Any) -> None:
        items = container.values() if isinstance(container, dict) else container
        if not isinstance(container, tuple):
            self._filled.append((container, dict(container) if isinstance(container, dict) else list(container)))
        if not _PLAIN.issuperset(map(type, items)):
            self.keep(items)

    def restore(self) -> None:
        """Put back what was removed or replaced, and take out what was added."""
        for container in self._empty:
            if container:
                container.clear()
        for container, items in self._filled:
            if not same(container, items):
                container.clear()
                container.update(items) if isinstance(container, dict | set) else container.extend(items)


def same(a: Any, b: Any) -> bool:
    """Return whether two containers hold the same objects in the same order: by identity, for they may be tensors."""
    if len(a) != len(b) or not all(map(operator.is_, a, b)):
        return False
    return not isinstance(a, dict) or all(map(operator.is_, a.values(), b.values()))


class Values:
    """The values of tensors. What did not change is not written to.

    A copy onto itself would break a `loss.backward()` that the caller has still to run. Small tensors are copied and
    compared together: one by one, a GPU would have to be waited for hundreds of times.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        groups: dict[Any, list[Tensor]] = defaultdict(list)
        for tensor in tensors:
            alone = type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.numel() > _SMALL
            groups[id(tensor) if alone else (tensor.dtype, tensor.device)].append(tensor)
        self._groups = [(group, _joined(group)) for group in groups.values()]

    def restore(self) -> None:
        """Put back the values of the tensors that have changed."""
        for tensors, before in self._groups:
            if len(tensors) > 1 and torch.equal(_joined(tensors), before):
                continue
            parts = torch.split(before, [t.numel() for t in tensors]) if len(tensors) > 1 else [before]
            for tensor, value in zip(tensors, parts, strict=True):
                _put_back(tensor, value.view_as(tensor) if len(tensors) > 1 else value)


@torch.no_grad()
def _joined(tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0].clone()
    return torch.cat([tensor if tensor.ndim == 1 else tensor.reshape(-1) for tensor in tensors])


def _put_back(tensor: Tensor, value: Tensor) -> None:
    if not all(map(torch.equal, _parts(tensor), _parts(value))):
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            (tensor if tensor.is_sparse else tensor.data).copy_(value)  # `data` of a sparse tensor is a copy


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return what can be compared: `torch.equal` takes no sparse tensor, such as a graph network's neighbours."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    return (tensor if tensor.layout == torch.strided else tensor.to_dense(),)
