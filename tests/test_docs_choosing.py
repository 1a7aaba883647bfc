"""The page "Choosing a method": each explainer has its rows, and its passes and its sign are what really runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ASKED
from torch import Tensor, nn

import medviz
from medviz import registry

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "choosing.md").read_text(encoding="utf-8")
EXPLAINERS = [e.name for e in registry.entries() if e.package == "medviz-xai" and e.kind == "explainers"]
OWN_PASSES = 2 + ASKED  # that the page allows medviz in a call
SIZES: dict[str, int] = {"K": 5, "n_samples": 4, "steps": 6, "n_masks": 7}
QUICK = {"occlusion": {"mask_size": 4, "incremental": False}, "integratedgradients": {"steps": SIZES["steps"]}}
QUICK |= {name: {"n_samples": SIZES["n_samples"]} for name in ("smoothgrad", "guidedbackpropsmooth")}
QUICK |= {"rise": {"n_masks": SIZES["n_masks"]}}
passes = {"forward": 0, "backward": 0}


class CountBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        passes["backward"] += len(gradient)
        return gradient


class Counting(nn.Module):
    """A classifier with K feature maps that counts the images that go through it, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(1, SIZES["K"], 3, padding=1), nn.ReLU())
        self.head = nn.Linear(SIZES["K"], 3)

    def forward(self, x: Tensor) -> Tensor:
        passes["forward"] += len(x)
        return self.head(CountBackward.apply(self.features(x).mean((2, 3))))


def table(heading: str) -> list[list[str]]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def costs() -> dict[str, dict[str, str]]:
    head, *rows = table("What each one computes and costs")
    return {row[0].strip("` "): dict(zip([name.strip() for name in head], row, strict=True)) for row in rows}


def number(formula: str, **sizes: int) -> int:
    return sum(int(term) if term.isdecimal() else {**SIZES, **sizes}[term] for term in formula.split(" + "))


def test_every_explainer_has_its_row() -> None:
    assert sorted(costs()) == sorted(EXPLAINERS)


def test_every_explainer_has_its_failures() -> None:
    named = [name for row in table("What each one cannot show") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(EXPLAINERS)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_the_passes_are_those_that_run(name: str) -> None:
    explainer = medviz.get_explainer(f"medviz-xai/{name}", **QUICK.get(name, {}))
    image = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    windows = explainer.passes(image.shape) if name == "occlusion" else 0
    row = costs()[name]
    passes.update(forward=0, backward=0)
    medviz.explain(Counting(), image, explainer, 1)
    assert passes["backward"] == number(row["backward"], windows=windows)
    assert 0 <= passes["forward"] - number(row["forward"], windows=windows) <= OWN_PASSES


@pytest.mark.parametrize("name", EXPLAINERS)
def test_the_sign_is_that_of_the_map(name: str) -> None:
    assert costs()[name]["signed"] == ("yes" if medviz.get_explainer(f"medviz-xai/{name}").signed else "no")


@pytest.mark.parametrize("name", EXPLAINERS)
def test_only_what_needs_no_more_memory_than_inference_says_so(name: str) -> None:
    """A method without a layer that goes backwards keeps the whole graph; many copies in a pass are a batch."""
    row, explainer = costs()[name], medviz.get_explainer(f"medviz-xai/{name}")
    if row["backward"] != "0" and not explainer.needs_layer:
        assert row["memory"] == "training"
    else:
        assert row["memory"] == ("inference" if row["forward"] == "1" else "batch")
