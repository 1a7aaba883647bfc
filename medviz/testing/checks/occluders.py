"""Checks of occluders: what stands in a hidden window, and how windows are blended."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from medviz.hookspecs import Occluder
from medviz.testing import cases
from medviz.testing.outcome import TRACE, ConformanceError, describe_error, fail, name_of, skip_unless
from medviz.windows import cut_out


@attrs.frozen(eq=False)
class _Case:
    """Windows of one image: their content `(M, C, *mask)`, the image `(C, *S)`, the first voxels `(M, nd)`."""

    name: str
    patches: Tensor
    image: Tensor
    corners: Tensor


def _case(name: str, image: Tensor, mask: tuple[int, ...]) -> _Case:
    extents = image.shape[1:]
    last = [s - m for s, m in zip(extents, mask, strict=True)]
    corners = torch.tensor([[0] * len(mask), [n // 2 for n in last], last], device="cpu")
    return _Case(name, cut_out(image, corners, mask), image, corners)


def _cases() -> Iterator[_Case]:
    flat, solid = cases.images(2, 2, 1)[0], cases.images(3, 2, 1)[0]
    yield _case("2-D windows of 4 by 3 voxels", flat, (4, 3))
    yield _case("3-D windows of 3 by 2 by 5 voxels", solid, (3, 2, 5))
    yield _case("windows of 1 voxel", flat, (1, 1))
    yield _case("a window as large as the image", flat, tuple(flat.shape[1:]))
    yield _case("an image of one value", torch.full_like(flat, 2.0), (4, 3))
    yield _case("an image of zeros", torch.zeros_like(flat), (4, 3))


def _hidden(occluder: Occluder, case: _Case) -> Tensor:
    try:
        return occluder(case.patches, case.image, case.corners)
    except Exception as err:
        raise ConformanceError(
            f"{name_of(occluder)} was asked to hide {case.name}: expected windows {tuple(case.patches.shape)}; got "
            f"{describe_error(err)}. {TRACE}"
        ) from err


def check_shape(instance: Occluder) -> None:
    """Hidden windows have the shape, the dtype and the device of the clean ones, in 2-D and 3-D, of any size."""
    for case in _cases():
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            made = attrs.evolve(case, patches=case.patches.to(dtype), image=case.image.to(dtype))
            hidden = _hidden(instance, made)
            if hidden.shape != made.patches.shape or hidden.dtype != dtype or hidden.device != made.patches.device:
                fail(
                    f"{name_of(instance)} hid {case.name} of {dtype}",
                    f"{dtype} {tuple(made.patches.shape)}",
                    f"{hidden.dtype} {tuple(hidden.shape)} on {hidden.device}",
                    "Return as many windows as were given, with `.to(patches)`.",
                )


def check_finite(instance: Occluder) -> None:
    """No NaN or infinity, also for images of one value, of zeros, and for windows of one voxel."""
    for case in _cases():
        if not torch.isfinite(_hidden(instance, case)).all():
            fail(
                f"{name_of(instance)} hid {case.name}",
                "finite values",
                "NaN or infinity",
                "Look for a division by a deviation or a range that can be 0.",
            )


def check_only_the_patch(instance: Occluder) -> None:
    """Nothing but the returned windows is changed: not the image, not the clean windows, not the corners."""
    for case in _cases():
        made = attrs.evolve(case, patches=case.patches.clone(), image=case.image.clone(), corners=case.corners.clone())
        _hidden(instance, made)
        for part in ("patches", "image", "corners"):
            if not torch.equal(getattr(made, part), getattr(case, part)):
                fail(
                    f"{name_of(instance)} hid {case.name}",
                    f"`{part}` as it was before",
                    "other values in it",
                    "Work on a copy: `patches.clone()`.",
                )


def check_hides(instance: Occluder) -> None:
    """A quarter of what is hidden, at least, is no longer as it was: else the map is empty, in 2-D or in 3-D."""
    for case in itertools.islice(_cases(), 2):
        hidden = _hidden(instance, case)
        for i in range(len(hidden)):
            share = float((hidden[i] != case.patches[i]).any(0).float().mean())
            if share < 0.25:
                fail(
                    f"{name_of(instance)} hid {case.name}, full of noise",
                    "other values in at least a quarter of the voxels",
                    f"other values in {share:.0%} of them",
                    "Look at which part of the window is replaced.",
                )


def check_batch(instance: Occluder) -> None:
    """Several windows at once are hidden as one by one: it must not matter how many fit into memory."""
    for case in _cases():
        together = _hidden(instance, case)
        for i in range(len(together)):
            one = attrs.evolve(case, patches=case.patches[i : i + 1], corners=case.corners[i : i + 1])
            if (off := cases.distance(together[i : i + 1], _hidden(instance, one))) > 1e-5:
                fail(
                    f"{name_of(instance)} hid {len(together)} windows at once, {case.name}",
                    f"window {i} hidden as when it comes alone",
                    f"a difference of {off:.2g} of the maximum",
                    "Take means over one window or over the image, and one field of random numbers for all windows.",
                )


def check_repeatable(instance: Occluder) -> None:
    """The same window is hidden and weighted the same way every time, whatever the global random generators say."""
    for case in itertools.islice(_cases(), 2):
        made, untouched = [], True
        for seed in (1, 2):
            with cases.seeded(seed):
                before = torch.get_rng_state()
                made.append((_hidden(instance, case), _weights(instance, case)))
                untouched = untouched and torch.equal(before, torch.get_rng_state())
        same = all(map(torch.equal, *made))
        if not untouched or not same:
            fail(
                f"{name_of(instance)} hid the same windows twice, {case.name}, and was asked for their weights",
                "the same values twice, and the global random generators as they were",
                "other values" if not same else "another state of the generators",
                "Draw from `torch.Generator().manual_seed(self.seed)`.",
            )


def _weights(occluder: Occluder, case: _Case) -> Tensor:
    try:
        return occluder.weight(tuple(case.patches.shape[2:]))
    except Exception:
        return case.patches.new_zeros(())  # `check_weight` says what is wrong


def check_stochastic(instance: Occluder) -> None:
    """A stochastic occluder has a `seed`, and another seed gives other values."""
    skip_unless(instance.stochastic, "it declares no random numbers.")
    case = next(_cases())
    seeds = (1, 2) if cases.has(instance, "seed") else ()
    made = [_hidden(cases.changed(instance, seed=seed), case) for seed in seeds]
    if not made or torch.equal(made[0], made[1]):
        fail(
            f"{name_of(instance)}, which declares `stochastic`, hid the same windows with two seeds",
            "other values",
            "the same values" if made else "no parameter `seed`",
            "Add `seed: int = 0` and draw from it; if there is no chance in it, do not declare it.",
        )


def check_weight(instance: Occluder) -> None:
    """The weights that blend overlapping windows are finite, not negative and not all zero, for windows of any size."""
    for size in ((4, 3), (5, 5), (1, 1), (2, 1), (3, 2, 5), (1, 1, 1), (2, 2, 2)):
        try:
            weight = instance.weight(size)
            good = weight.shape == size and bool(torch.isfinite(weight).all() and (weight >= 0).all() and weight.any())
            got = "" if good else f"{tuple(weight.shape)}, from {float(weight.min()):g} to {float(weight.max()):g}"
        except Exception as err:
            got = describe_error(err)
        if got:
            fail(
                f"{name_of(instance)} was asked for the weights of a window of {size} voxels",
                f"a finite tensor {size}, ≥ 0 and not all zero",
                got,
                "Return such a tensor from `blend_weight`, or leave the hook out: then all voxels count alike.",
            )
