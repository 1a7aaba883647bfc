"""Coarse-to-fine occlusion: which windows of a grid are run, and what each voxel has from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor

from medviz.windows import Grid, Windows

_SLACK = 1e-3  # of the limit: where values tie, rounding must not decide which of them are refined

Run = Callable[[Windows], Tensor]


@attrs.define(eq=False)
class Answers:
    """What the network says of the windows of a grid that it has been asked for, each of them once.

    Args:
        grid: all the windows.
        run: from windows to a row for each, `(m, …)`.
    """

    grid: Grid
    run: Run
    rows: Tensor = attrs.field(init=False)
    _outputs: list[Tensor] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        # of each place; -1: not asked for
        self.rows = torch.full(self.grid.counts, -1, dtype=torch.int32, device="cpu")

    def ask(self, wanted: Tensor) -> None:
        """Run the windows at the `wanted` places `(*n)` that have not been run."""
        new = wanted & (self.rows < 0)
        if not new.any():
            return
        known = sum(len(output) for output in self._outputs)
        self._outputs.append(self.run(self.grid.windows(new)))
        self.rows[new] = torch.arange(known, known + len(self._outputs[-1]), dtype=torch.int32, device="cpu")

    @property
    def outputs(self) -> Tensor:
        """The rows of all windows that have been run, in the order of running: `rows` says which belongs to a place."""
        if len(self._outputs) > 1:
            self._outputs = [torch.cat(self._outputs)]
        return self._outputs[0]


@attrs.define(eq=False)
class Refinement:
    """One map of one image, made of a coarse grid of windows, and of finer ones where they are asked for.

    Each voxel has the value that one whole grid gives it: the finest of which all the windows over it have been run.
    Windows of a coarser grid are among those of the finer ones, so that nothing is run twice.

    Args:
        answers: the network's, kept for the next target.
        falls: from the rows of `answers.outputs` to how far the score falls, `(M,)` float64 on the CPU.
        weight: of the voxels of a window.
        levels: how many times the finest grid is halved.
    """

    answers: Answers
    falls: Callable[[Tensor], Tensor]
    weight: Tensor
    levels: int
    wanted: Tensor = attrs.field(init=False)
    _places: list[Tensor] = attrs.field(init=False)  # of each level's grid, the finest first
    _level: Tensor = attrs.field(init=False)  # of each voxel

    def __attrs_post_init__(self) -> None:
        self._places = [self.answers.grid.every(1 << level) for level in range(self.levels + 1)]
        self.wanted = self._places[-1]  # not all that are known: another target may have asked for more
        self.answers.ask(self.wanted)

    def map(self) -> Tensor:
        """Return the fall of the score `(*S)`, float64 on the CPU; NaN where there is no window."""
        falls = self.falls(self.answers.outputs)
        values = self._blend(falls, self._places[-1])
        self._level = torch.full(values.shape, self.levels, dtype=torch.int8, device="cpu")
        for level in reversed(range(self.levels)):
            places = self._places[level]
            done = ~self.answers.grid.held(places & ~self.wanted)
            if done.any():
                values = torch.where(done, self._blend(falls, places & self.wanted), values)
                self._level[done] = level
        return values

    def _blend(self, falls: Tensor, places: Tensor) -> Tensor:
        rows = self.answers.rows[places].long()
        return self.answers.grid.windows(places).blend(falls[rows, None], self.weight)[0]

    def refine(self, voxels: Tensor) -> bool:
        """Run what the next finer grid has over each of the `voxels` `(*S)`; return False where all are the finest.

        Call `map` before.
        """
        known = int(self.wanted.sum())
        for level in range(self.levels):
            over = self.answers.grid.holding(voxels & (self._level == level + 1))
            self.wanted = self.wanted | (over & self._places[level])
        self.answers.ask(self.wanted)
        return int(self.wanted.sum()) > known


def refined(maps: Sequence[Refinement], inside: Tensor, above: float) -> Tensor:
    """Refine the maps of one image until all that matters has the values of the finest grid.

    Args:
        maps: of its channels, or one.
        inside: the voxels that are mapped, `(*S)`, True or False.
        above: a voxel matters where its magnitude is at least so large a share of the largest in all the maps.

    Returns:
        `(len(maps), *S)`, float64 on the CPU; NaN outside of `inside`.
    """
    while True:
        values = torch.stack([one.map() for one in maps]).masked_fill_(~inside, torch.nan)
        if not maps[0].levels:
            return values
        found = [one.refine(voxels) for one, voxels in zip(maps, _matter(values, above), strict=True)]
        if not any(found):
            return values


def _matter(values: Tensor, above: float) -> Tensor:
    """Return which of the `values`, where they are not NaN, are of at least a share `above` of the largest."""
    magnitudes = values.abs().nan_to_num_(-1)
    largest = magnitudes.max()
    if above and not largest:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    return magnitudes >= above * (1 - _SLACK) * largest
