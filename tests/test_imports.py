"""What is cheap stays cheap: heavy libraries are imported only by what needs them."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "numpy",
    "matplotlib",
    "tensorboard",
    "tensorboardX",
    "nibabel",
    "imageio",
    "PIL",
    "safetensors",
    "tqdm",
}


def imported_by(*command: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter imports, from its own account of it."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_the_account_of_imports_is_complete() -> None:
    assert {"numpy", "torch"} <= imported_by("-c", "import medviz; medviz.Attribution")


@pytest.mark.parametrize(
    "command",
    [
        ("-c", "import medviz"),
        ("-c", "import medviz; medviz.names('explainers'); medviz.prefer('medviz-xai')"),
        ("-c", "import medviz; medviz.Explainer, medviz.hookimpl, medviz.field, medviz.PluginError; dir(medviz)"),
        ("-m", "medviz", "--help"),
        ("-m", "medviz", "--version"),
        ("-m", "medviz", "plugins"),
        ("-m", "medviz", "explain", "--help"),
        ("-m", "medviz", "demo", "--help"),
    ],
    ids=lambda command: " ".join(command[1:]),
)
def test_nothing_heavy_is_imported(command: tuple[str, ...]) -> None:
    assert imported_by(*command) & HEAVY == set()


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import medviz

    with pytest.raises(AttributeError, match="module 'medviz' has no attribute 'Explaner'"):
        _ = medviz.Explaner
