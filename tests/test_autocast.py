"""Every method of the package, found by listing them, gives under `autocast` what it gives without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import OURS, REAL, Classifier, images

import medviz

FEW: dict[str, dict[str, Any]] = {
    "occlusion": {"mask_size": 4},
    "rise": {"n_masks": 60, "seed": 1},
    "smoothgrad": {"n_samples": 4, "seed": 1},
    "guidedbackpropsmooth": {"n_samples": 4, "seed": 1},
    "integratedgradients": {"steps": 8},
}


@pytest.mark.parametrize("device", REAL)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("method", [entry.name for entry in OURS])
def test_half_precision_changes_no_more_than_rounding(method: str, ndim: int, device: str) -> None:
    explainer = medviz.get_explainer(f"medviz-xai/{method}", **FEW.get(method, {}))
    model, image = Classifier(ndim).to(device), images(2, 2, *(10, 9, 8)[:ndim]).to(device)
    full, half = (explainer(model, image, 1, autocast=dtype) for dtype in (False, torch.bfloat16))
    assert isinstance(full, medviz.Attribution)
    assert isinstance(half, medviz.Attribution)
    assert half.values.dtype == torch.float32
    assert not torch.equal(half.values, full.values)  # it was really cast
    for one, other in zip(half.values, full.values, strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.95
        largest = float(other.abs().max())
        assert 0.8 * largest < float(one.abs().max()) < 1.25 * largest
