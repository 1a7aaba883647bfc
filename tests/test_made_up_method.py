"""Adding a method takes one file and one entry-point line, in a package of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_distributions import build_wheel, install

METHOD = '''
"""Input times gradient, the whole of it."""

import attrs

import medviz
from medviz.hookspecs import Explainer, hookimpl


@attrs.frozen(eq=False)
class InputTimesGradient(Explainer):
    signed = True
    scale: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))

    @hookimpl
    def explain(self, probe, target):
        return self.scale * probe.inputs * probe.input_gradient(target)
'''
LINE = ("explainers", "inputtimesgradient", "mv_made_up:InputTimesGradient")

USE = """
import json, torch, medviz
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2, bias=False))
image = torch.arange(32.0).reshape(2, 1, 4, 4)
weight = model[1].weight[1].detach().reshape(1, 1, 4, 4)
explainer = medviz.get_explainer("inputtimesgradient", scale=2.0)
direct = explainer(model, image, target=1)
both = medviz.explain(model, image, ["inputtimesgradient", "medviz-made-up/inputtimesgradient:scale=2.0"], target=1)
print(json.dumps([
    torch.allclose(direct.values, 2 * image * weight),
    torch.equal(direct.values, both[1].values),
    torch.allclose(2 * both[0].values, both[1].values),
    direct.provenance["package"], direct.provenance["package_version"], direct.method, direct.signed,
]))
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made-up")
    sound = build_wheel(folder, "medviz-made-up", {"mv_made_up.py": METHOD}, [LINE], "0.2")
    broken = build_wheel(folder, "medviz-shaky", {"mv_shaky.py": "1 / 0\n"}, [("explainers", "shaky", "mv_shaky:X")])
    return install(folder / "target", sound, broken)


def _run(target: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(target)}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


def test_it_is_listed(target: Path) -> None:
    rows = [line.split() for line in _run(target, "-m", "medviz", "plugins").stdout.splitlines()]
    assert ["inputtimesgradient", "explainers", "medviz-made-up", "0.2"] in rows


def test_it_works_by_name_and_beside_a_broken_one(target: Path) -> None:
    done = _run(target, "-c", USE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, True, True, "medviz-made-up", "0.2", "inputtimesgradient", True]


def test_the_broken_one_shows_its_error_only_when_it_is_asked_for(target: Path) -> None:
    checked = _run(target, "-m", "medviz", "plugins", "--check", "--kind", "explainers")
    states = {row[0]: row[-1] for row in map(str.split, checked.stdout.splitlines()) if len(row) == 5}
    assert checked.returncode == 1
    assert [name for name, state in states.items() if state == "broken"] == ["shaky"]
    assert states["inputtimesgradient"] == "ok"
    assert (
        "plugin 'shaky' (explainers) of medviz-shaky 1.2.3 (mv_shaky:X) is broken: ZeroDivisionError" in checked.stdout
    )
