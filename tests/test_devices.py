"""Devices by name."""

from __future__ import annotations

import pytest
import torch
from networks import REAL
from torch import nn

import medviz
from medviz.devices import as_device, usable


@pytest.mark.parametrize("device", REAL)
def test_what_can_be_used_is_taken(device: str) -> None:
    assert usable(device) == torch.device(device)
    assert usable("cpu:0") == as_device(torch.device("cpu:3")) == torch.device("cpu")
    model, image = nn.Conv2d(1, 2, 1), torch.rand(1, 1, 4, 4)
    assert medviz.explain(model, image, "vanillagrad", lambda out: out.sum((1, 2, 3)), device="cpu:0").values.any()
    assert usable("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "0", "cuda:-1", "cuda:256", "CPU"])
def test_a_name_that_does_not_exist_is_refused(name: str) -> None:
    for named in (as_device, usable):
        with pytest.raises(ValueError, match=f"`device` '{name}' is none that PyTorch knows"):
            named(name)
    with pytest.raises(ValueError, match="none that PyTorch knows"):
        medviz.explain(nn.Conv2d(1, 2, 1), torch.rand(1, 1, 4, 4), "vanillagrad", device=name)


@pytest.mark.parametrize("name", ["meta", "cuda:97", "xla", "hpu", "vulkan", "opengl"])
def test_a_device_that_cannot_be_used_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^`device` '{name}' cannot be used here: .{{5,150}}; use cpu\.$"):
        usable(name)
