"""What is kept of containers and tensors comes back, whatever happens to them; what did not change is not touched."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medviz.probe.guard import untouched
from medviz.probe.snapshot import Containers
from medviz.probe.values import Values

CONTAINERS: dict[str, Callable[[], Any]] = {
    "dict": lambda: {"a": 1, "b": [2]},
    "ordered": lambda: OrderedDict(a=1, b=2),
    "empty": dict,
    "list": lambda: [1, torch.ones(2)],
    "empty list": list,
    "set": lambda: {1, 2},
    "deque": lambda: deque([1, 2, 3]),
    "inside of a tuple": lambda: ([1], {"x": 2}),
    "tuple of plain values": lambda: (1, 2),
}


def damage(value: Any) -> None:
    """Change a container in every way at once, and those inside of it."""
    if isinstance(value, tuple):
        for item in value:
            damage(item)
    elif isinstance(value, dict):
        for item in [*value.values()]:
            damage(item)
        value.pop("a", None)
        value["new"] = 5
    elif isinstance(value, set):
        value.add(9)
    elif isinstance(value, list | deque):
        value.append(9)


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_come_back(name: str) -> None:
    value, expected = CONTAINERS[name](), CONTAINERS[name]()
    kept = Containers([value, ("text", 3, None)])
    damage(value)
    kept.restore()
    assert str(value) == str(expected)


def test_a_key_that_was_renamed_comes_back_with_its_value() -> None:
    last = object()
    value = {"a": 1, "b": last}
    kept = Containers([value])
    value["c"] = value.pop("b")
    kept.restore()
    assert value == {"a": 1, "b": last}


def test_a_container_that_holds_itself_is_kept_once() -> None:
    value: list[Any] = [1]
    value.append(value)
    kept = Containers([value])
    value.append(2)
    kept.restore()
    assert len(value) == 2
    assert value[1] is value


def test_tuples_that_hold_each_other_are_looked_through_once() -> None:
    inner: list[int] = [1]
    value: Any = (inner,)
    for _ in range(200):
        value = (value, value)
    kept = Containers([value, {"a": value}])
    inner.append(2)
    kept.restore()
    assert inner == [1]


def test_a_renamed_attribute_of_a_module_comes_back() -> None:
    model = nn.Linear(1, 1)
    model.last = kept = object()
    with untouched(list(model.modules())):
        model.renamed = model.last
        del model.last
    assert model.last is kept
    assert not hasattr(model, "renamed")


def test_the_order_of_hooks_comes_back() -> None:
    def first(*args: Any) -> None: ...

    def second(*args: Any) -> None: ...

    model = nn.Linear(1, 1)
    model.register_forward_hook(second)
    model.register_forward_hook(first, prepend=True)
    before = list(model._forward_hooks.items())
    with untouched(list(model.modules())):
        model.register_forward_hook(lambda *args: None, prepend=True)
    assert list(model._forward_hooks.items()) == before
    assert before[0][1] is first


def tensors() -> dict[str, Tensor]:
    return {
        "number": torch.tensor(3),
        "other number": torch.tensor(4),
        "vector": torch.arange(3.0),
        "grid": torch.arange(6.0).reshape(2, 3).t(),
        "large": torch.zeros(300, 300),
        "double": torch.ones(2, dtype=torch.float64),
        "nan": torch.tensor([0.0, 1.0]),
        "sparse": torch.eye(3).to_sparse(),
    }


@pytest.mark.parametrize("changed", tensors())
def test_the_tensor_that_changed_is_put_back_and_no_other_is_written_to(changed: str) -> None:
    values, expected = tensors(), tensors()
    kept = Values(list(values.values()))
    values[changed].mul_(float("nan")) if changed == "nan" else values[changed].copy_(values[changed] * 2)
    versions = {name: value._version for name, value in values.items()}
    kept.restore()
    for name, value in values.items():
        assert (name == changed == "sparse") or value._version == versions[name], (
            name
        )  # what is written goes past the counter, through `data`
        assert torch.equal(value.to_dense(), expected[name].to_dense()), name


def test_what_did_not_change_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Values(list(tensors().values()))
    written: list[Any] = []
    monkeypatch.setattr(Tensor, "copy_", lambda *args: written.append(args))
    kept.restore()
    assert not written


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("number", [1.0, float("nan")])
@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.complex32, torch.cfloat]
)
def test_numbers_of_every_kind_are_compared(dtype: torch.dtype, number: float) -> None:
    model = nn.Linear(2, 2)
    for name in ("one", "two", "three"):
        model.register_buffer(name, torch.full((3,), number, dtype=dtype))
    model.register_buffer("grid", torch.full((2, 3), number, dtype=dtype).t())
    with untouched(list(model.modules())):
        for changed in (model.two, model.grid[1]):
            changed.copy_(torch.tensor(2.0))
        versions = [buffer._version for buffer in model.buffers()]
    assert [buffer._version for buffer in model.buffers()] == versions  # the other ones are not written to
    for buffer in model.buffers():
        values = buffer.cfloat()
        assert bool((values.isnan() if number != number else values == number).all())


@pytest.mark.parametrize("imaginary", [True, False])
def test_a_conjugate_is_compared_by_what_it_shows(imaginary: bool) -> None:
    model, numbers = nn.Linear(2, 2), torch.tensor([1 + 2j, 3 - 1j])
    model.register_buffer("seen", numbers.conj().imag if imaginary else numbers.conj())
    before = model.seen.clone()
    with untouched(list(model.modules())):
        numbers.add_(1 + 1j)
    assert torch.equal(model.seen, before)


def test_the_guard_takes_a_model_with_sparse_buffers() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("neighbours", torch.eye(2).to_sparse())
    with untouched(list(model.modules())):
        model.neighbours.mul_(3)
    assert torch.equal(model.neighbours.to_dense(), torch.eye(2))


@pytest.mark.parametrize("before", [torch.zeros(0), torch.ones(1), torch.ones(2, 3), torch.ones(2, 3).double()])
@pytest.mark.parametrize("beside", [0, 1])
def test_sizes_and_types_come_back(before: Tensor, beside: int) -> None:
    tensors = [before.clone(), *[torch.ones_like(before)] * beside]
    for now in (torch.ones(5), torch.ones(3, 2), torch.ones(2, 3, dtype=torch.float16), torch.ones(6)):
        values = Values(tensors)
        tensors[0].data = now
        values.restore()
        assert tensors[0].dtype == before.dtype
        assert torch.equal(tensors[0], before)


def test_tensors_without_values_or_one_size_can_be_guarded() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    values = Values([torch.ones(3, device="meta"), torch.ones(3, device="meta"), nested])
    with torch.no_grad():
        nested.mul_(2)
    values.restore()
    assert [float(part.sum()) for part in nested.unbind()] == [2, 3]
