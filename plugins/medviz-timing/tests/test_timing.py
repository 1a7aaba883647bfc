"""The wrapper logs each plugin once, passes results and errors on, and changes nothing."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from medviz_timing import Timing
from torch import nn

import medviz
import medviz.testing

LINE = re.compile(r"(\S+) took (\d+\.\d{3}) s")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="medviz.timing")


def names(caplog: pytest.LogCaptureFixture) -> list[str]:
    timed = [LINE.fullmatch(record.getMessage()) for record in caplog.records if record.name == "medviz.timing"]
    return [match[1] for match in timed if match]


@medviz.testing.conformance([Timing()])
def test_conformance(check: Any, instance: Timing) -> None:
    check(instance)


def test_every_explainer_has_its_line_and_its_map(caplog: pytest.LogCaptureFixture) -> None:
    network, image = model(), torch.rand(1, 1, 8, 8)
    methods = ["medviz-xai/vanillagrad", "medviz-xai/gradcam:layer='0'"]
    plain = medviz.explain(network, image, methods, [0, 1])
    timed = medviz.explain(network, image, methods, [0, 1], wrappers=["timing"])
    assert names(caplog) == ["vanillagrad"] * 2 + ["gradcam:layer='0'"] * 2
    assert all(torch.equal(a.values, b.values) for a, b in zip(plain, timed, strict=True))


def test_renderers_sinks_and_readers(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    around = ["timing"]
    attribution = medviz.explain(model(), torch.rand(1, 1, 8, 8), "medviz-xai/vanillagrad")
    rendering = medviz.get_renderer("medviz-xai/blend")(attribution, wrappers=around)
    medviz.get_sink("medviz-xai/png", path=tmp_path / "a.png")(rendering, wrappers=around)
    image = medviz.read(tmp_path / "a.png", "medviz-xai/image", wrappers=around)
    assert [name.partition(":")[0] for name in names(caplog)] == ["blend", "png", "image"]
    assert image.data.shape[1:] == rendering.frames.shape[1:3]


def test_a_failure_is_timed_and_passed_on(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"not a picture")
    with pytest.raises(Exception, match=r"no\.png|identify|picture"):
        medviz.read(tmp_path / "no.png", "medviz-xai/image", wrappers=["timing"])
    assert names(caplog) == ["image"]


def test_it_is_off_unless_named(caplog: pytest.LogCaptureFixture) -> None:
    medviz.explain(model(), torch.rand(1, 1, 8, 8), "medviz-xai/vanillagrad")
    assert names(caplog) == []
