"""One palette of 256 colours for a whole movie, in which grey stays grey."""

from __future__ import annotations

import numpy as np

_COLOURS = 256
_GREYS = 64
_SAMPLE = 1 << 18


def shared_palette(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the palette and the frames in its terms.

    Up to 256 colours are kept exactly. Beyond that, anatomy must not take on a tint: grey pixels get at least 64 greys
    of their own, if there are as many, and what is left goes to the other colours, chosen to cover their whole range
    (Pillow's maximum coverage, then k-means), so that a small hot spot keeps its colours beside any background.

    Args:
        frames: `(T, H, W, 3)` uint8, or `(T, H, W)`: grey, all 256 exact.

    Returns:
        The palette (256, 3) uint8, unused entries 0, and the indices into it `(T, H, W)` uint8.
    """
    if frames.ndim == 3:
        return np.repeat(np.arange(_COLOURS, dtype=np.uint8)[:, None], 3, 1), frames
    seen = np.zeros(1 << 24, bool)
    for frame in frames:
        seen[_codes(frame)] = True
    codes = np.flatnonzero(seen)
    colours = _decode(codes)
    palette = colours if len(colours) <= _COLOURS else _reduce(colours)
    lookup = np.zeros(1 << 24, np.uint8)
    lookup[codes] = _nearest(colours, palette)
    full = np.zeros((_COLOURS, 3), np.uint8)
    full[: len(palette)] = palette
    return full, np.stack([lookup[_codes(frame)] for frame in frames])


def _codes(frame: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(frame.astype(np.int32), -1, 0)
    codes: np.ndarray = red << 16 | green << 8 | blue
    return codes


def _decode(codes: np.ndarray) -> np.ndarray:
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1).astype(np.uint8)


def _is_grey(colours: np.ndarray) -> np.ndarray:
    grey: np.ndarray = np.ptp(colours, axis=1) == 0
    return grey


def _reduce(colours: np.ndarray) -> np.ndarray:
    """Return at most 256 colours for more than 256: greys of their own, then the rest."""
    from PIL import Image

    grey, rest = colours[_is_grey(colours)], colours[~_is_grey(colours)]
    share = max(_GREYS, _COLOURS - len(rest))
    if len(grey) > share:
        grey = grey[np.linspace(0, len(grey) - 1, share).round().astype(int)]
    rest = rest[:: max(1, len(rest) // _SAMPLE)]
    picture = Image.fromarray(rest[None]).quantize(_COLOURS - len(grey), Image.Quantize.MAXCOVERAGE, kmeans=1)
    flat = picture.getpalette() or []
    return np.concatenate([grey, np.array(flat, np.uint8).reshape(-1, 3)[: _COLOURS - len(grey)]])


def _nearest(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return the index of the nearest palette entry (squared RGB distance); greys look among greys only."""
    entries = palette.astype(np.float32)
    squares = (entries**2).sum(1)
    tinted = ~_is_grey(palette)
    nearest = np.empty(len(colours), np.uint8)
    for start in range(0, len(colours), 1 << 16):
        part = colours[start : start + (1 << 16)]
        distance = squares - 2 * part.astype(np.float32) @ entries.T
        distance[np.ix_(_is_grey(part), tinted)] = np.inf
        nearest[start : start + len(part)] = distance.argmin(1)
    return nearest
