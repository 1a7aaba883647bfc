"""Checks of explainers: whether the map says anything of the network, on networks whose answer is known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from medviz.hookspecs import Explainer
from medviz.testing import cases
from medviz.testing.models import Classifier, Regions, constant, multiplied, randomise
from medviz.testing.outcome import fail, name_of, skip_unless


def check_target(instance: Explainer) -> None:
    """Two classes that look at two places get two maps; without `uses_target`, all targets get one."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    size = (24,) * ndim
    whole = ((0, 24),) * (ndim - 1)
    model = Regions(((0, 12), *whole), ((12, 24), *whole))
    batch = cases.images(ndim, channels=1, batch=1, size=size).abs() + 0.5
    maps = [_scaled(cases.run(explainer, model, batch, target).values) for target in (0, 1)]
    off = float((maps[0] - maps[1]).abs().max())
    if instance.uses_target and off < 0.1:
        fail(
            f"{name_of(instance)} explained class 0, which reads the first half of the image, and class 1, the other",
            "two maps that differ",
            f"the same map but for {off:.2g} of its maximum",
            "Explain `target`, through `probe.scores(target)` or a gradient; or declare `uses_target = False`.",
        )
    if not instance.uses_target and off > 1e-5:
        fail(
            f"{name_of(instance)}, which declares `uses_target = False`, explained two classes",
            "one map",
            f"two that differ by {off:.2g} of the maximum",
            "Remove the declaration: the pipeline reuses the first target's map for all others.",
        )


def check_callable_target(instance: Explainer) -> None:
    """A function of the output that picks class 1 gets the map of class 1."""
    skip_unless(not instance.needs_gap, "it needs the weights of one class, so a function of the output has no map.")
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    model, batch = Classifier(ndim), cases.images(ndim)
    named = cases.run(explainer, model, batch, 1).values
    if (off := cases.distance(cases.run(explainer, model, batch, lambda out: out[:, 1]).values, named)) > 1e-5:
        fail(
            f"{name_of(instance)} explained the function `lambda out: out[:, 1]`",
            "the map of class 1",
            f"another, the difference is {off:.2g} of the maximum",
            "Use `probe.scores(target, …)`, which knows every kind of target, and not `target.classes`.",
        )


def check_constant_model(instance: Explainer) -> None:
    """A network whose score does not depend on the image gets a map of zeros."""
    skip_unless(instance.zero_for_constant, "it declares `zero_for_constant = False`.")
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    values = cases.run(explainer, constant(Classifier(ndim)), cases.images(ndim)).values
    if values.any():
        fail(
            f"{name_of(instance)} explained a network whose last layer is all zeros",
            "a map of zeros, because nothing in the image matters",
            f"values up to {float(values.abs().max()):.2g}",
            "Weight by gradients or by differences of scores; or declare `zero_for_constant = False`, and say why.",
        )


def check_scale(instance: Explainer) -> None:
    """A score that is four times as large has another map, for maps are raw; with `scale_free` it has the same.

    An empty map has no scale, and is left to the other checks.
    """
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    model, batch = Classifier(ndim), cases.images(ndim)
    once = cases.run(explainer, model, batch).values
    off = cases.distance(cases.run(explainer, multiplied(model, 4), batch).values, once)
    did = f"{name_of(instance)} explained a network before and after its score was multiplied by 4"
    if not instance.scale_free and once.any() and off < 1e-3:
        fail(
            did,
            "two maps that differ",
            f"the same map but for {off:.2g} of its maximum",
            "Return raw values: renderers scale, and maps of two images can then be compared. If the method divides "
            "by the score, or does not look at it, declare `scale_free = True`.",
        )
    if instance.scale_free and off > 1e-3:
        fail(
            f"{did}; it declares `scale_free = True`",
            "one map",
            f"two that differ by {off:.2g} of the maximum",
            "Remove the declaration.",
        )


def check_planted_signal(instance: Explainer) -> None:
    """A network that reads one corner only: the map's mass lies there, at least twice its share of voxels; 2-D, 3-D.

    In 2-D two corners are tried, in 3-D three: a flip or a swap of axes that keeps all of them is none.
    """
    explainer = cases.ready(instance)
    for ndim in sorted({cases.axes(instance, n) for n in (2, 3)}):
        for model, batch in _corners(ndim):
            inside = model.inside(0, tuple(batch.shape[2:]))
            mass = cases.run(explainer, model, batch).values.abs().sum((0, 1))
            share, area = float((mass * inside).sum() / mass.sum().clamp(min=1e-30)), float(inside.mean())
            if share < 2 * area:
                fail(
                    f"{name_of(instance)} explained a network that reads one corner, {area:.0%} of a {ndim}-D image",
                    f"at least {2 * area:.0%} of the map's mass there",
                    f"{share:.0%}",
                    "Look at axes that are swapped or flipped, at a resize that shifts, and at too few samples.",
                )


def check_planted_voxel(instance: Explainer) -> None:
    """A network that reads one voxel only, a bright one: the map has at least half of its maximum there; 2-D, 3-D.

    The voxel is so bright that whatever hides it hides about as much of the score. A map of single voxels that is
    shifted by one fails. One of blocks is large in all of a block, and fails in the image's corners, which the shift
    takes out of theirs. One of windows that overlap, or of a coarse grid, may be shifted within its own width unseen.
    An empty map has no place, and is left to the other checks.
    """
    explainer = cases.ready(instance)
    for ndim in sorted({cases.axes(instance, n) for n in (2, 3)}):
        size = (13, 10) if ndim == 2 else (6, 9, 12)
        for voxel in (tuple(extent // 3 for extent in size), (0,) * ndim, tuple(extent - 1 for extent in size)):
            model = Regions(tuple((at, at + 1) for at in voxel), channels=2)
            batch = cases.images(ndim, 2, 1, size=size).abs() + 0.5 + 20 * model.inside(0, size)
            mass = cases.run(explainer, model, batch).values.abs().sum((0, 1))
            if mass[voxel] < 0.5 * mass.max():
                peak = tuple(int(at) for at in np.unravel_index(int(mass.argmax()), size))
                fail(
                    f"{name_of(instance)} explained a network that reads only voxel {voxel} of an image of {size}",
                    "a map whose value there is at least half of its maximum",
                    f"{float(mass[voxel] / mass.max()):.0%} of it; the maximum is at {peak}",
                    "Look at a map that is shifted, at padding that is cut off on one side, and at axes that are "
                    "swapped or flipped.",
                )


def check_direction(instance: Explainer) -> None:
    """Positive values speak for the target: the one bright corner, whose mean is the score, gets positive mass.

    The corner is far above the rest of the image and any usual baseline, so that what is put in its place is darker.
    """
    skip_unless(instance.signed and instance.uses_target, "it has no sign, or none of a target.")
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    for model, batch in _corners(ndim):
        inside = model.inside(0, tuple(batch.shape[2:]))
        total = float((cases.run(explainer, model, batch + 100 * inside).values * inside).sum())
        if total <= 0:
            fail(
                f"{name_of(instance)} explained a network whose score is the mean of one corner, a bright one",
                "positive values there, for what is seen speaks for the target",
                f"values whose sum is {total:.2g}",
                "Turn the sign round: negative values speak against the target.",
            )


def check_channels(instance: Explainer) -> None:
    """The one channel that the network reads makes the map, and gets the mass where there is a map for each channel."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    for channel in (-1, 0):
        model, batch = next(_corners(ndim, channel))
        values = cases.run(explainer, model, batch).values
        mass = values.abs().sum((0, *range(2, values.ndim)))
        share = float(mass[channel if len(mass) > 1 else 0] / mass.sum().clamp(min=1e-30))
        if share < 0.9:
            name = "first" if channel == 0 else "last"
            fail(
                f"{name_of(instance)} explained a network that reads only the {name} of two channels",
                f"a map that is not empty, with at least 90% of its mass in its {name} channel",
                f"{share:.0%}",
                "Keep the channels apart and in their order; a method that mixes them returns one map, K = 1.",
            )


def _corners(ndim: int, reads: int = -1) -> Iterator[tuple[Regions, Tensor]]:
    """Yield networks that read a corner each, of one of two channels, with an image."""
    size, edge = ((32, 32), 10) if ndim == 2 else ((20, 20, 20), 7)
    first, last = (0, edge), (size[0] - edge, size[0])
    flat = ((first, last), (first, first))
    solid = ((first, last, first), (first, last, last), (first, first, last))
    for box in flat if ndim == 2 else solid:
        yield Regions(box, channels=2, reads=reads), cases.images(ndim, 2, 1, size=size).abs() + 0.5


def check_randomised_model(instance: Explainer) -> None:
    """The map depends on what the network has learned: other parameters, another order of its values.

    Source: Adebayo et al. 2018, "Sanity Checks for Saliency Maps", https://arxiv.org/abs/1810.03292, section 3. The
    mean rank correlation over three sets of random parameters stays below 0.9.
    """
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    model, batch = Classifier(ndim), cases.images(ndim, batch=1)
    trained = cases.run(explainer, model, batch).values
    if not trained.any():
        fail(
            f"{name_of(instance)} explained a network whose score depends on all of the image",
            "a map with values other than 0",
            "zeros",
            "Look at what is cut off, and at the sign of the score.",
        )
    random = [cases.run(explainer, randomise(model, seed), batch).values for seed in (11, 12, 13)]
    same = sum(_rank_correlation(trained.abs(), values.abs()) for values in random) / len(random)
    if same >= 0.9:
        fail(
            f"{name_of(instance)} explained a network before and after its parameters were replaced by random ones",
            "maps whose rank correlation is below 0.9",
            f"{same:.2f}",
            "The map shows the image and not the network: use gradients, features or scores of the network.",
        )


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's correlation, ties sharing their mean rank; 0 where one of the two is constant."""
    ranks = torch.stack([_ranks(a.flatten()), _ranks(b.flatten())])
    centred = ranks - ranks.mean(1, keepdim=True)
    size = float(centred.norm(dim=1).prod())
    return float((centred[0] * centred[1]).sum()) / size if size else 0.0


def _ranks(values: Tensor) -> Tensor:
    _, place, count = np.unique(values.numpy(), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return torch.from_numpy((last - (count - 1) / 2)[place.reshape(-1)])


def _scaled(values: Tensor) -> Tensor:
    top = values.abs().max()
    return values / top if top > 0 else values
