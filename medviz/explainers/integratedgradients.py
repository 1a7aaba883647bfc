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
from medviz.probe.gradients import wide
from medviz.targets import FixedTarget
from medviz.validators import whole

_log = logging.getLogger("medviz")
_TOLERANCE = 0.05  # of the difference of the scores

Baseline = float | Literal["min", "mean"]


def _as_baseline(baseline: object) -> Baseline:
    if baseline in ("min", "mean"):
        return baseline
    if isinstance(baseline, bool) or not isinstance(baseline, int | float) or not np.isfinite(baseline):
        raise ValueError(f"`baseline` is a finite number, 'min' or 'mean'; got {baseline!r}.")
    return float(baseline)


@attrs.frozen(eq=False)
class IntegratedGradients(Explainer):
    """Add up the gradients on the straight way from a baseline to the image; they sum to the difference of the scores.

    The map is `(B, C, *S)`, signed, in the score's unit.

    Source: Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", https://arxiv.org/abs/1703.01365,
    eq. 1. Differs: Gauss-Legendre quadrature instead of equal steps, which needs fewer of them for the same error.
    Where the gradient jumps on the way, as ReLUs make it do, the error falls no faster than 1 / `steps`. A sum that
    misses the difference by more than 5 % is logged as a warning.

    Args:
        steps: gradients on the way; ≥ 1.
        baseline: the image that stands for "nothing": a value for all voxels, or the "min" (air in CT) or the "mean"
            of each channel of each image.
    """

    signed: ClassVar[bool] = True

    steps: int = attrs.field(default=64, validator=whole(1))
    baseline: Baseline = attrs.field(default=0.0, converter=_as_baseline)

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        images = wide(probe.inputs)
        start = self._start(images)
        points, weights = (torch.from_numpy(a).to(images.device) for a in np.polynomial.legendre.leggauss(self.steps))
        total = torch.zeros_like(images, dtype=torch.float64)
        done = 0
        for count in copies(probe, self.steps, graph=True):
            way = ((points[done : done + count] + 1) / 2).to(images).reshape(-1, *[1] * images.ndim)
            rows = (start + way * (images - start)).flatten(0, 1)
            index = torch.arange(len(images), device=images.device).repeat(count)
            gradients = probe.input_gradient(target, rows, index).reshape(count, *images.shape).double()
            total += torch.einsum("n,n...->...", weights[done : done + count] / 2, gradients)
            done += count
        values = (images - start) * total
        self._check(probe, target, start, values)
        return values

    def _check(self, probe: Probe, target: FixedTarget, start: Tensor, values: Tensor) -> None:
        """Log a warning where the values do not sum to the difference of the scores."""
        difference = (probe.scores(target) - probe.scores_of(target, start)).double()
        error = (values.flatten(1).sum(1) - difference).abs()
        if (error > _TOLERANCE * difference.abs()).any():
            _log.warning(
                "integrated gradients sum to %s and the scores differ by %s; take more `steps` than %d",
                [round(v, 6) for v in values.flatten(1).sum(1).tolist()],
                [round(d, 6) for d in difference.tolist()],
                self.steps,
            )

    def _start(self, images: Tensor) -> Tensor:
        if isinstance(self.baseline, float):
            return torch.full_like(images, self.baseline)
        axes = tuple(range(2, images.ndim))
        value = images.mean(axes, keepdim=True) if self.baseline == "mean" else images.amin(axes, keepdim=True)
        return value.expand_as(images)
