"""RISE."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from medviz.explainers.sampling import drawn, generator, seed_field
from medviz.hookspecs import Explainer, hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget
from medviz.validators import number, whole
from medviz.windows import cut_out


@attrs.frozen(eq=False)
class RISE(Explainer):
    """Show random parts of the image and average the masks by the score that each gives; needs no gradient, no layer.

    The map is `(B, 1, *S)`, signed, in the score's unit.

    Source: Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    https://arxiv.org/abs/1806.07421, eq. 6. Differs: the mean score is subtracted, so that a voxel gets how much higher
    the score is where it is seen; the paper's constant part, the same for all voxels but for the noise, is gone.

    Args:
        n_masks: random masks, the same for every image; ≥ 1. Each costs one forward pass.
        cells: cells of the coarse random grid along each axis; ≥ 1.
        keep: the probability that a cell is seen, in (0, 1).
        fill: the value in the place of what is not seen, in the units of the image that the network gets.
        seed: of the masks, in [0, 2³²); None: a fresh one, which the provenance records.
    """

    signed: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True

    n_masks: int = attrs.field(default=1000, validator=whole(1))
    cells: int = attrs.field(default=7, validator=whole(1))
    keep: float = attrs.field(default=0.5, validator=number(above=0, below=1))
    fill: float = attrs.field(default=0.0, validator=number())
    seed: int | None = seed_field()

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        seed = drawn(self.seed)
        return torch.stack([self._one(probe, target, image, seed) for image in range(len(probe.inputs))])

    def _one(self, probe: Probe, target: FixedTarget, image: int, seed: int) -> Tensor:
        """Return the map `(1, *S)` of one image."""
        masked = _Masked(self, probe.inputs[image], seed)
        index = torch.full((self.n_masks,), image, device=probe.inputs.device)
        scores = probe.scores_of(target, masked, index).double() - probe.scores(target)[image].double()
        total = torch.zeros_like(probe.inputs[image, :1], dtype=torch.float64)
        for i, above in enumerate(scores - scores.mean()):
            total += above * masked.mask(i).double()
        return total / (self.n_masks * self.keep)


@attrs.frozen(eq=False)
class _Masked:
    """The masked copies of one image `(C, *S)`; every mask has a seed of its own, so that it can be made again."""

    config: RISE
    image: Tensor
    seed: int

    def __len__(self) -> int:
        return self.config.n_masks

    def __getitem__(self, rows: slice) -> Tensor:
        masks = torch.stack([self.mask(i) for i in range(rows.start, rows.stop)])
        return masks * self.image + (1 - masks) * self.config.fill

    def mask(self, i: int) -> Tensor:
        """Return mask `i` `(1, *S)` in [0, 1]: a random grid, enlarged linearly and shifted by less than a cell."""
        shape, cells = self.image.shape[1:], self.config.cells
        source = generator(self.seed * 1_000_003 + i)
        drawn = torch.rand([cells + 1] * len(shape), generator=source, dtype=torch.float32, device="cpu")
        grid = (drawn < self.config.keep).float()
        edges = [-(-extent // cells) for extent in shape]
        mode = "bilinear" if len(shape) == 2 else "trilinear"
        large = F.interpolate(grid[None, None], size=[edge * (cells + 1) for edge in edges], mode=mode)[0]
        shift = [int(torch.randint(edge, (), generator=source, device="cpu")) for edge in edges]
        return cut_out(large, torch.tensor([shift], device="cpu"), shape)[0].to(self.image)
