"""Checks of explainers: the same map for the same question, whatever is asked beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import medviz
from medviz.attribution import Attribution
from medviz.hookspecs import Explainer
from medviz.testing import cases
from medviz.testing.models import Classifier
from medviz.testing.outcome import fail, name_of, skip_unless

_TOLERANCE = 1e-5


def check_batch(instance: Explainer) -> None:
    """A batch gives the maps that its images give one by one, with one class for all and with one for each."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    model, batch = Classifier(ndim), cases.images(ndim, batch=3)
    batch[1] *= 5  # an explainer that takes a range or a mean over the batch is seen
    for classes in ([0, 0, 0], [2, 0, 1]):
        together = cases.run(explainer, model, batch, torch.tensor(classes, device="cpu")).values
        singles = [cases.run(explainer, model, batch[i : i + 1], c).values for i, c in enumerate(classes)]
        for i, single in enumerate(singles):
            _compare(
                f"{name_of(instance)} explained 3 images in one batch, classes {classes}",
                f"for image {i} the map that it gets alone",
                together[i : i + 1],
                single,
                "Keep the images apart: sums, means, ranges and random numbers belong to one image.",
            )


def check_permutation(instance: Explainer) -> None:
    """The same images in another order give the same maps in that order."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    model, batch, order = Classifier(ndim), cases.images(ndim, batch=3), [2, 0, 1]
    _compare(
        f"{name_of(instance)} explained 3 images in another order",
        "the same maps in that order",
        cases.run(explainer, model, batch[order]).values,
        cases.run(explainer, model, batch).values[order],
        "No image may depend on its place in the batch; give every image the same random numbers.",
    )


def check_repeatable(instance: Explainer) -> None:
    """The same question gives the same map, whatever the global random generators say; with a seed if stochastic."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    model, batch = Classifier(ndim), cases.images(ndim)
    values = []
    for seed in (1, 2):
        with cases.seeded(seed):
            values.append(cases.run(explainer, model, batch).values)
    _compare(
        f"{name_of(instance)} explained the same images twice{', with the same seed' * explainer.stochastic}",
        "the same map twice",
        values[1],
        values[0],
        "Draw from `torch.Generator().manual_seed(self.seed)`, never from the global generators, and declare "
        "`stochastic`.",
    )


def check_stochastic(instance: Explainer) -> None:
    """A stochastic explainer has a `seed`; another seed, or a fresh one, gives another map, and the record names it."""
    skip_unless(instance.stochastic, "it declares no random numbers.")
    if not cases.has(instance, "seed"):
        fail(
            f"{name_of(instance)}, which declares `stochastic`, was asked for its seed",
            "a parameter `seed`, None or a whole number",
            "none",
            "Add `seed: int | None = None`, so that a map can be made again.",
        )
    ndim = cases.axes(instance)
    model, batch = Classifier(ndim), cases.images(ndim)
    fresh = [cases.run(cases.ready(instance, None), model, batch) for _ in range(2)]
    seeded = [cases.run(cases.ready(cases.changed(instance, seed=None), seed), model, batch) for seed in (1, 2)]
    for pair, name in ((fresh, "two fresh seeds"), (seeded, "the seeds 1 and 2")):
        if torch.equal(pair[0].values, pair[1].values):
            fail(
                f"{name_of(instance)}, which declares `stochastic`, explained the same images with {name}",
                "two maps that differ",
                "the same map twice",
                "Draw from a generator with `self.seed`; if there is no chance in the method, do not declare it.",
            )
    _check_recorded(instance, model, batch, fresh[0])


def _check_recorded(instance: Explainer, model: torch.nn.Module, batch: Tensor, first: Attribution) -> None:
    seed = first.provenance["seed"]
    again = cases.run(cases.changed(instance, layer=None, seed=seed), model, batch)
    _compare(
        f"{name_of(instance)} explained with a fresh seed, which the map's provenance records as {seed!r}",
        "the same map from that seed",
        again.values,
        first.values,
        "Take every random number from `self.seed`.",
    )


def check_shared_pass(instance: Explainer) -> None:
    """Several targets and several methods in one pass give what each gives alone."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    model, batch = Classifier(ndim), cases.images(ndim)
    did = f"{name_of(instance)} explained classes 0, 1 and 0 again, twice, in one pass"
    shared: Any = medviz.explain(model, batch, [explainer, cases.changed(explainer)], target=[0, 1, 0])
    alone = [cases.run(explainer, model, batch, target).values for target in (0, 1, 0)]
    for i, result in enumerate(shared):
        _compare(
            did,
            "each time the map that the class gets alone",
            result.values,
            alone[i % 3],
            "What the probe hands out is shared: do not change it in place, and keep nothing from call to call.",
        )


def _compare(did: str, expected: str, got: Tensor, wanted: Tensor, advice: str) -> None:
    if got.shape != wanted.shape:
        fail(did, expected, f"a map {tuple(got.shape)} in place of {tuple(wanted.shape)}", advice)
    if (off := cases.distance(got, wanted)) > _TOLERANCE:
        fail(did, expected, f"another map, the difference is {off:.2g} of the maximum", advice)
