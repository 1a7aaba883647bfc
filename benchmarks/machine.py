"""On what, with what and when something was measured."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import Options

PEERS = {"MONAI": "monai", "captum": "captum", "grad-cam": "grad-cam", "torchcam": "torchcam"}
_ALSO = ("torch", "medviz-xai", "numpy", "matplotlib", "pillow", "tensorboard")


def version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def missing(find: Callable[[str], str | None] = version) -> list[str]:
    """Return the peers that are not installed."""
    return [name for name, distribution in PEERS.items() if find(distribution) is None]


def environment(options: Options) -> dict[str, Any]:
    """Return the machine, versions, device, date and threads, as plain data."""
    return {
        "machine": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(options.device) if options.cuda else "CPU",
        "versions": {name: found for name in (*_ALSO, *PEERS.values()) if (found := version(name))},
        "missing": missing(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "quick": options.quick,
    }


def full_precision() -> None:
    """Switch TF32 off, for all alike: results are held to 1e-5."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _processor() -> str:
    """Return the model of the processor; `platform` knows it on some systems only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit that was measured, with a "+" where files had been changed since."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "../medviz", "../benchmarks")
    except OSError:  # no git on this machine
        return "unknown"
    return commit + ("+" if changed else "") if commit else "unknown"
