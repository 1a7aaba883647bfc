"""What SmoothGrad and its guided variant share: noisy copies, and a statistic of their gradients."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor

from medviz.explainers.sampling import copies, generator, noisy, seed_field
from medviz.hookspecs import Explainer
from medviz.probe import Probe
from medviz.probe.probe import Rule
from medviz.targets import FixedTarget
from medviz.tensors import precise
from medviz.validators import number, one_of, whole


@attrs.frozen(eq=False)
class SmoothExplainer(Explainer):
    """A method that looks at the gradients of noisy copies of the image; subclass it and implement `explain`.

    Args:
        stdev_spread: standard deviation of the noise, as a fraction of each image's range of values; ≥ 0.
        n_samples: noisy copies of each image; ≥ 1.
        statistic: "mean" of the gradients (signed), "magnitude": the root of their mean square, or their "variance"
            (the mean squared deviation from the mean; ≥ 0, as is the magnitude).
        seed: of the noise, in [0, 2³²); None: a fresh one, which the provenance records.
    """

    stochastic: ClassVar[bool] = True

    stdev_spread: float = attrs.field(default=0.15, validator=number(least=0))
    n_samples: int = attrs.field(default=25, validator=whole(1))
    statistic: Literal["mean", "magnitude", "variance"] = attrs.field(
        default="mean", validator=one_of("mean", "magnitude", "variance")
    )
    seed: int | None = seed_field()

    @property
    def signed(self) -> bool:  # type: ignore[override]
        """Whether there are negative values: only the mean has them."""
        return self.statistic == "mean"

    def smooth(self, probe: Probe, target: FixedTarget, rule: Rule | None = None) -> Tensor:
        """Return the statistic `(B, C, *S)` of the gradients of noisy copies, taken under `rule`."""
        source = generator(self.seed)
        mean = squares = precise(torch.zeros_like(probe.inputs))
        for count in copies(probe, self.n_samples, graph=True):
            rows, index = noisy(probe, count, self.stdev_spread, source)
            gradients = precise(probe.input_gradient(target, rows, index, rule)).reshape(count, *mean.shape)
            mean = mean + gradients.sum(0) / self.n_samples
            squares = squares + gradients.square().sum(0) / self.n_samples
        if self.statistic == "mean":
            return mean
        return squares.sqrt() if self.statistic == "magnitude" else (squares - mean.square()).clamp(min=0)
