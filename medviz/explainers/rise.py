"""RISE."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from medviz.explainers.sampling import drawn, generator, seed_field
from medviz.hookspecs import Explainer, hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget
from medviz.tensors import precise, wide
from medviz.validators import number, whole

_AT_ONCE = 8  # masks that are summed up, or fewer where a pass takes fewer rows


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
        scores = precise(probe.scores_of(target, masked, index)) - precise(probe.scores(target)[image])
        above = scores - scores.mean()
        total = precise(torch.zeros_like(probe.inputs[image, :1]))
        at_once = min(_AT_ONCE, probe.rows_at_once())
        for rows in (slice(start, start + at_once) for start in range(0, self.n_masks, at_once)):
            total += torch.tensordot(above[rows], precise(masked.masks(rows)), 1)
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
        masks = self.masks(rows).to(self.image.dtype)
        return masks * self.image + (1 - masks) * self.config.fill

    def masks(self, rows: slice) -> Tensor:
        """Return masks `(m, 1, *S)` in [0, 1]: random grids, enlarged linearly and shifted by less than a cell.

        Only the small grids are drawn on the CPU.
        """
        shape, cells = self.image.shape[1:], self.config.cells
        edges = [-(-extent // cells) for extent in shape]
        grids, shifts = [], []
        for i in range(*rows.indices(len(self))):
            source = generator(self.seed * 1_000_003 + i)
            grids.append(torch.rand([cells + 1] * len(shape), generator=source, dtype=torch.float32, device="cpu"))
            shifts.append([int(torch.randint(edge, (), generator=source, device="cpu")) for edge in edges])
        masks = wide((torch.stack(grids) < self.config.keep).to(self.image))  # (m, *cells + 1)
        for extent, edge, shift in zip(shape, edges, torch.tensor(shifts, device="cpu").T, strict=True):
            voxels = torch.arange(extent, dtype=torch.float64, device="cpu")
            places = ((voxels + shift[:, None] + 0.5) / edge - 0.5).clamp(0, cells)  # of each voxel, in cells
            share = 1 - (places[..., None] - torch.arange(cells + 1, device="cpu")).abs()
            share = share.clamp(min=0).to(masks)  # that each cell has in each voxel, (m, extent, cells + 1)
            masks = torch.einsum("ma...,mxa->m...x", masks, share)  # the axis comes back as the last: all take turns
        return masks[:, None]
