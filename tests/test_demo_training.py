"""The script that made the demo's weights still runs, and gives the same twice."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medviz.demo.scan import load_scan

TOOLS = Path(__file__).parents[1] / "tools"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not TOOLS.is_dir(), reason="the training script is in the repository only"),
]


@pytest.fixture(scope="module")
def tools():
    sys.path.insert(0, str(TOOLS))
    try:
        import demo_examples
        import train_demo

        yield demo_examples, train_demo
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def scan():
    return load_scan(1)


def test_examples_hold_a_lesion_or_none(tools, scan):
    examples, _ = tools
    data, coverage = examples.example(scan, 4, True)
    assert data.shape == coverage.shape == (128, 96, 24)
    assert 100 < (coverage >= 0.5).sum() < 1000
    assert (data >= 0).all()
    assert torch.isfinite(data).all()
    assert not examples.example(scan, 4, False)[1].any()


def test_examples_repeat(tools, scan):
    examples, _ = tools
    for one, same in zip(examples.example(scan, 7, True), examples.example(scan, 7, True), strict=True):
        assert torch.equal(one, same)
    assert not torch.equal(examples.example(scan, 7, True)[0], examples.example(scan, 8, True)[0])


def test_every_distractor_changes_the_scan_a_little(tools, scan):
    examples, _ = tools
    data = scan.data[0]
    for seed in range(12):
        changed = examples.distract(data, scan.affine, np.random.default_rng(seed)) - data
        assert changed.any()
        assert changed.abs().mean() < 0.05 * data.mean()


def test_two_trainings_end_alike(tools, scan):
    examples, train_demo = tools
    scans, lesions = examples.pool(scan, 4)
    first, second = (train_demo.train(scans, lesions, 2, 2, 0).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(
        first["stem.0.weight"], train_demo.train(scans, lesions, 2, 2, 1).state_dict()["stem.0.weight"]
    )


def test_the_logistic_regression_finds_the_border(tools):
    _, train_demo = tools
    x = torch.tensor([0.0, 0.5, 1, 2, 2.5, 3])
    slope, offset = train_demo.logistic(x, (x > 1.5).float())
    assert slope > 3
    assert -offset / slope == pytest.approx(1.5, abs=0.05)
