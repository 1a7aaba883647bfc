"""An error of a parameter is one sentence, whoever makes the plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import medviz
from medviz.explainers.cam import CAM
from medviz.explainers.hirescam import HiResCAM
from medviz.explainers.smoothgrad import SmoothGrad
from medviz.renderers.matshow3d import Matshow3d
from medviz.renderers.planes import Planes

WRONG: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    (HiResCAM, {"relu": "yes"}, TypeError, "`relu` is True or False; got 'yes'."),
    (CAM, {"fc": 3}, TypeError, "`fc` is a text; got 3."),
    (medviz.SegmentationTarget, {"channel": True}, TypeError, "`channel` is an int; got True."),
    (SmoothGrad, {"statistic": "sum"}, ValueError, "`statistic` is 'mean' or 'magnitude' or 'variance'; got 'sum'."),
    (Planes, {"dpi": 5}, ValueError, "`dpi` is an int ≥ 20; got 5."),
    (Matshow3d, {"every_n": 0}, ValueError, "`every_n` is an int ≥ 1; got 0."),
]


@pytest.mark.parametrize(("cls", "parameters", "kind", "text"), WRONG)
def test_one_sentence(cls: Callable[..., Any], parameters: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        cls(**parameters)
    assert str(caught.value) == text
