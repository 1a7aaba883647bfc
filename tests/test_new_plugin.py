"""`medviz new-plugin` writes packages that install and pass the kit as they are, one of each kind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_cli import invoke

import medviz
from medviz import scaffold
from medviz.hookspecs import KINDS

if sys.version_info >= (3, 11):
    import tomllib

PACKAGES = {f"made-{kind}": kind for kind in scaffold.SINGULAR} | {"gradcam": "explainer"}


def run(*arguments: str) -> str:
    done = invoke("new-plugin", *arguments)
    assert done.exit_code == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of each kind, one of them under the name of a built-in, all installed into `target`."""
    folder = tmp_path_factory.mktemp("new")
    for name, kind in PACKAGES.items():
        run(name, "--kind", kind, "--folder", str(folder))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    sources = [str(folder / f"medviz-{name}") for name in PACKAGES]
    done = subprocess.run([*pip, "--target", str(folder / "target"), *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def python(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder / "target"), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


def test_every_package_passes_its_tests_as_it_is(folder: Path) -> None:
    tests = [f"medviz-{name}" for name in PACKAGES]
    done = python(folder, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-rA", *tests)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.findall(r"^PASSED \S*test_medviz_(\w+)\.py::(\w+)", done.stdout, re.MULTILINE)
    for name in PACKAGES:
        functions = [function for module, function in passed if module == name.replace("-", "_")]
        assert functions.count("test_conformance") >= 3, name
        assert set(functions) > {"test_conformance"}, name


def test_every_package_is_listed_and_loads(folder: Path) -> None:
    done = python(folder, "-m", "medviz", "plugins", "--check")
    rows = {tuple(line.split()) for line in done.stdout.splitlines()}
    for name, kind in PACKAGES.items():
        plain = name.replace("-", "")
        assert (plain, scaffold.SINGULAR[kind], f"medviz-{name}", "0.1.0", "ok") in rows


@pytest.mark.parametrize("kind", scaffold.SINGULAR)
def test_the_files_are_filled_in(kind: str) -> None:
    package = scaffold.Package.of("my-thing", kind)
    files = package.files()
    assert sorted(files) == ["README.md", "medviz_my_thing.py", "pyproject.toml", "tests/test_medviz_my_thing.py"]
    for path, text in files.items():
        assert not re.search(r"\$\w", text), path
        assert text.endswith("\n"), path
        if path.endswith(".py"):
            compile(text, path, "exec")
            assert max(map(len, text.splitlines())) <= 120
    assert "class MyThing(" in files["medviz_my_thing.py"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the standard library reads TOML from Python 3.11 on")
@pytest.mark.parametrize("kind", scaffold.SINGULAR)
def test_the_project_file_says_what_is_needed(kind: str) -> None:
    project = tomllib.loads(scaffold.Package.of("my-thing", kind).files()["pyproject.toml"])["project"]
    assert project["name"] == "medviz-my-thing"
    assert project["dependencies"] == [f"medviz-xai>={medviz.__version__}"]
    assert project["entry-points"] == {f"medviz.{scaffold.SINGULAR[kind]}": {"mything": "medviz_my_thing:MyThing"}}


def test_every_kind_has_its_templates() -> None:
    assert sorted(scaffold.SINGULAR.values()) == sorted(KINDS)


@pytest.mark.parametrize(
    ("given", "package", "name", "cls"),
    [
        ("mymethod", "medviz-mymethod", "mymethod", "Mymethod"),
        ("my-method", "medviz-my-method", "mymethod", "MyMethod"),
        ("medviz-my_method", "medviz-my-method", "mymethod", "MyMethod"),
        ("Cam2", "medviz-cam2", "cam2", "Cam2"),
        ("explainer", "medviz-explainer", "explainer", "ExplainerPlugin"),
        ("tensor", "medviz-tensor", "tensor", "TensorPlugin"),
    ],
)
def test_names(given: str, package: str, name: str, cls: str) -> None:
    made = scaffold.Package.of(given, "explainer")
    assert (made.package, made.name, made.cls) == (package, name, cls)


@pytest.mark.parametrize(
    "name", ["", "../up", "2nd", "a b", "a--b", "-a", "medviz-", "ä", "a.b", "xai", "medviz-xai", "none", "True"]
)
def test_names_that_no_package_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be the name of a plugin|is medviz itself|means a value"):
        scaffold.write_package(name, "explainer", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_kind_lists_the_kinds() -> None:
    with pytest.raises(ValueError, match="`kind` is 'explainers'; expected one of explainer, occluder"):
        scaffold.write_package("a", "explainers")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    place = tmp_path / "medviz-mine"
    place.mkdir()
    (place / "work.py").write_text("precious")
    done = invoke("new-plugin", "mine", "--folder", str(tmp_path))
    assert done.exit_code == 2
    assert "exists already; choose another name or folder" in done.stderr
    assert [path.name for path in place.iterdir()] == ["work.py"]


def test_the_command_says_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = run("my-own")
    assert '\n  python -m pip install -e "./medviz-my-own[test]"\n  python -m pytest medviz-my-own\n' in said
    assert Path("medviz-my-own/medviz_my_own.py").is_file()
    elsewhere = run("my-own", "--folder", str(tmp_path / "a" / "b"))
    assert f'install -e "{tmp_path / "a" / "b" / "medviz-my-own"}[test]"' in elsewhere


def test_a_name_that_a_builtin_has_is_said(tmp_path: Path) -> None:
    said = run("planes", "--kind", "renderer", "--folder", str(tmp_path))
    assert "'planes' is a name of medviz-xai too" in said
    assert "MEDVIZ_PREFER=medviz-planes" in said
    assert "is a name of" not in run("planes", "--kind", "explainer", "--folder", str(tmp_path / "other"))


ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the standard library reads TOML from Python 3.11 on")
@pytest.mark.parametrize("file", sorted((ROOT / "plugins").glob("*/pyproject.toml")), ids=lambda file: file.parent.name)
def test_every_plugin_of_the_packages_beside_has_its_page(file: Path) -> None:
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    assert project["name"] == file.parent.name
    assert f"({file.parent.name}/README.md)" in (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
    page = (file.parent / "README.md").read_text(encoding="utf-8")
    names = [name for points in project["entry-points"].values() for name in points]
    assert names
    assert [name for name in names if f"`{name}`" not in page and f'"{name}"' not in page] == []


def test_the_command_imports_no_network_library(tmp_path: Path) -> None:
    code = (
        "import sys; from medviz.cli import main; main(['new-plugin', 'a'], standalone_mode=False);"
        "print({'torch', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
