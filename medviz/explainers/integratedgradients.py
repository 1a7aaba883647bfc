"""Integrated gradients."""

from __future__ import annotations

import logging
from typing import ClassVar, Literal

import attrs
import numpy as np
import torch
from torch import Tensor

from medviz.explainers.sampling import copies
from medviz.hookspecs import Explainer, hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget
from medviz.tensors import precise, wide
from medviz.validators import number, whole

_log = logging.getLogger("medviz")
_TOLERANCE = 0.05  # of the difference of the scores: above it, a warning
_ROUNDING = 1e-6  # of the scores: what of an error may be theirs
_DOUBLINGS = 5

Baseline = float | Literal["min", "mean"]


def _as_baseline(baseline: object) -> Baseline:
    if baseline in ("min", "mean"):
        return baseline
    if isinstance(baseline, bool) or not isinstance(baseline, int | float) or not np.isfinite(baseline):
        got = repr(baseline) if isinstance(baseline, str | int | float | None) else f"a {type(baseline).__name__}"
        raise ValueError(f"`baseline` is a finite number, 'min' or 'mean'; got {got}.")
    return float(baseline)


@attrs.frozen(eq=False)
class IntegratedGradients(Explainer):
    """Add up the gradients on the straight way from a baseline to the image; they sum to the difference of the scores.

    The map is `(B, C, *S)`, signed, in the score's unit.

    Source: Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", https://arxiv.org/abs/1703.01365,
    eq. 1. Differs: Gauss-Legendre quadrature instead of equal steps, which needs fewer of them for the same error.
    Where the gradient jumps on the way, as ReLUs make it do, the error falls no faster than 1 / `steps`, whatever the
    rule, and more so where large positive and negative values nearly cancel. A sum that misses the difference by more
    than 5 %, or than `tolerance`, is logged as a warning.

    Args:
        steps: gradients on the way; ≥ 1.
        baseline: the image that stands for "nothing": a value for all voxels, or the "min" (air in CT) or the "mean"
            of each channel of each image.
        tolerance: of the difference of the scores; > 0. An image whose sum misses it by more is done again with twice
            the steps, up to 32 times as many; single voxels may be less exact than the sum. None: done once.
    """

    signed: ClassVar[bool] = True

    steps: int = attrs.field(default=64, validator=whole(1))
    baseline: Baseline = attrs.field(default=0.0, converter=_as_baseline)

    tolerance: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(number(above=0)), kw_only=True
    )

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        images = wide(probe.inputs)
        start = self._start(images)
        clean, empty = precise(probe.scores(target)), precise(probe.scores_of(target, start))
        values = precise(torch.zeros_like(images))
        left, steps = torch.arange(len(images), device=values.device), self.steps
        while True:
            values[left] = _integral(probe, target, start[left], left, steps)
            left = self._missing(values, clean, empty)
            if self.tolerance is None or not len(left) or steps >= self.steps << _DOUBLINGS:
                break
            steps *= 2
            _log.info("integrated gradients of %d images need %d steps for `tolerance`", len(left), steps)
        if len(left):
            _log.warning(
                "integrated gradients sum to %s and the scores differ by %s; take more `steps` than %d",
                [round(v, 6) for v in values.flatten(1).sum(1).tolist()],
                [round(d, 6) for d in (clean - empty).tolist()],
                steps,
            )
        return values

    def _missing(self, values: Tensor, clean: Tensor, empty: Tensor) -> Tensor:
        """Return the positions of the images whose values do not sum to the difference of the scores."""
        error = (values.flatten(1).sum(1) - (clean - empty)).abs()
        share = _TOLERANCE if self.tolerance is None else self.tolerance
        allowed = share * (clean - empty).abs() + _ROUNDING * torch.maximum(clean.abs(), empty.abs())
        return (error > allowed).nonzero()[:, 0]

    def _start(self, images: Tensor) -> Tensor:
        if isinstance(self.baseline, float):
            return torch.full_like(images, self.baseline)
        axes = tuple(range(2, images.ndim))
        value = images.mean(axes, keepdim=True) if self.baseline == "mean" else images.amin(axes, keepdim=True)
        return value.expand_as(images)


def _integral(probe: Probe, target: FixedTarget, start: Tensor, images: Tensor, steps: int) -> Tensor:
    """Return the difference times the mean gradient on the way, `(m, C, *S)` float64, of some of the images.

    Args:
        probe: the network and the images.
        target: what is explained.
        start: where each way begins, `(m, C, *S)`.
        images: the position of each in the batch, `(m,)`.
        steps: on the way.
    """
    end = wide(probe.inputs)[images]
    points, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(steps))
    total = precise(torch.zeros_like(end))
    done = 0
    for count in copies(probe, steps, graph=True):
        way = ((points[done : done + count] + 1) / 2).to(end).reshape(-1, *[1] * end.ndim)
        rows = (start + way * (end - start)).flatten(0, 1)
        gradients = precise(probe.input_gradient(target, rows, images.repeat(count))).reshape(count, *end.shape)
        total += torch.einsum("n,n...->...", weights[done : done + count].to(total.device) / 2, gradients)
        done += count
    return precise(end - start) * total
