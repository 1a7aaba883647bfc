"""Swapping, end to end: pip installs and removes, in an environment of its own, what replaces, breaks, clashes, wraps.

Before, with all packages, by preference, and after two were removed, a fresh interpreter tells what it finds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import attrs
import pytest
from helpers_distributions import EXPLAINER, build_wheel

import medviz
from medviz import registry

_HEAD = "import attrs\nimport medviz\nfrom medviz.hookspecs import Explainer, Wrapper, hookimpl\n\n\n"
SWAP = f"""{_HEAD}@attrs.frozen(eq=False)
class GradCAM(Explainer):
    signed = True

    @hookimpl
    def explain(self, probe, target):
        return probe.input_gradient(target).sum(1, keepdim=True)
"""
WITNESS = f"""{_HEAD}SEEN = []


@attrs.frozen(eq=False)
class Witness(Wrapper):
    @hookimpl(wrapper=True)
    def explain(self, plugin):
        SEEN.append(type(plugin).__name__)
        return (yield)
"""
NETWORK = """
import torch


def network():
    torch.manual_seed(0)
    layers = {"conv": torch.nn.Conv2d(1, 3, 3), "relu": torch.nn.ReLU(), "pool": torch.nn.AdaptiveAvgPool2d(1),
              "flat": torch.nn.Flatten(), "fc": torch.nn.Linear(3, 2)}
    model = torch.nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model
"""
# What an interpreter tells: for each name the package and the sum of the map, or the error.
TELL = """
import json, numpy, torch, medviz
from nets import network

model, image = network(), torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
numpy.save("image.npy", image[0])


def tell():
    told = {}
    for name in ["gradcam", "medviz-xai/gradcam", "medviz-swap/gradcam", "brightness", "medviz-one/brightness",
                 "medviz-two/brightness", "shaky", "layercam"]:
        try:
            attribution = medviz.explain(model, image, name, 1)
            told[name] = [attribution.provenance["package"], round(float(attribution.values.double().sum()), 5)]
        except medviz.PluginError as err:
            told[name] = str(err)
    return told


told = {"plain": tell()}
"""
PREFER = """
medviz.prefer("medviz-swap", "medviz-two")
told["preferred"] = tell()
medviz.prefer()
told["again"] = tell()
"""
WRAP = """
import attrs
from medviz import registry
from mv_witness import SEEN

small = {"seed": 0, "n_samples": 2, "n_masks": 2, "steps": 2, "mask_size": 4, "layer": "relu"}
told["wrapped"] = []
for entry in registry.entries("explainers"):
    if entry.package not in ("medviz-xai", "medviz-swap"):
        continue
    takes = {f.alias for f in attrs.fields(entry.load())}
    chosen = {key: value for key, value in small.items() if key in takes}
    explainer = registry.get("explainers", entry.full_name, **chosen)
    plain = medviz.explain(model, image, explainer, 1)
    assert SEEN == []
    wrapped = medviz.explain(model, image, explainer, 1, wrappers=["witness"])
    told["wrapped"].append([type(explainer).__name__, SEEN.copy(), torch.equal(plain.values, wrapped.values)])
    SEEN.clear()
"""


class Environment:
    """A virtual environment beside the one that runs the tests, which sees all that is installed there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "env", with_pip=False)
        self.python = folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        paths = {"base": str(folder / "env"), "platbase": str(folder / "env")}
        site = Path(sysconfig.get_path("purelib", vars=paths))
        outer = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        lines = [f"import site; site.addsitedir({path!r})" for path in dict.fromkeys(outer)]
        (site / "outer.pth").write_text("\n".join(lines) + "\n")
        (folder / "nets.py").write_text(NETWORK)

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        done = subprocess.run([*command, "--quiet"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def install(self, *wheels: Path) -> None:
        self.pip("install", "--no-deps", "--no-index", *map(str, wheels))

    def run(self, *command: str, prefer: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MEDVIZ_PREFER": prefer, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.folder)}
        return subprocess.run(
            [str(self.python), *command], cwd=self.folder, env=environment, capture_output=True, text=True
        )

    def tell(self, *code: str) -> Any:
        done = self.run("-c", "".join([*code, "\nprint(json.dumps(told))"]))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@attrs.frozen
class Story:
    """What was told: before, with all packages, by preference, on the command line, and after two were removed."""

    before: Any
    beside: Any
    preferred: Any
    again: Any
    wrapped: Any
    listed: subprocess.CompletedProcess[str]
    checked: subprocess.CompletedProcess[str]
    attribution: medviz.Attribution
    after: Any
    forgotten: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Install one that replaces, one that is broken, two that clash and one that wraps; then remove two of them."""
    folder = tmp_path_factory.mktemp("swapping")
    environment = Environment(folder)
    before = environment.tell(TELL)
    made = [
        ("medviz-swap", "mv_swap", SWAP, ("explainers", "gradcam", "mv_swap:GradCAM")),
        ("medviz-shaky", "mv_shaky", "import no_such_library\n", ("explainers", "shaky", "mv_shaky:Shaky")),
        ("medviz-one", "mv_one", EXPLAINER, ("explainers", "brightness", "mv_one:Brightness")),
        ("medviz-two", "mv_two", EXPLAINER, ("explainers", "brightness", "mv_two:Brightness")),
        ("medviz-witness", "mv_witness", WITNESS, ("wrappers", "witness", "mv_witness:Witness")),
    ]
    environment.install(
        *[build_wheel(folder / "wheels", package, {f"{name}.py": code}, [line]) for package, name, code, line in made]
    )
    beside = environment.tell(TELL, PREFER, WRAP)
    explain = ["-m", "medviz", "explain", "--image", "image.npy", "--model", "nets:network", "--target", "1"]
    chosen = [*explain, "--explainer", "gradcam", "--sink", "npz:path=map.npz"]
    explained = environment.run(*chosen, prefer="medviz-swap")
    assert explained.returncode == 0, explained.stderr
    listed = environment.run("-m", "medviz", "plugins", "--kind", "explainers")
    checked = environment.run("-m", "medviz", "plugins", "--check")
    environment.pip("uninstall", "--yes", "medviz-swap", "medviz-two")
    return Story(
        before["plain"],
        beside["plain"],
        beside["preferred"],
        beside["again"],
        beside["wrapped"],
        listed,
        checked,
        medviz.Attribution.load(folder / "map.npz"),
        environment.tell(TELL)["plain"],
        environment.run("-c", "import medviz; medviz.get_explainer('gradcam')", prefer="medviz-swap"),
    )


def test_before_there_is_the_builtin_alone(story: Story) -> None:
    assert story.before["gradcam"][0] == "medviz-xai"
    assert "no plugin 'brightness'" in story.before["brightness"]
    assert "no plugin 'medviz-swap/gradcam'" in story.before["medviz-swap/gradcam"]


def test_an_installed_replacement_changes_nothing_by_accident(story: Story) -> None:
    refused = story.beside["gradcam"]
    assert "'gradcam' is offered by several packages: 'medviz-swap/gradcam' and 'medviz-xai/gradcam'" in refused
    assert "MEDVIZ_PREFER=medviz-swap" in refused
    assert story.beside["medviz-xai/gradcam"] == story.before["gradcam"]
    assert story.beside["layercam"] == story.before["layercam"]


def test_it_replaces_the_builtin_on_purpose_and_gives_way_again(story: Story) -> None:
    swapped = story.beside["medviz-swap/gradcam"]
    assert swapped[0] == "medviz-swap"
    assert swapped[1] != story.before["gradcam"][1]
    assert story.preferred["gradcam"] == swapped
    assert story.preferred["medviz-xai/gradcam"] == story.before["gradcam"]
    assert story.preferred["layercam"] == story.before["layercam"]
    assert story.again == story.beside


def test_on_the_command_line_by_the_environment(story: Story) -> None:
    attribution = story.attribution
    total = round(float(attribution.values.double().sum()), 5)
    assert [attribution.provenance["package"], total] == story.beside["medviz-swap/gradcam"]
    assert attribution.signed


def test_two_that_clash_are_both_reachable(story: Story) -> None:
    assert "'medviz-one/brightness' and 'medviz-two/brightness'" in story.beside["brightness"]
    assert [story.beside[f"medviz-{n}/brightness"][0] for n in ("one", "two")] == ["medviz-one", "medviz-two"]
    assert story.preferred["brightness"][0] == "medviz-two"


def test_a_broken_one_costs_nobody_else_anything(story: Story) -> None:
    assert story.beside["shaky"] == (
        "plugin 'shaky' (explainers) of medviz-shaky 1.2.3 (mv_shaky:Shaky) is broken: "
        "ModuleNotFoundError: No module named 'no_such_library'"
    )
    assert story.listed.returncode == 0
    assert {line.split()[0] for line in story.listed.stdout.splitlines()} >= {"shaky", "gradcam", "brightness"}
    assert story.checked.returncode == 1
    broken = [line.split()[0] for line in story.checked.stdout.splitlines() if line.endswith(" broken")]
    assert broken == ["shaky"]


def test_one_wraps_every_explainer_and_changes_no_map(story: Story) -> None:
    ours = [entry for entry in registry.entries("explainers") if entry.package == "medviz-xai"]
    assert len(story.wrapped) == len(ours) + 1
    assert all(seen == [name] and same for name, seen, same in story.wrapped), story.wrapped


def test_removal_restores_the_builtin(story: Story) -> None:
    assert story.after["gradcam"] == story.before["gradcam"]
    assert "no plugin 'medviz-swap/gradcam'" in story.after["medviz-swap/gradcam"]
    assert story.after["brightness"][0] == "medviz-one"


def test_the_preference_for_what_was_removed_is_an_error(story: Story) -> None:
    assert story.forgotten.returncode != 0
    assert "the preferred package 'medviz-swap' offers no plugins here" in story.forgotten.stderr
