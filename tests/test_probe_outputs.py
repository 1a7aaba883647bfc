"""Tensors are found wherever a layer keeps them, in whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from medviz.probe.outputs import select, tensors_in


class Pair(NamedTuple):
    a: Any
    b: Any


class Made(Mapping[str, Any]):
    """Makes its values when it is asked, and has no truth."""

    def __init__(self, keep: list[Tensor]) -> None:
        self.keep = keep

    def __getitem__(self, key: str) -> Any:
        return [self.keep[int(key)]]

    def __iter__(self) -> Iterator[str]:
        return map(str, range(len(self.keep)))

    def __len__(self) -> int:
        return len(self.keep)

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


TENSORS = [torch.zeros(2), torch.ones(()), torch.zeros(2, 0)]
HOLDERS: dict[str, Any] = {
    "nested": {"a": [TENSORS[0], (TENSORS[1], 3, None, "x")], "b": Pair(TENSORS[2], {1})},
    "a tensor": TENSORS[0],
    "made": Made([torch.rand(1) for _ in range(50)]),
    "nothing": [1, 2.0, "text", None, {}, [], {"a": ()}],
}
COUNTS = {"nested": 3, "a tensor": 1, "made": 50, "nothing": 0}


@pytest.mark.parametrize("name", HOLDERS)
def test_every_tensor_is_found(name: str) -> None:
    assert len({id(tensor) for tensor in tensors_in(HOLDERS[name])}) == COUNTS[name]


def test_what_holds_itself_is_looked_at_once() -> None:
    held: list[Any] = [TENSORS[0]]
    held.append({"again": held, "other": TENSORS[1]})
    assert len(list(tensors_in(held))) == 2


def test_a_number_that_is_a_key_is_not_taken_for_another_keys_name() -> None:
    one, other = torch.zeros(1, 2), torch.ones(1, 2)
    assert torch.equal(select({1: one, "1": other}, 1), one)
