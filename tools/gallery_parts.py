"""The parts of the gallery that show occluders and renderers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gallery_cases import Case, batch
from gallery_draw import row, save
from PIL import Image as Picture

import medviz
from medviz import Attribution, registry
from medviz.sinks.encoding import gif_bytes

_HIDDEN = (slice(56, 136), slice(62, 142))  # a window over the mouth of the cup
_SMALL = 120
_DPI = 66


def draw_occluders(case: Case, folder: Path) -> str:
    """Write what the cup looks like behind each occluder; return the Markdown that shows it."""
    names = [entry.name for entry in registry.entries("occluders") if entry.package == "medviz-xai"]
    image = batch(case)[0]
    patch = image[(slice(None), *_HIDDEN)]
    corner = torch.tensor([[each.start for each in _HIDDEN]])
    pictures = [_photograph(image, case)]
    for name in names:
        copy = image.clone()
        copy[(slice(None), *_HIDDEN)] = medviz.get_occluder(f"medviz-xai/{name}")(patch[None], image, corner)[0]
        pictures.append(_photograph(copy, case))
    save(row(pictures, ["as it is", *names]), folder / "occluders.png")
    return f"![One window of a picture behind {', '.join(names)}](images/gallery/occluders.png)"


def draw_renderers(scans: Sequence[Attribution], photograph: Attribution, asked: dict[str, Case], folder: Path) -> str:
    """Write a picture of each renderer; return the Markdown that shows them.

    Args:
        scans: an unsigned and a signed map of the scan.
        photograph: a map of a 2-D image.
        asked: the cases that they were made for.
        folder: where the pictures go.
    """
    window = {"window": asked["lesion"].window}
    shots = (
        ("planes", {**window, "dpi": _DPI}, scans[0]),
        ("planes-contour", {**window, "dpi": _DPI, "contour": True}, scans[0]),
        ("planes-signed", {**window, "dpi": _DPI}, scans[1]),
        ("planes-2d", {"window": asked["cup"].window, "dpi": _DPI}, photograph),
        ("matshow3d", {**window, "dpi": _DPI, "every_n": 2}, scans[0]),
        ("blend", {**window, "size": 192, "fps": 6}, scans[0]),
    )
    lines = []
    for stem, options, attribution in shots:
        name = stem.partition("-")[0]
        rendering: Any = medviz.get_renderer(f"medviz-xai/{name}", **options)(attribution)
        ending = "gif" if len(rendering.frames) > 1 else "png"
        path = folder / f"renderer-{stem}.{ending}"
        if ending == "gif":
            path.write_bytes(gif_bytes(rendering.frames, rendering.fps))
        else:
            save(rendering.frames[0], path)
        shown = ", ".join(f"{key}={value}" for key, value in options.items() if key not in ("dpi", "size"))
        lines.append(f"`{name}` with {shown}:\n\n![{rendering.title}](images/gallery/{path.name})")
    return "\n\n".join(lines)


def _photograph(image: torch.Tensor, case: Case) -> np.ndarray:  # (3, H, W) -> (h, w, 3) uint8
    low, high = case.window or (0.0, 1.0)
    shown = ((image - low) / (high - low)).clamp(0, 1).mul(255).round().byte().movedim(0, -1).numpy()
    small: np.ndarray = np.asarray(Picture.fromarray(shown).resize((_SMALL, _SMALL), Picture.Resampling.LANCZOS))
    return small
