"""The command line as a whole: help, status, the table of plugins, and the installed program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from helpers_cli import invoke
from helpers_distributions import EXPLAINER, build_wheel, install

import medviz
from medviz import registry
from medviz.cli import main
from medviz.cli.shell import describe


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of one sound and one broken plugin."""
    folder = tmp_path_factory.mktemp("plugins")
    files = {"mv_cli_sound.py": EXPLAINER, "mv_cli_broken.py": "import no_such_library\n"}
    lines = [("explainers", "bright", "mv_cli_sound:Brightness"), ("sinks", "bad", "mv_cli_broken:Bad")]
    return install(folder / "target", build_wheel(folder, "medviz-mixed", files, lines, "4.5"))


def program(*arguments: str, target: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program that the installed package put beside this Python."""
    command = shutil.which("medviz", path=str(Path(sys.executable).parent))
    assert command, "the package is not installed for this Python"
    environment = {**os.environ, "PYTHONPATH": str(target or "")}
    return subprocess.run([command, *arguments], capture_output=True, text=True, env=environment)


def test_the_program_lists_what_is_installed_and_imports_nothing(target: Path) -> None:
    done = program("plugins", target=target)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert rows[0] == ["name", "kind", "package", "version"]
    assert ["bright", "explainers", "medviz-mixed", "4.5"] in rows
    assert ["bad", "sinks", "medviz-mixed", "4.5"] in rows
    assert ["gradcam", "explainers", "medviz-xai", medviz.__version__] in rows
    assert len(rows) == 1 + len(registry.entries()) + 2


def test_check_shows_the_broken_one_and_harms_no_other(target: Path) -> None:
    done = program("plugins", "--check", target=target)
    rows = {(row[0], row[2]): row[-1] for row in map(str.split, done.stdout.splitlines()) if len(row) == 5}
    assert done.returncode == 1
    assert rows["bad", "medviz-mixed"] == "broken"
    assert {state for plugin, state in rows.items() if plugin != ("bad", "medviz-mixed")} == {"check", "ok"}
    assert "of medviz-mixed 4.5 (mv_cli_broken:Bad) is broken: ModuleNotFoundError" in done.stdout
    assert "Traceback" not in done.stderr


def test_check_says_that_a_preference_cannot_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVIZ_PREFER", "nobody")
    done = invoke("plugins", "--check", "--kind", "sinks")
    assert done.exit_code == 1
    assert "MEDVIZ_PREFER cannot be followed: the preferred package 'nobody' offers no plugins" in done.stdout


def test_check_of_sound_plugins_ends_well() -> None:
    done = invoke("plugins", "--check", "--kind", "sinks")
    assert done.exit_code == 0, done.output
    assert {line.split()[-1] for line in done.stdout.splitlines()[1:]} == {"ok"}


def test_a_kind_without_plugins_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entries", lambda kind=None: [])
    assert "no plugins are installed" in invoke("plugins").stdout


def test_an_error_of_the_program_is_one_line_with_status_two() -> None:
    done = program("explain", "--image", "x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("medviz: error: Missing option '--model'.")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("plugins", "--kind", "sink"), ("plugins", "extra"), ("--nonsense",)]
)
def test_wrong_usage_is_one_line_with_status_two(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("medviz: error: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert all(f"\n  {command} " in result.stdout for command in ("demo", "explain", "layers", "plugins"))


def test_the_version_is_the_installed_one() -> None:
    assert invoke("--version").stdout.strip() == f"medviz, version {medviz.__version__}"


def test_without_standalone_mode_errors_are_raised() -> None:
    with pytest.raises(click.UsageError):
        main.main(["plugins", "extra"], standalone_mode=False)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (KeyError("x"), "KeyError: 'x' (--debug shows where)"),
        (ValueError(), "ValueError: (--debug shows where)"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "No such file or directory: 'a.txt'"),
        (PermissionError("not yours"), "not yours"),
        (RuntimeError("shapes"), "RuntimeError: shapes (--debug shows where)"),
    ],
)
def test_errors_become_one_line(error: Exception, line: str) -> None:
    assert describe(error) == line


def test_the_demo_hands_its_options_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from medviz.demo import run

    asked = []
    monkeypatch.setattr(run, "run_demo", lambda folder, **options: asked.append((folder, options["overwrite"])))
    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["--output", "x"], ["--output", "x", "--overwrite"], ["--no-overwrite"]):
        assert invoke("demo", *arguments).exit_code == 0
    assert asked == [
        (Path("medviz-demo"), True),
        (Path("x"), False),
        (Path("x"), True),
        (Path("medviz-demo"), False),
    ]
