"""What is measured: one file for each subject, with a function `cases(options)`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from benchmarks.options import Options
from benchmarks.rows import Case

TITLES = {
    "gradcam": "Grad-CAM",
    "shared": "Many explanations in one pass",
    "occlusion": "Occlusion",
    "smoothgrad": "SmoothGrad",
    "cam": "CAM",
    "blend": "Blending",
    "gif": "GIF to TensorBoard",
    "startup": "Start-up",
    "memory": "Extra memory",
    "edges": "Time and memory over the volume's edge",
}
CPU_ONLY = frozenset({"gif", "startup"})


def names(options: Options) -> list[str]:
    """Return the subjects that a device has a part in."""
    return [name for name in TITLES if not (options.cuda and name in CPU_ONLY)]


def cases(name: str, options: Options) -> Iterator[Case]:
    """Return what one subject measures."""
    found: Iterator[Case] = importlib.import_module(f"benchmarks.subjects.{name}").cases(options)
    return found
