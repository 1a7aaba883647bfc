"""What tensors hold, kept cheaply: a large network has hundreds of buffers, and few of them change."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medviz.probe.starts import holders_of

_SMALL = 2**16  # numbers; larger tensors are compared by themselves, for together they would need their size once more
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_dtype, _axes, _shape, _requires_grad = map(operator.attrgetter, ("dtype", "ndim", "shape", "requires_grad"))
_alike = operator.attrgetter("layout", "dtype", "device", "ndim", "is_nested", "requires_grad")


class Values:
    """The values of tensors. What did not change is not written to.

    A copy onto itself would break a `loss.backward()` that the caller has still to run. Small tensors are copied and
    compared together: one by one, a GPU would have to be waited for hundreds of times.

    Attributes:
        kinds: the classes of the tensors.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        groups: dict[Any, list[Tensor]] = defaultdict(list)
        for tensor, alike, size in zip(tensors, map(_alike, tensors), map(Tensor.numel, tensors), strict=True):
            groups[alike, type(tensor) is Tensor, size > _SMALL].append(tensor)
        self.kinds = set(map(type, tensors))
        self._without_graph: list[Tensor] = []
        self._kept: list[_Together | _Alone] = []
        for (_, plain, large), group in groups.items():
            first = group[0]
            if not first.requires_grad:
                self._without_graph += group
            if first.is_meta:
                continue  # it has no values
            if len(group) > 1 and plain and not large and _can_be_joined(first):
                self._kept.append(_Together(group))
            else:
                self._kept += map(_Alone, group)

    def restore(self) -> None:
        """Put back the values of the tensors that have changed, and take off a graph that they came into."""
        for tensor in filter(_requires_grad, self._without_graph):
            # torch detaches no view, and lets nobody write to one whose base it has detached
            if holders_of(tensor) == 1:
                tensor.detach_()
        for kept in self._kept:
            kept.restore()

    def is_unchanged(self) -> bool:
        """Return whether each tensor holds what it held."""
        return all(kept.is_unchanged() for kept in self._kept)


class _Together:
    """Several plain tensors of one type and number of axes."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors, self._before = tensors, _joined(tensors)
        self._dtype, self._axes = tensors[0].dtype, tensors[0].ndim
        self._sizes = self._now()

    def _now(self) -> list[Any]:
        """The size of each; with one axis or none, the number of values says it, in a tenth of the time."""
        return list(map(Tensor.numel if self._axes < 2 else _shape, self._tensors))

    def is_unchanged(self) -> bool:
        alike = set(map(_dtype, self._tensors)) == {self._dtype} and set(map(_axes, self._tensors)) == {self._axes}
        alike = alike and self._now() == self._sizes
        return alike and torch.equal(_bits(_joined(self._tensors)), _bits(self._before))

    def restore(self) -> None:
        if self.is_unchanged():
            return
        shapes = [torch.Size([size] * self._axes) if self._axes < 2 else size for size in self._sizes]
        values = torch.split(self._before.view(-1), [shape.numel() for shape in shapes])
        for tensor, value, shape in zip(self._tensors, values, shapes, strict=True):
            _put_back(tensor, value.view(shape))


class _Alone:
    """A large tensor, or one of another kind."""

    def __init__(self, tensor: Tensor) -> None:
        with torch.no_grad():
            self._tensor, self._before = tensor, tensor.clone()

    def is_unchanged(self) -> bool:
        return _is_alike(self._tensor, self._before) and _is_equal(self._tensor, self._before)

    def restore(self) -> None:
        _put_back(self._tensor, self._before)


def _can_be_joined(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized


@torch.no_grad()
def _joined(tensors: list[Tensor]) -> Tensor:
    if tensors[0].ndim == 0:
        return torch.stack(tensors)
    return torch.cat(tensors if tensors[0].ndim == 1 else [tensor.reshape(-1) for tensor in tensors])


def _put_back(tensor: Tensor, value: Tensor) -> None:
    if not _is_alike(tensor, value):
        tensor.data = value.clone()
    elif not _is_equal(tensor, value):
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            (tensor if tensor.is_sparse else tensor.data).copy_(value)  # `data` of a sparse tensor is a copy


def _is_alike(tensor: Tensor, value: Tensor) -> bool:
    return tensor.dtype == value.dtype and (value.is_nested or tensor.shape == value.shape)


def _is_equal(tensor: Tensor, value: Tensor) -> bool:
    return all(map(torch.equal, _parts(tensor), _parts(value)))


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return what can be compared: `torch.equal` takes no sparse tensor, such as a graph network's neighbours."""
    if tensor.is_nested:
        return tuple(map(_bits, tensor.unbind()))
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), _bits(tensor._values())
    return (_bits(tensor if tensor.layout == torch.strided else tensor.to_dense()),)


def _bits(tensor: Tensor) -> Tensor:
    """Return numbers as the integers of their bits: NaN equals itself then, and float8 can be compared."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.resolve_neg().view(_SAME_SIZE[tensor.element_size()]) if tensor.is_floating_point() else tensor
