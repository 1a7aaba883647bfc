"""Code written for `monai.visualize`: the documented examples, and a user's script, with one import changed."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import runpy
import sys
import warnings
from pathlib import Path

import pytest
from matplotlib import pyplot

import medviz.visualize

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::FutureWarning")]

SCRIPT = Path(__file__).with_name("user_script_monai.py")
MODULES = [info.name for info in pkgutil.iter_modules(medviz.visualize.__path__, "medviz.visualize.")]
# the pages of monai.visualize show these, and matshow3d, which is in `utils`
DOCUMENTED = {"CAM", "GradCAM", "OcclusionSensitivity", "utils"}


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]


def test_every_documented_example_is_there() -> None:
    assert {test.name.rpartition(".")[2] for test in examples()} == DOCUMENTED


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_the_documented_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("monai")
    pyplot.close("all")  # a change of the backend does so too in matplotlib 3.8, with a warning
    pyplot.switch_backend("Agg")
    (test,) = [test for test in examples() if test.name.rpartition(".")[2] == name]
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > 0
    assert not result.failed, capsys.readouterr().out
    pyplot.close("all")


def run(package: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert text.count("monai.visualize import") == 1
    changed = folder / "script.py"
    changed.write_text(text.replace("from monai.visualize import", f"from {package} import"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [str(changed), str(folder)])
    runpy.run_path(str(changed), run_name="__main__")


def test_a_users_script_runs_with_the_one_import_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("monai")
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) >= 60
    run("medviz.visualize", tmp_path, monkeypatch)
    ours = capsys.readouterr().out.splitlines()
    assert (tmp_path / "volume.png").stat().st_size > 1000
    assert list((tmp_path / "runs").glob("events*"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's own
        run("monai.visualize", tmp_path, monkeypatch)
    theirs = capsys.readouterr().out.splitlines()
    pyplot.close("all")  # MONAI leaves it open
    assert len(ours) == len(theirs) == 17
    differ = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    assert differ == [("occlusion 5 True", "occlusion 4 True")]  # the classes are the last axis, as documented
