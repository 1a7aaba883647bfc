"""Gradients are those of the mathematics, also where PyTorch's own are those of other voxels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import DEVICES, images
from torch import Tensor, nn

import medviz
from medviz.probe import gradients

WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "as a patch embedding": lambda x: x.flatten(2).transpose(1, 2),
    "channels last": lambda x: x.movedim(1, -1),
    "as it is": lambda x: x,
}
SIZES = {2: (4, 3), 3: (4, 1, 3)}


class Normed(nn.Module):
    """A convolution of one voxel, a norm, and a weight for each of its values, in the order of `way`.

    Args:
        by_hand: the norm is written in plain operations.
    """

    def __init__(self, norm: str, way: Callable[[Tensor], Tensor], nd: int, by_hand: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = getattr(nn, f"Conv{nd}d")(2, 6, 1, bias=False)
        self.way, self.instance, self.by_hand = way, norm == "instance", by_hand
        self.register_buffer("mean", torch.rand(6, generator=generator))
        self.register_buffer("variance", torch.rand(6, generator=generator) + 0.1)
        self.first.weight.data = torch.randn(self.first.weight.shape, generator=generator)
        self.last = nn.Parameter(torch.randn(2, *way(torch.zeros(1, 6, *SIZES[nd])).shape[1:], generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("b...,n...->bn", self.way(self.norm(self.first(x))), self.last)

    def norm(self, x: Tensor) -> Tensor:
        if not self.by_hand:
            return F.instance_norm(x) if self.instance else F.batch_norm(x, self.mean, self.variance)
        around = (slice(None), *[None] * (x.ndim - 2))
        mean, variance = self.mean[around], self.variance[around]
        if self.instance:
            axes = tuple(range(2, x.ndim))
            mean, variance = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nd", [2, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("explainer", ["vanillagrad", "hirescam:layer=first"])
def test_they_come_through_norms_whose_output_is_turned(
    device: str, nd: int, way: str, norm: str, batch: int, explainer: str
) -> None:
    image = images(batch, 2, *SIZES[nd], seed=3).double().to(device)
    maps = [
        medviz.explain(Normed(norm, WAYS[way], nd, by_hand).double().eval().to(device), image, explainer, 1)
        for by_hand in (False, True)
    ]
    torch.testing.assert_close(maps[0].raw, maps[1].raw, rtol=1e-8, atol=1e-10)
    assert maps[0].raw.abs().max() > 0.1


def test_nothing_stays_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is walked once for each target: what stayed would be called again each time."""
    ordered, calls = gradients._ordered, []
    monkeypatch.setattr(gradients, "_ordered", lambda given: calls.append(1) or ordered(given))
    leaf = images(1, 2, *SIZES[2], seed=3).requires_grad_()
    output = Normed("batch", WAYS["as a patch embedding"], 2).eval()(leaf)
    found = [gradients.gradients(output[:, n], [leaf], half=False)[0] for n in (0, 1, 0)]
    assert len(calls) == 3
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
