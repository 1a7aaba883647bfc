"""Checks of renderers: pictures in the right shape, that show what the map holds and nothing else."""

from __future__ import annotations

import sys
from typing import Any

import attrs
import numpy as np
import torch

from medviz.attribution import Attribution
from medviz.hookspecs import Renderer
from medviz.rendering import Rendering
from medviz.testing import cases
from medviz.testing.outcome import TRACE, ConformanceError, describe_error, fail, name_of

_AFFINE = np.diag([-2.0, 1.0, 1.5, 1.0])


def drawn(renderer: Renderer, attribution: Attribution, what: str) -> Rendering:
    """Draw, and turn whatever error comes into a `ConformanceError` that says what was asked."""
    try:
        rendering: Any = renderer(attribution)
    except Exception as err:
        raise ConformanceError(
            f"{name_of(renderer)} was asked to draw {what}: expected a picture; got {describe_error(err)}. {TRACE}"
        ) from err
    if not isinstance(rendering, Rendering):
        raise ConformanceError(
            f"{name_of(renderer)} was asked to draw {what}: expected one medviz.Rendering; got "
            f"{type(rendering).__name__}. Leave `__call__` as the base class has it."
        )
    return rendering


def check_frames(instance: Renderer) -> None:
    """Frames `(T, H, W, 3)` uint8, a title, a frame rate and what was drawn; 2-D, 3-D, with affine or without."""
    for ndim in (2, 3):
        for affine in (None, _AFFINE):
            attribution = cases.attribution(ndim, affine=affine)
            what = f"a {ndim}-D map {'without' if affine is None else 'with'} an affine"
            rendering = drawn(instance, attribution, what)
            frames = rendering.frames
            got = ""
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
                got = f"frames {frames.dtype} {frames.shape}"
            elif not isinstance(rendering.title, str) or not rendering.title.strip():
                got = f"the title {rendering.title!r}"
            elif not 0 < rendering.fps < float("inf"):
                got = f"{rendering.fps!r} frames per second"
            elif rendering.attribution is None:
                got = "no `attribution`"
            if got:
                fail(
                    f"{name_of(instance)} drew {what}",
                    "frames (T, H, W, 3) uint8, a title, a frame rate and the attribution that was drawn",
                    got,
                    "Return medviz.Rendering(frames, title=…, attribution=attribution): sinks name files after it.",
                )


def check_aspect(instance: Renderer) -> None:
    """A box of 8 × 24 voxels is drawn three times as wide as high, and square where the voxels are 3 × 1 mm."""
    for affine, expected in ((None, 3.0), (np.diag([3.0, 1.0, 1.0, 1.0]), 1.0)):
        values = torch.zeros(2, 1, 24, 36, device="cpu")
        values[:, :, 2, 2] = 1.0  # the peak stays where it is, so that only the box makes a difference
        values[1, :, 8:16, 6:30] = 0.9
        both = cases.attribution(batch=2, values=values, affine=affine)
        pictures = [drawn(instance, _alike(both, i), "a map of 24 by 36 voxels").frames for i in (0, 1)]
        ratio = _ratio(differences(*pictures))
        if not expected / 1.2 <= ratio <= expected * 1.2:
            fail(
                f"{name_of(instance)} drew a box of 8 by 24 voxels{'' if affine is None else ' of 3 by 1 mm'}",
                f"a box whose height and width are as 1 : {expected:g}",
                f"1 : {ratio:.2g}" if ratio else "no box that differs from a map without it",
                "Pixels are square: resample by `attribution.spacing`, and keep the number of pixels for each mm.",
            )


def _alike(both: Attribution, i: int) -> Attribution:
    """Return map i over image 0, with the same score: whatever is drawn beside the map is the same too."""
    return attrs.evolve(both[0], values=both[i].values)


def differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return in which pixels `(H, W)` two pictures or movies differ much; in none where their sizes do."""
    if one.shape != other.shape:
        return np.zeros((1, 1), bool)
    off = np.abs(one.astype(int) - other).max((0, -1))
    much: np.ndarray = (off > 0) & (off > off.max() / 2)
    return much


def _ratio(differ: np.ndarray) -> float:
    """Return the width of what differs divided by its height; 0 where nothing does."""
    if not differ.any():
        return 0.0
    height, width = (np.ptp(where) + 1 for where in np.nonzero(differ))
    return float(width / height)


def check_empty_map(instance: Renderer) -> None:
    """A map of zeros is drawn, and does not look like one in which everything is important; so is a constant map."""
    for ndim in (2, 3):
        blob = cases.attribution(ndim)
        zeros = drawn(instance, _with(blob, torch.zeros_like(blob.values)), f"a {ndim}-D map of zeros")
        ones = drawn(instance, _with(blob, torch.ones_like(blob.values)), f"a {ndim}-D map of ones")
        if zeros.frames.shape == ones.frames.shape and np.array_equal(zeros.frames, ones.frames):
            fail(
                f"{name_of(instance)} drew a {ndim}-D map of zeros and one of ones",
                "two pictures that differ: nothing matters, everything matters",
                "the same picture twice",
                "Divide by the maximum where it is above 0 (`attribution.normalized()`), and never subtract the "
                "minimum.",
            )


def check_signed_map(instance: Renderer) -> None:
    """In a signed map, for and against look different."""
    attribution = cases.attribution(signed=True)
    maps = (attribution.values, -attribution.values, attribution.values.abs())
    pictures = [drawn(instance, _with(attribution, values), "a signed map").frames for values in maps]
    if any(_same(pictures[0], other) for other in pictures[1:]):
        fail(
            f"{name_of(instance)} drew a signed map, its negative and its magnitude",
            "three pictures that differ",
            "the same picture for two of them",
            "Where `attribution.signed`, give both signs a colour, with zero in the middle.",
        )


def check_shows_the_map(instance: Renderer) -> None:
    """Two maps of one image give two pictures, and the same map the same picture."""
    attribution = cases.attribution(3)
    flipped = _with(attribution, attribution.values.flip(-1))
    first, again, other = (drawn(instance, a, "a 3-D map") for a in (attribution, attribution, flipped))
    if _same(first.frames, other.frames) or not _same(first.frames, again.frames):
        fail(
            f"{name_of(instance)} drew a map twice, and once flipped",
            "the same picture twice, and another one",
            "the same for the flipped map" if _same(first.frames, other.frames) else "two pictures of one map",
            "Draw `attribution.values`, without chance.",
        )


def check_nan_refused(instance: Renderer) -> None:
    """NaN and infinity are a ValueError: a picture would hide them."""
    for bad in (torch.nan, torch.inf):
        attribution = cases.attribution()
        values = attribution.values.clone()
        values[0, 0, 0, 0] = bad
        try:
            instance(_with(attribution, values))
            got = "a picture"
        except ValueError as err:
            got = "" if len(str(err).split()) > 2 else f"a ValueError with the message {str(err)!r}"
        except Exception as err:
            got = describe_error(err)
        if got:
            fail(
                f"{name_of(instance)} was given a map with the value {bad}",
                "a ValueError that says so",
                got,
                "Check `torch.isfinite(attribution.values).all()` first.",
            )


def check_leaves_nothing(instance: Renderer) -> None:
    """The attribution is as it was, no figure is left open, and the global random generators are as they were."""
    attribution = cases.attribution(3, signed=True, affine=_AFFINE)
    values, image = attribution.values.clone(), attribution.image.clone()
    with cases.seeded(0):
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
        figures = _figures()
        drawn(instance, attribution, "a signed 3-D map")
        same_random = torch.equal(before[0], torch.get_rng_state())
        same_random = same_random and np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    left = {
        "other values in the attribution": not torch.equal(values, attribution.values),
        "another image in the attribution": not torch.equal(image, attribution.image),
        "a pyplot figure that is still open": _figures() != figures,
        "another state of the global random generators": not same_random,
    }
    for got, wrong in left.items():
        if wrong:
            fail(
                f"{name_of(instance)} drew a map",
                "nothing changed but what it returns",
                got,
                "Work on copies, and make figures with matplotlib.figure.Figure, not with pyplot.",
            )


def check_batch(instance: Renderer) -> None:
    """Several images give one rendering each, the same as each alone."""
    attribution = cases.attribution(batch=2)
    together: Any = instance(attribution)
    alone = [drawn(instance, attribution[i], "one of two maps") for i in (0, 1)]
    good = isinstance(together, list) and len(together) == 2
    if not good or not all(_same(a.frames, b.frames) for a, b in zip(together, alone, strict=True)):
        fail(
            f"{name_of(instance)} drew an attribution of two images",
            "a list of two renderings, each as of the image alone",
            "other pictures" if good else type(together).__name__,
            "Leave `__call__` as the base class has it, and keep nothing from call to call.",
        )


def _with(attribution: Attribution, values: torch.Tensor) -> Attribution:
    return attrs.evolve(attribution, values=values)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b))


def _figures() -> list[int]:
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    return [] if pyplot is None else list(pyplot.get_fignums())
