"""The docs name everything there is, every Python block in them runs, and their promises hold."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
import pytest
import torch
from helpers_cli import invoke
from safetensors.torch import save_file
from torch import nn

import medviz
from medviz import registry
from medviz.cli import main
from medviz.contract import hooks_of
from medviz.hookspecs import KINDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
DOCS = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
OWN = [entry for entry in registry.entries() if entry.package == "medviz-xai"]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Return the titles and contents of the fenced blocks of one language."""
    return [(m[2] or "", m[3]) for m in BLOCK.finditer(page.read_text(encoding="utf-8")) if m[1] == language]


def network() -> nn.Module:
    features = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU())
    layers = {"features": features, "pool": nn.AdaptiveAvgPool3d(1), "flat": nn.Flatten(), "head": nn.Linear(4, 3)}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


FACTORY = """
from torch import nn


def factory():
    model = nn.Sequential()
    model.add_module("layer4", nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU()))
    model.add_module("head", nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)))
    return model
"""
PEERS = {"Captum": "captum", "pytorch-grad-cam": "pytorch_grad_cam", "torch-cam": "torchcam"}
# What takes long or a fresh environment is run by test_demo_run.py and by `.ci/run`.
ELSEWHERE = ("python -m pip install ", "python -m pytest ", "medviz demo")


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the pages take for granted: a network `model`, files in the current folder, and the imports above."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scan = np.random.default_rng(0).random((64, 64, 48), dtype=np.float32)
    nib.save(nib.Nifti1Image(scan, np.diag([-2.0, 2.0, 2.0, 1.0])), "scan.nii.gz")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text(FACTORY)
    made: dict[str, Any] = {}
    exec(FACTORY, made)
    save_file(made["factory"]().state_dict(), "file.safetensors")
    yield {"model": network(), "medviz": medviz, "torch": torch, "image": medviz.read("scan.nii.gz")}
    for name in ("package", "package.module", "my_network", "mypackage", "mypackage.nets"):
        sys.modules.pop(name, None)


def run(page: Path, namespace: dict[str, Any]) -> Iterator[str]:
    """Run a page from top to bottom as a reader would, and give the title of each block behind it."""
    for language, title, content in BLOCK.findall(page.read_text(encoding="utf-8")):
        if title.endswith(".py"):
            Path(title).write_text(content, encoding="utf-8")
        elif language == "python" and (title not in PEERS or importlib.util.find_spec(PEERS[title])):
            exec(compile(content, str(page), "exec"), namespace)
        elif language == "python":
            compile(content, str(page), "exec")
        elif language == "sh":
            run_shell(content)
        yield title


def run_shell(block: str) -> None:
    for line in block.replace("\\\n", " ").splitlines():
        if not line.startswith(ELSEWHERE):
            command, *arguments = shlex.split(line)
            assert command == "medviz", f"who runs {line!r}?"
            done = invoke(*arguments)
            assert done.exit_code == 0, f"{line}\n{done.output}"


RUN_BY_OTHER_TESTS = ("plugins.md", "coming-from.md")


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if p.name not in RUN_BY_OTHER_TESTS and BLOCK.search(p.read_text("utf-8"))],
    ids=lambda p: p.name,
)
def test_every_block_runs(page: Path, namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(run(page, namespace))
    assert "nan" not in capsys.readouterr().out.split()


@pytest.mark.parametrize("page", sorted((ROOT / "plugins").glob("*/README.md")), ids=lambda p: p.parent.name)
def test_every_block_of_a_package_beside_the_core_runs(
    page: Path, namespace: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(page.parent.name.replace("-", "_"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "nets.py").write_text(FACTORY.replace("factory", "Net"))
    scan = np.random.default_rng(0).random((16, 15, 12), dtype=np.float32)
    nib.save(nib.Nifti1Image(scan, np.diag([-2.0, 2.0, 2.0, 1.0])), "scan.nii.gz")
    namespace["image"] = medviz.read("scan.nii.gz")
    if importlib.util.find_spec("mlflow"):
        namespace["mlflow"] = importlib.import_module("mlflow")
    namespace |= {"epochs": 2, "train": lambda model: model.train(), "logging": logging}
    assert list(run(page, namespace))


def test_both_calls_give_the_same_map(namespace: dict[str, Any]) -> None:
    compared = set()
    library = ""
    for title in run(ROOT / "docs" / "coming-from.md", namespace):
        library = title if title in PEERS else library
        if title == "medviz" and "theirs" in namespace:
            theirs, ours = (torch.as_tensor(namespace.pop(name)).detach() for name in ("theirs", "ours"))
            assert theirs.shape == ours.shape
            for pair in zip(theirs.flatten(1), ours.flatten(1), strict=True):
                assert torch.corrcoef(torch.stack(pair).double())[0, 1] > 0.9999
            compared.add(library)
    assert compared == {library for library, module in PEERS.items() if importlib.util.find_spec(module)}
    assert "Captum" in compared


def test_the_example_package_installs_and_works(namespace: dict[str, object], tmp_path: Path) -> None:
    page = ROOT / "docs" / "plugins.md"
    found = blocks(page, "toml") + blocks(page, "python")
    files = {title: text for title, text in found if title}
    usage = "\n".join(text for title, text in found if not title)
    source = tmp_path / "source"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_text(content, encoding="utf-8")
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True)
    torch.save(namespace["model"].state_dict(), "weights.pt")  # type: ignore[attr-defined]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import torch, medviz\nfrom test_docs import network\nmodel = network()\n"
        "model.load_state_dict(torch.load('weights.pt', weights_only=True))\nimage = medviz.read('scan.nii.gz')\n"
        f"{usage}\n"
        "x = torch.ones(2, 1, 3, 3)\n"
        "assert not medviz.get_occluder('medviz-example/black')(x, torch.ones(1, 8, 8), torch.zeros(2, 2)).any()\n"
        "open('t.csv', 'w').write('1,2\\n3,4\\n5,6\\n')\n"
        "assert medviz.read('t.csv').data.shape == (1, 3, 2)\n"
        "assert row.check and row.status in ('passed', 'skipped')\n"
        "assert attribution.method == 'squaredgradient' and attribution.provenance['package'] == 'medviz-example'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\S+ at \(\d+, \d+, \d+\)\n", Path("peak.txt").read_text())
    assert Path("projection.png").exists()
    check = subprocess.run(
        [sys.executable, "-m", "medviz", "plugins", "--check"], env=environment, capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout
    assert check.stdout.count("medviz-example") == len(KINDS)


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_builtin_has_its_row(entry: registry.Entry) -> None:
    page = (ROOT / "docs" / "builtins.md").read_text(encoding="utf-8")
    section = page.partition(f"## {entry.kind.capitalize()}\n")[2].partition("\n## ")[0]
    assert f"\n| `{entry.name}` | " in section
    assert f"`{entry.name}`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_docs_list_no_plugin_that_is_not_there() -> None:
    page = (ROOT / "docs" / "builtins.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(entry.name for entry in OWN)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_and_hook_is_on_the_page_of_the_hooks(kind: str) -> None:
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if f"`medviz.{kind}`" in line)
    assert f"::: medviz.hookspecs.{KINDS[kind].__name__}\n" in page + "\n"
    if kind != "wrappers":
        assert all(f"`{hook}`" in row for hook in hooks_of(kind))


def test_every_command_and_option_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name, command in main.commands.items():
        assert f"## medviz {name}\n" in page
        section = page.partition(f"## medviz {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            of_all_or_this = page.partition("\n## ")[0] + section
            shown = parameter.opts[0].upper() if isinstance(parameter, click.Argument) else parameter.opts[0]
            assert re.search(rf"{shown}(?![\w-])", of_all_or_this), f"{name} {shown}"


def test_the_readme_has_one_line_for_each_job_and_ci_runs_them() -> None:
    lines = [line for _, block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert len(lines) == 2
    assert lines[0] == "python -m pip install . && medviz demo"
    assert lines[1].endswith("&& python -m pytest")
    assert [sum(marker in line for line in lines) for marker in re.findall(r'^readme "(.+?)"', ci, re.MULTILINE)] == [
        1,
        1,
    ]
    for requirements in re.findall(r"-r (\S+)", lines[1]):
        assert (ROOT / requirements).is_file()


LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "plugins").rglob("README.md"))]
NAME_OF_A_TEST = re.compile(r"`(tests/\w+\.py)(?:::(\w+))?`")


def anchors(page: Path) -> set[str]:
    """Return what a link may name on a page: its headings, as mkdocs writes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or "." in anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", LINKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for file, name in NAME_OF_A_TEST.findall(page.read_text(encoding="utf-8")):
        start = f"\ndef {name}(" if name else ""
        assert start in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation, page.name


def test_every_plugin_package_is_listed_for_development() -> None:
    listed = set(
        re.findall(r"^-e (plugins/[^\s\[]+)(?:\[test\])?$", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
    )
    assert listed == {f"plugins/{file.parent.name}" for file in (ROOT / "plugins").glob("*/pyproject.toml")}
