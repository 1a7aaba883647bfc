"""A copy keeps its values whatever is done to the other tensor, and the other way round."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import REAL
from torch import Tensor

from medviz.probe.copies import copy_on_write

TENSORS: dict[str, Callable[[], Tensor]] = {
    "its own": lambda: torch.arange(6.0),
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).t(),
    "a part": lambda: torch.arange(6.0)[2:4],
    "every second": lambda: torch.arange(6.0)[::2],
    "one value for all": lambda: torch.ones(1).expand(4),
    "of numpy": lambda: torch.from_numpy(np.arange(6.0)),
    "shared by processes": lambda: torch.arange(6.0).share_memory_(),
    "empty": lambda: torch.zeros(0, 3),
    "float16": lambda: torch.arange(6.0).half(),
    "of inference mode": torch.inference_mode()(lambda: torch.arange(6.0)),
}
WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda t: t.mul_(3),
    "data": lambda t: t.data.mul_(3),
    "detached": lambda t: t.detach().mul_(3),
    "numpy": lambda t: np.multiply(t.numpy(), 3, out=t.numpy()),
    "a view": lambda t: t.view_as(t).mul_(3),
    "set": lambda t: t.copy_(t * 3),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("name", TENSORS)
def test_a_write_to_the_copy_leaves_the_tensor_alone(name: str, write: str) -> None:
    tensor = TENSORS[name]()
    before = tensor.clone()
    WRITES[write](copy_on_write(tensor))
    assert torch.equal(tensor, before)


def test_a_sparse_tensor() -> None:
    tensor = torch.eye(3).to_sparse()
    copy_on_write(tensor).mul_(3)
    assert torch.equal(tensor.to_dense(), torch.eye(3))


@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_the_tensor_leaves_the_copy_alone(write: str) -> None:
    tensor = torch.arange(6.0)
    copy = copy_on_write(tensor)
    WRITES[write](tensor)
    assert torch.equal(tensor, torch.arange(6.0) * 3)
    assert torch.equal(copy, torch.arange(6.0))


@pytest.mark.parametrize("device", REAL)
def test_the_memory_is_shared_until_then(device: str) -> None:
    tensor = torch.ones(4, device=device)
    copy = copy_on_write(tensor)
    assert torch._C._data_address(copy) == torch._C._data_address(tensor)
    copy.add_(1)
    assert torch._C._data_address(copy) != torch._C._data_address(tensor)


def test_gradients_pass() -> None:
    leaf = torch.tensor([-1.0, 2.0], requires_grad=True)
    copy_on_write(leaf).relu_().sum().backward()
    assert torch.equal(leaf.grad, torch.tensor([0.0, 1.0]))


def test_without_the_private_function_it_is_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(tensor: Tensor) -> Tensor:
        raise AttributeError

    monkeypatch.setattr(Tensor, "_lazy_clone", missing)
    tensor = torch.ones(2)
    copy_on_write(tensor).zero_()
    assert torch.equal(tensor, torch.ones(2))
