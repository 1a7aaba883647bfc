"""PyTorch's default device and type are for the network: what medviz makes itself does not follow them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from networks import OURS, Classifier, images

import medviz

# `torch.set_default_device` reaches each of these; "meta" has no values, so that nothing could come of it
_MAKERS = {
    *("tensor", "as_tensor", "zeros", "ones", "full", "arange", "linspace", "empty", "eye"),
    *("rand", "randn", "randint", "randperm"),
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "integratedgradients": {"steps": 4, "tolerance": None},
    "rise": {"n_masks": 6},
    "occlusion": {"mask_size": 3, "occluder": "noise"},
}


def calls() -> Iterator[tuple[str, int]]:
    """Yield each call in medviz that makes a tensor and names no device."""
    package = Path(medviz.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            function = node.func if isinstance(node, ast.Call) else None
            if isinstance(node, ast.Call) and isinstance(function, ast.Attribute) and function.attr in _MAKERS:
                of_torch = isinstance(function.value, ast.Name) and function.value.id == "torch"
                if of_torch and not any(keyword.arg == "device" for keyword in node.keywords):
                    yield str(path.relative_to(package)), node.lineno


def test_every_tensor_is_made_on_a_named_device() -> None:
    assert not list(calls())


@pytest.mark.parametrize("name", [entry.name for entry in OURS])
def test_maps_do_not_follow_the_defaults(name: str) -> None:
    explainer = medviz.get_explainer(f"medviz-xai/{name}", **_OPTIONS.get(name, {}))
    if hasattr(explainer, "seed"):
        explainer = attrs.evolve(explainer, seed=0)  # type: ignore[misc]
    model, image, affine = Classifier(2), images(2, 2, 12, 10), np.diag([2.0, 2, 2, 1])
    expected = medviz.explain(model, image, explainer, [0, None], affine=affine)
    with torch.device("meta"):
        found = medviz.explain(model, image, explainer, [0, None], affine=affine)
        medviz.get_renderer("medviz-xai/blend")(found[0])
    torch.set_default_dtype(torch.float64)
    try:
        double = medviz.explain(model, image, explainer, [0, None], affine=affine)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b, c in zip(expected, found, double, strict=True):
        assert torch.equal(a.values, b.values)
        torch.testing.assert_close(a.values, c.values)
