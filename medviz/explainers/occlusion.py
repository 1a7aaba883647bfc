"""Occlusion sensitivity."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from medviz import registry
from medviz.explainers.refinement import Answers, Refinement, refined
from medviz.hookspecs import Explainer, Occluder, Wrappers, hookimpl
from medviz.incremental.boxes import Box
from medviz.occluders.function import FunctionOccluder
from medviz.probe import Probe
from medviz.targets import FixedTarget
from medviz.validators import as_python, number, of_type, whole
from medviz.windows import Grid, Windows, cut_out

_log = logging.getLogger("medviz")


def _as_size(size: Any) -> int | tuple[int, ...]:
    size = as_python(size)
    sizes = tuple(size) if isinstance(size, tuple | list) else (size,)
    if not sizes or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sizes):
        raise ValueError(f"`mask_size` is a positive number of voxels, or one for each axis; got {size!r}.")
    return sizes if isinstance(size, tuple | list) else sizes[0]


def _as_region(region: Any) -> tuple[tuple[int, int], ...] | None:
    if region is None:
        return None
    try:
        pairs = tuple((operator.index(first), operator.index(end)) for first, end in region)
    except (TypeError, ValueError):
        pairs = ()
    if not pairs or any(first < 0 or end <= first for first, end in pairs):
        raise ValueError(f"`region` is [(first, after the last), …] in voxels for each axis; got {region!r}.")
    return pairs


@attrs.frozen(eq=False)
class Occlusion(Explainer):
    """Hide window after window and map how much the score falls; a voxel gets the mean over the windows that hide it.

    The map is the score of the clean image less that of the hidden one, signed, in the score's unit: `(B, 1, *S)`, or
    `(B, C, *S)` with `per_channel`. What matters within a window's width of the border is drawn towards the border.

    Source: Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks",
    https://arxiv.org/abs/1311.2901, section 4.2. Differs: windows overlap and are blended, by the occluder's weights.
    Costs one forward pass for each window (and channel, with `per_channel`): `passes` says how many.

    With `refine` it goes from coarse to fine: first with only some of the windows, 2^`refine` times as far apart along
    each axis; then, over the voxels that matter so far, with those between them, until nothing that matters is left.
    Every voxel has exactly the value of one whole grid, the finest of which all windows over it have been run: where
    the map reaches `refine_above` of its largest magnitude, that is the value without `refine`. Elsewhere it is that of
    a coarser grid of the same windows: the unit is one, but the map may jump where the grids meet. A finding smaller
    than the coarse step can be missed, above all behind "gaussian", which hides little but the middle of a window: take
    refine=0 to search for one. The log says how many passes were saved.

    Args:
        mask_size: of a window, in voxels, for all axes or for each.
        overlap: of neighbouring windows along each axis, as a fraction of the window, in [0, 1).
        occluder: what stands in the place of what is hidden: a name, an instance, or a function of
            (patches, image, corners) as `Occluder.Hooks.occlude`.
        per_channel: hide one channel at a time and make a map of each: which modality matters?
        region: the part to be mapped, (first voxel, after the last) for each axis; None: all. Elsewhere the map is 0.
        incremental: run again only what a window can change, where that is faster; the result is the same to rounding.
        growth: how much of a feature map a window may change along each axis, in (0, 1], where `incremental` is taken:
            below 1 what lies further from it is left as it is, and the map is approximate, and depends on `batch_size`;
            the log says how far from exact a few windows are. 0.5 runs at most an eighth of each map in 3-D.
        refine: how many times the distance of neighbouring windows is doubled to begin with; 0: all windows are run.
            The windows must not come apart: 1 needs an `overlap` of at least 0.5, 2 of 0.75, 3 of 0.875.
        refine_above: a voxel matters where its magnitude is at least this share, in [0, 1), of the largest of the
            image, of all its channels. 0: every voxel matters.
    """

    signed: ClassVar[bool] = True

    mask_size: int | tuple[int, ...] = attrs.field(default=16, converter=_as_size)
    overlap: float = attrs.field(default=0.6, validator=number(least=0, below=1))
    occluder: Occluder = registry.field(kind="occluders", default="medviz-xai/gaussian", wrap=FunctionOccluder)
    per_channel: bool = attrs.field(default=False, validator=of_type(bool))
    region: tuple[tuple[int, int], ...] | None = attrs.field(default=None, converter=_as_region)
    incremental: bool = attrs.field(default=True, validator=of_type(bool), kw_only=True)
    growth: float = attrs.field(default=1.0, validator=number(above=0, most=1), kw_only=True)
    refine: int = attrs.field(default=0, validator=whole(0), kw_only=True)
    refine_above: float = attrs.field(default=0.3, validator=number(least=0, below=1), kw_only=True)

    def __attrs_post_init__(self) -> None:
        least = 1 - 0.5**self.refine
        if self.overlap < least:
            raise ValueError(
                f"`refine` {self.refine} needs an `overlap` of at least {least:g}, so that windows do not come apart "
                f"in the coarsest grid; got {self.overlap:g}."
            )

    def check(self, shape: Sequence[int]) -> None:
        """Refuse images that `mask_size` or `region` do not fit."""
        super().check(shape)
        self._extents(shape[2:])

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        grid, weight = self._plan(probe)
        clean = probe.scores(target)
        channels = probe.inputs.shape[1] if self.per_channel else 1
        maps = clean.new_zeros(len(clean), channels, *grid.shape)
        where, ran = self._region(grid.shape), 0
        inside = torch.zeros(grid.shape, dtype=torch.bool, device="cpu")
        inside[where] = True
        for image in range(len(clean)):
            parts = [self._refinement(probe, target, grid, weight, image, k) for k in self._channels(probe)]
            maps[image][where] = refined(parts, inside, self.refine_above)[where].to(clean)
            ran += sum(int(part.wanted.sum()) for part in parts)
        if self.refine:
            most = self._passes(probe.inputs.shape, grid)
            _log.info("`refine` took %d of %d forward passes: %d saved", ran, most, most - ran)
        return maps

    def scores(self, probe: Probe, activate: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return what the network says of every class when a voxel is hidden: `(B, N, *S)`, NaN outside of `region`.

        Args:
            probe: the network, with an output `(B, N)`.
            activate: turns outputs `(M, N)` into what is blended, such as `lambda out: out.softmax(1)`.
        """
        if self.per_channel or probe.output.ndim != 2:
            raise ValueError(
                "the scores of every class need an output (B, N) and all channels hidden together; the network's is "
                f"{tuple(probe.output.shape)}. Make it (B, N) with a function of the output, or explain one score, as "
                "medviz.SegmentationTarget does."
            )
        if self.refine:
            raise ValueError(
                f"the scores of every class need the whole grid, for what matters to one does not to another; `refine` "
                f"is {self.refine}, set it to 0."
            )
        grid, weight = self._plan(probe)
        windows, where = grid.windows(), self._region(grid.shape)
        scores = probe.output.new_full((*probe.output.shape, *grid.shape), float("nan"))
        for image, scores_of_image in enumerate(scores):
            answers = self._answers(probe, grid, image, None)
            answers.ask(grid.every(1))
            blended = windows.blend(activate(answers.outputs) if activate else answers.outputs, weight)
            scores_of_image[where] = blended[where].to(scores)
        return scores

    def passes(self, shape: Sequence[int]) -> int:
        """Return how many forward passes of one image a batch of `shape` `(B, C, *S)` costs; with `refine`, at most.

        Incremental inference makes parts of passes instead, and a few whole ones more to prove itself.
        """
        return self._passes(shape, self._grid(shape[2:]))

    def windows(self, shape: Sequence[int]) -> Windows:
        """Return the windows that slide over an image of `shape` `*S`.

        Raises:
            ValueError: `mask_size` or `region` do not have as many axes, or `region` leaves the image.
        """
        return self._grid(shape).windows()

    def _grid(self, shape: Sequence[int]) -> Grid:
        size, region = self._extents(shape)
        return Grid.over(shape, size, self.overlap, region)

    def _extents(self, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """The size of a window and the region, along each axis of an image."""
        size = (self.mask_size,) * len(shape) if isinstance(self.mask_size, int) else self.mask_size
        region = self.region or tuple((0, s) for s in shape)
        if len(size) != len(shape) or len(region) != len(shape):
            raise ValueError(f"`mask_size` {size} and `region` {region} must fit the image's {len(shape)} axes.")
        if any(end > s for (_, end), s in zip(region, shape, strict=True)):
            raise ValueError(f"`region` {region} leaves the image, whose size is {tuple(shape)}.")
        return size, region

    def _passes(self, shape: Sequence[int], grid: Grid) -> int:
        return shape[0] * len(grid) * (shape[1] if self.per_channel else 1)

    def _plan(self, probe: Probe) -> tuple[Grid, Tensor]:
        grid, most = self._grid(probe.inputs.shape[2:]), "at most " if self.refine else ""
        _log.info("occlusion needs %s%d forward passes of one image", most, self._passes(probe.inputs.shape, grid))
        return grid, self.occluder.weight(grid.size, wrappers=probe.wrappers)

    def _refinement(
        self, probe: Probe, target: FixedTarget, grid: Grid, weight: Tensor, image: int, channel: int | None
    ) -> Refinement:
        """The map of one image and channel; whole outputs would be too large to keep, so their scores are."""
        clean = probe.scores(target)[image].cpu().double()
        if probe.output.ndim > 2:

            def run(windows: Windows) -> Tensor:
                rows = Occluded(self.occluder, probe.inputs, windows, image, channel, probe.wrappers)
                return self._run(probe, rows, target)

            return Refinement(Answers(grid, run), lambda scores: clean - scores.cpu().double(), weight, self.refine)

        def falls(outputs: Tensor) -> Tensor:
            index = torch.full((len(outputs),), image, device="cpu")
            return clean - probe.scores(target, outputs, index).cpu().double()

        return Refinement(self._answers(probe, grid, image, channel), falls, weight, self.refine)

    def _answers(self, probe: Probe, grid: Grid, image: int, channel: int | None) -> Answers:
        """The logits of the windows of one image and channel, kept for the next target."""

        def run(windows: Windows) -> Tensor:
            rows = Occluded(self.occluder, probe.inputs, windows, image, channel, probe.wrappers)
            return self._run(probe, rows)

        answers: Answers = probe.remember((self, image, channel), lambda: Answers(grid, run))
        return answers

    def _run(self, probe: Probe, rows: Occluded, target: FixedTarget | None = None) -> Tensor:
        """The outputs of hidden copies, or a target's scores of them."""
        if self.incremental:
            return probe.forward_patched(rows, target, self.growth)
        return probe.forward(rows, rows.index) if target is None else probe.scores_of(target, rows, rows.index)

    def _channels(self, probe: Probe) -> Sequence[int | None]:
        return range(probe.inputs.shape[1]) if self.per_channel else [None]

    def _region(self, shape: Sequence[int]) -> tuple[EllipsisType | slice, ...]:
        return (..., *(slice(first, end) for first, end in self.region or [(0, s) for s in shape]))


@attrs.frozen(eq=False)
class Occluded:
    """The copies of one image of a batch with a window hidden, made when they are needed.

    Args:
        occluder: what stands in the place of what is hidden.
        images: the batch `(B, C, *S)`.
        windows: one for each copy.
        position: of the image in the batch.
        channel: the one that is hidden; None: all.
        wrappers: around the occluder's hooks.
    """

    occluder: Occluder
    images: Tensor
    windows: Windows
    position: int = 0
    channel: int | None = None
    wrappers: Wrappers = ()
    _made: dict[int, Tensor] = attrs.field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def index(self) -> Tensor:
        """The image that each row belongs to."""
        return torch.full((len(self),), self.position, device=self.images.device)

    @property
    def clean(self) -> Tensor:
        """The image that the copies are made of, `(1, C, *S)`."""
        return self.images[self.position : self.position + 1]

    @property
    def corners(self) -> Tensor:
        """The first voxel of each window, `(M, nd)`."""
        return self.windows.corners

    def patches(self, rows: slice) -> Tensor:
        """Return what stands in some of the windows, `(m, C, *mask)`; channels that are not hidden are as they were."""
        windows = range(len(self))[rows]
        hidden = torch.stack([self._hidden(window) for window in windows])
        if self.channel is None:
            return hidden
        seen = cut_out(self.clean[0], self.corners[rows], self.windows.size)
        seen[:, self.channel] = hidden[:, self.channel]
        return seen

    def __getitem__(self, rows: slice) -> Tensor:
        return Box(self.clean, self.patches(rows), self.corners[rows]).whole()

    def _hidden(self, window: int) -> Tensor:
        """Return one hidden window `(C, *mask)`, made with as many others as together are as large as the image.

        An occluder may look at the whole image whenever it is asked: how often must not depend on the batch size.
        """
        image = self.images[self.position]
        many = max(1, math.prod(self.windows.shape) // math.prod(self.windows.size))
        part, place = divmod(window, many)
        if part not in self._made:
            self._made.clear()
            corners = self.windows.corners[part * many : (part + 1) * many]
            patches = cut_out(image, corners, self.windows.size)
            self._made[part] = self.occluder(patches, image, corners, wrappers=self.wrappers)
        return self._made[part][place]
