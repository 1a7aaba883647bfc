"""NaN and infinity are found wherever they are."""

from __future__ import annotations

import pytest
import torch
from networks import DEVICES

from medviz.finite import all_finite, check_finite, ends

FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("size", [1, 7, 64, 1025])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_value_is_found_at_every_place(device: str, dtype: torch.dtype, size: int, value: float) -> None:
    for place in {0, size // 2, size - 1}:
        values = torch.ones(size, dtype=dtype, device=device)
        values[place] = value
        assert not all_finite(values), place


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATING)
def test_the_largest_numbers_of_a_type_are_finite(device: str, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    values = torch.tensor([limits.min, 0.0, limits.max], dtype=dtype, device=device)
    assert all_finite(values)
    assert [float(end) for end in ends(values)] == [limits.min, limits.max]


def test_what_has_no_order_or_no_values_is_judged_too() -> None:
    assert all_finite(torch.zeros(0, 3))
    assert all_finite(torch.tensor([True, False]))
    assert all_finite(torch.tensor([1 + 2j]))
    assert not all_finite(torch.tensor([complex(0, float("inf"))]))


def test_no_graph_is_kept() -> None:
    values = torch.rand(3, requires_grad=True)
    assert check_finite(values, "x") is values
    assert not any(end.requires_grad for end in ends(values))


def test_the_message_counts() -> None:
    with pytest.raises(ValueError, match="`x` holds 2 values of 3 that are NaN or infinite"):
        check_finite(torch.tensor([1.0, float("nan"), -float("inf")]), "`x`")
