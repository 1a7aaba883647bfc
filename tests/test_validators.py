"""An error of a parameter is one sentence, whoever makes the plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import medviz
from medviz.explainers.cam import CAM
from medviz.explainers.hirescam import HiResCAM
from medviz.explainers.smoothgrad import SmoothGrad
from medviz.renderers.matshow3d import Matshow3d
from medviz.renderers.planes import Planes
from medviz.validators import as_python

WRONG: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    (HiResCAM, {"relu": "yes"}, TypeError, "`relu` is True or False; got 'yes'."),
    (CAM, {"fc": b"3"}, TypeError, "a layer is the dotted name of a module; got b'3'."),
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


def test_what_holds_no_number_of_numpy_is_handed_on_itself() -> None:
    """A plugin may collect what it makes in a list of the caller's."""
    for mine in ([1, (2.0, "a")], (), np.ones(1), "text", np.datetime64(1, "s"), np.timedelta64(1, "s")):
        assert as_python(mine) is mine
    made = as_python([np.int64(1), (np.float64(2), "a")])
    assert made == [1, (2.0, "a")]
    assert [type(made[0]), type(made[1][0])] == [int, float]
