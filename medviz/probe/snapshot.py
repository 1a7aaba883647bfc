"""What containers and tensors hold, kept cheaply: a large network has thousands of both, and few of them change."""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

import torch
from torch import Tensor

_CHANGEABLE = (list, set, deque)
_KINDS = (dict, *_CHANGEABLE, tuple)
_SMALL = 2**16  # numbers; larger tensors are compared by themselves, for together they would need their size once more
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_dtype, _axes, _shape = map(operator.attrgetter, ("dtype", "ndim", "shape"))
_alike = operator.attrgetter("layout", "dtype", "device", "ndim", "is_nested")


class Containers:
    """The content of some containers and of every container inside of them, and so on.

    It is held in a few long lists, which are made and compared without a step of Python for each item: the modules of
    a network of middle size hold some ten thousand of them.

    Args:
        containers: dicts, lists, sets, deques and tuples, such as the attributes of modules.

    Attributes:
        tensors: every tensor that was found, by its identity. For their values there is `Values`.
    """

    def __init__(self, containers: Iterable[Any]) -> None:
        self._levels: list[tuple[list[Any], list[Any]]] = []  # what is on each, and what of it is not empty
        self._kept: list[_Content] = []
        self.tensors: dict[int, Tensor] = {}
        seen: dict[int, Any] = {}  # by identity, and held so that no other object can take its place
        level = list(containers)
        while level:
            full = list(filter(None, level))
            self._levels.append((level, full))
            fresh = by_identity(full)
            if not seen.keys().isdisjoint(fresh):
                fresh = {key: container for key, container in fresh.items() if key not in seen}
            seen |= fresh
            content = _Content(list(fresh.values()))
            self._kept.append(content)
            level, tensors = content.inside()
            self.tensors |= by_identity(tensors)

    def restore(self) -> bool:
        """Put back what was removed or replaced, and take out what was added; return whether there was any."""
        changed = []
        for level, full in self._levels:
            if not _is_full((level, full)):
                changed.append(True)
                now = list(filter(None, level))
                before = set(map(id, full))
                for container in now:
                    if id(container) not in before:
                        container.clear()
        changed += [content.restore() for content in self._kept]
        return any(changed)

    def rewind(self, left: Set[str]) -> bool:
        """As `restore`, but of the outermost dicts the keys `left` stay as they are; return whether there was any."""
        if all(map(_is_full, self._levels)) and all(content.is_unchanged() for content in self._kept):
            return False  # quickly said, and mostly so
        held = self._held()
        changed, seen = False, set()
        outermost = {id(container) for container in self._levels[0][0]}
        waiting = list(self._levels[0][0])
        while waiting:
            container = waiting.pop()
            if id(container) in seen:
                continue
            seen.add(id(container))
            before = held.get(id(container), ())
            if id(container) in outermost:
                before = {key: value for key, value in dict(before).items() if key not in left}
                now = {key: value for key, value in container.items() if key not in left}
                if not (_same(now, before) and _same(now.values(), before.values()) and len(now) == len(before)):
                    changed = True
                    for key in now.keys() - before.keys():
                        del container[key]
                    container.update(before)
            elif _differs(container, before):
                changed = True
                _fill(container, before)
            waiting += _Types(_KINDS).among(list(before.values() if isinstance(before, dict) else before))
        return changed

    def _held(self) -> dict[int, Any]:
        """Return what each container held that was not empty, by its identity."""
        return {key: held for content in self._kept for key, held in content.held()}


class _Content:
    """What some containers hold, in a few lists: that of the second begins where that of the first ends."""

    def __init__(self, containers: Sequence[Any]) -> None:
        self._dicts, self._others, fixed = (_Types(kinds).among(containers) for kinds in (dict, _CHANGEABLE, tuple))
        # asked of the dict itself: an OrderedDict whose items were moved has another order than `dict.values` of it
        plain = set(map(type, self._dicts)) <= {dict}
        self._values_of = dict.values if plain else operator.methodcaller("values")
        self._keys, self._values, self._items = map(list, self._now())
        self._lengths = [list(map(len, group)) for group in (self._dicts, self._others)]
        self._tuples = fixed  # a tuple cannot change, but what it holds can

    def inside(self) -> tuple[list[Any], list[Tensor]]:
        """Return the containers and the tensors among what is held."""
        types = _Types((*_KINDS, Tensor))
        found = types.among([*self._values, *self._items, *itertools.chain.from_iterable(self._tuples)])
        if not any(issubclass(kind, Tensor) for kind in types):
            return found, []
        return _Types(_KINDS).among(found), _Types(Tensor).among(found)

    def _now(self) -> tuple[Iterable[Any], Iterable[Any], Iterable[Any]]:
        chain = itertools.chain.from_iterable
        return chain(self._dicts), chain(map(self._values_of, self._dicts)), chain(self._others)

    def restore(self) -> bool:
        """Write to the containers that do not hold the same objects in the same order as before; return whether any."""
        if self.is_unchanged():
            return False
        for container, (_, before) in zip((*self._dicts, *self._others), self.held(), strict=False):
            if _differs(container, before):
                _fill(container, before)
        return True

    def held(self) -> Iterator[tuple[int, Any]]:
        """Yield what each held, with its identity: dicts, then lists and the like, then tuples."""
        keys, values, items = map(iter, (self._keys, self._values, self._items))
        for container, length in zip(self._dicts, self._lengths[0], strict=True):
            before = zip(itertools.islice(keys, length), itertools.islice(values, length), strict=True)
            yield id(container), dict(before)
        for container, length in zip(self._others, self._lengths[1], strict=True):
            yield id(container), list(itertools.islice(items, length))
        for one in self._tuples:
            yield id(one), one

    def is_unchanged(self) -> bool:
        """Return whether each holds what it held, without a step of Python for each item."""
        if self._lengths != [list(map(len, group)) for group in (self._dicts, self._others)]:
            return False
        return all(map(_same, self._now(), (self._keys, self._values, self._items)))


def _is_full(level: tuple[list[Any], list[Any]]) -> bool:
    """Return whether the same containers of a level as before are not empty."""
    now = list(filter(None, level[0]))
    return len(now) == len(level[1]) and _same(now, level[1])


def _differs(container: Any, before: Any) -> bool:
    """Return whether a container no longer holds the same objects in the same order."""
    if isinstance(container, tuple):
        return False
    same = len(container) == len(before) and _same(container, before)
    return not same or (isinstance(container, dict) and not _same(container.values(), dict(before).values()))


def _fill(container: Any, before: Any) -> None:
    """Let a container hold what it held before."""
    container.clear()
    container.update(before) if isinstance(container, dict | set) else container.extend(before)


class _Types(dict[type, bool]):
    """Finds the values of some types. Each type is asked about once: of many values there are few."""

    def __init__(self, wanted: type | tuple[type, ...]) -> None:
        super().__init__()
        self._wanted = wanted

    def __missing__(self, kind: type) -> bool:
        self[kind] = answer = issubclass(kind, self._wanted)
        return answer

    def among(self, values: Sequence[Any]) -> list[Any]:
        return list(itertools.compress(values, map(self.__getitem__, map(type, values))))


def by_identity(objects: Sequence[Any]) -> dict[int, Any]:
    """Return each object once."""
    return dict(zip(map(id, objects), objects, strict=True))


def _same(a: Iterable[Any], b: Iterable[Any]) -> bool:
    """Return whether both hold the same objects in the same order, where they are of one length.

    By identity, for they may be tensors.
    """
    return all(map(operator.is_, a, b))


class Values:
    """The values of tensors. What did not change is not written to.

    A copy onto itself would break a `loss.backward()` that the caller has still to run. Small tensors are copied and
    compared together: one by one, a GPU would have to be waited for hundreds of times.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        groups: dict[Any, list[Tensor]] = defaultdict(list)
        for tensor, alike, size in zip(tensors, map(_alike, tensors), map(Tensor.numel, tensors), strict=True):
            alone = type(tensor) is not Tensor or tensor.layout != torch.strided or size > _SMALL
            groups[id(tensor) if alone else alike].append(tensor)
        self._kept: list[_Together | _Alone] = []
        for group in groups.values():
            first = group[0]
            if first.is_meta:
                continue  # it has no values
            if len(group) == 1 or first.is_nested or first.is_quantized:
                self._kept += map(_Alone, group)
            else:
                self._kept.append(_Together(group))

    def restore(self) -> bool:
        """Put back the values of the tensors that have changed; return whether any has."""
        changed = [kept.restore() for kept in self._kept]  # all of them, before it is asked whether any
        return any(changed)


class _Together:
    """Several plain tensors of one type and number of axes."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors, self._before = tensors, _joined(tensors)
        self._dtype, self._axes = tensors[0].dtype, tensors[0].ndim
        self._sizes = self._now()

    def _now(self) -> list[Any]:
        """The size of each; with one axis or none, the number of values says it, in a tenth of the time."""
        return list(map(Tensor.numel if self._axes < 2 else _shape, self._tensors))

    def restore(self) -> bool:
        alike = set(map(_dtype, self._tensors)) == {self._dtype} and set(map(_axes, self._tensors)) == {self._axes}
        if alike and self._now() == self._sizes and torch.equal(_bits(_joined(self._tensors)), _bits(self._before)):
            return False
        shapes = [torch.Size([size] * self._axes) if self._axes < 2 else size for size in self._sizes]
        values = torch.split(self._before.view(-1), [shape.numel() for shape in shapes])
        each = zip(self._tensors, values, shapes, strict=True)
        changed = [_put_back(tensor, value.view(shape)) for tensor, value, shape in each]
        return any(changed)


class _Alone:
    """A large tensor, or one of another kind."""

    def __init__(self, tensor: Tensor) -> None:
        with torch.no_grad():
            self._tensor, self._before = tensor, tensor.clone()

    def restore(self) -> bool:
        return _put_back(self._tensor, self._before)


@torch.no_grad()
def _joined(tensors: list[Tensor]) -> Tensor:
    if tensors[0].ndim == 0:
        return torch.stack(tensors)
    return torch.cat(tensors if tensors[0].ndim == 1 else [tensor.reshape(-1) for tensor in tensors])


def _put_back(tensor: Tensor, value: Tensor) -> bool:
    if tensor.dtype != value.dtype or not (value.is_nested or tensor.shape == value.shape):
        tensor.data = value.clone()
    elif not all(map(torch.equal, _parts(tensor), _parts(value))):
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            (tensor if tensor.is_sparse else tensor.data).copy_(value)  # `data` of a sparse tensor is a copy
    else:
        return False
    return True


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
