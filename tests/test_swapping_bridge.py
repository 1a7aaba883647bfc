"""What a plugin that brings another library's method is handed: the model itself, and passes as the user asked."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import medviz


class TwoOutputs(nn.Module):
    """Return the image first and, in a dict, the scores of the scaled image: 2 · scale · sum for class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0], [2.0]]).expand(2, 4))

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x, {"scores": self.fc(x.flatten(1)) * scale[:, None]}


@attrs.frozen(eq=False)
class Foreign(medviz.Explainer):
    """Differentiate twice the rows of each image by hand, as another library would."""

    @medviz.hookimpl
    def explain(self, probe: medviz.Probe, target: medviz.FixedTarget) -> Tensor:
        with probe.model() as model:
            assert not model.training
            model.note = "left behind"
            rows = probe.inputs.repeat(2, 1, 1, 1).requires_grad_()
            index = torch.arange(len(probe.inputs)).repeat(2)
            output = probe.run(rows, index)
            assert output.requires_grad
            (gradient,) = torch.autograd.grad(probe.scores(target, output, index).sum(), rows)
        return gradient[len(probe.inputs) :].abs()


def test_arguments_output_and_graph() -> None:
    model, image = TwoOutputs().train(), torch.ones(3, 1, 2, 2)
    scale = medviz.per_image(torch.tensor([1.0, 3.0, 5.0]))
    attribution: Any = Foreign()(model, image, 1, output=lambda raw: raw[1]["scores"], model_args=(scale,))
    assert attribution.values.flatten(1).tolist() == [[2.0] * 4, [6.0] * 4, [10.0] * 4]
    assert model.training
    assert not hasattr(model, "note")


def test_without_index_a_row_belongs_to_its_image() -> None:
    image = torch.ones(2, 1, 2, 2)
    with medviz.Probe(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), image) as probe:
        assert torch.equal(probe.run(image), probe.output)
        assert not probe.run(image).requires_grad
        with pytest.raises(ValueError, match="3 rows for 2 images; say with `index`"):
            probe.run(torch.ones(3, 1, 2, 2))
    with pytest.raises(RuntimeError, match="works inside of its block"):
        probe.run(image)
