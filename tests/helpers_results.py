"""Small attributions and a renderer, so that the tests of sinks need neither a network nor a real renderer."""

from __future__ import annotations

import attrs
import numpy as np
import torch

from medviz.attribution import Attribution
from medviz.hookspecs import Renderer, hookimpl
from medviz.rendering import Rendering


@attrs.frozen(eq=False)
class Tiny(Renderer):
    """Draw `frames` frames in the colour of the largest value; `seen` lists what was drawn."""

    frames: int = 1
    fps: float = 10.0

    @hookimpl
    def render(self, attribution: Attribution) -> Rendering:
        frames = np.zeros((self.frames, 6, 8, 3), np.uint8)
        frames[..., 0] = int(attribution.values.abs().max() * 10)
        frames[..., 1] = 40 * np.arange(self.frames, dtype=np.uint8)[:, None, None]
        return Rendering(frames, fps=self.fps, title="tiny", attribution=attribution)


def attribution(batch: int = 1, maps: int = 1, grid: tuple[int, ...] = (4, 5, 6), **changes: object) -> Attribution:
    """Return an attribution whose values are 1, 2, 3, … for the first, second, third image, times a ramp."""
    ramp = torch.arange(1, maps * int(np.prod(grid)) + 1, dtype=torch.float32).reshape(1, maps, *grid)
    values = ramp / ramp.max() * torch.arange(1.0, batch + 1).reshape(-1, *[1] * (len(grid) + 1))
    given = {
        "values": values,
        "image": torch.zeros(batch, max(maps, 1), *grid),
        "target": "class 2",
        "provenance": {"method": "gradcam", "explainer": "gradcam:layer=layer4"},
    }
    return Attribution(**{**given, **changes})  # type: ignore[arg-type]


def colourful_movie(count: int = 12, size: int = 64) -> np.ndarray:
    """Return grey anatomy with a coloured hot spot that moves: more than 256 colours, (T, H, W, 3) uint8."""
    y, x = np.mgrid[:size, :size]
    grey = ((np.sin(x / 9) * np.cos(y / 7) + 1) * 127.5)[..., None]
    movie = []
    for t in range(count):
        heat = np.exp(-((x - 10 - 4 * t) ** 2 + (y - size / 2) ** 2) / 200)[..., None]
        jet = np.concatenate([np.clip(1.5 - abs(4 * heat - k), 0, 1) for k in (3, 2, 1)], -1) * 255
        weight = 0.6 * (heat > 0.1) * heat
        movie.append(grey * (1 - weight) + jet * weight)
    return np.stack(movie).round().astype(np.uint8)
