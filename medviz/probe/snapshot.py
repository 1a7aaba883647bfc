"""What containers hold, kept cheaply: a large network has thousands of them, and few of them change."""

from __future__ import annotations

import functools
import itertools
import operator
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

from torch import Tensor

_CHANGEABLE = (list, set, deque)
_KINDS = (dict, *_CHANGEABLE, tuple)


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

    def restore(self) -> None:
        """Put back what was removed or replaced, and take out what was added."""
        for level, full in self._levels:
            if not _is_full((level, full)):
                before = set(map(id, full))
                for container in filter(None, level):
                    if id(container) not in before:
                        container.clear()
        for content in self._kept:
            content.restore()

    def is_unchanged(self, left: Set[str]) -> bool:
        """Return whether all is as it was, but for the keys `left` of the outermost dicts."""
        quickly = all(map(_is_full, self._levels)) and all(content.is_unchanged() for content in self._kept)
        return quickly or not any(True for _ in self._differing(left))

    def rewind(self, left: Set[str]) -> None:
        """As `restore`, but of the outermost dicts the keys `left` stay as they are."""
        for container, before in list(self._differing(left)):
            if id(container) in self._outermost:  # others may be reading it
                for key in container.keys() - before.keys() - left:
                    del container[key]
                container.update(before)
            else:
                _fill(container, before)

    @functools.cached_property
    def _outermost(self) -> set[int]:
        return set(map(id, self._levels[0][0]))

    @functools.cached_property
    def _held(self) -> dict[int, Any]:
        """What each container held that was not empty, by its identity."""
        return {key: held for content in self._kept for key, held in content.held()}

    def _differing(self, left: Set[str]) -> Iterator[tuple[Any, Any]]:
        """Yield the containers that do not hold what they held, and that; of the outermost without the keys `left`."""
        seen: set[int] = set()
        waiting = list(self._levels[0][0])
        while waiting:
            container = waiting.pop()
            if id(container) in seen:
                continue
            seen.add(id(container))
            before, now = self._held.get(id(container), ()), container
            if id(container) in self._outermost:
                before, now = ({k: v for k, v in d.items() if k not in left} for d in (dict(before), container))
            if _differs(now, before):
                yield container, before
            waiting += _Types(_KINDS).among(list(before.values() if isinstance(before, dict) else before))


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

    def restore(self) -> None:
        """Write to the containers that do not hold the same objects in the same order as before."""
        if self.is_unchanged():
            return
        for container, (_, before) in zip((*self._dicts, *self._others), self.held(), strict=False):
            if _differs(container, before):
                _fill(container, before)

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
