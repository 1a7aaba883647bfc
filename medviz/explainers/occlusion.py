"""Occlusion sensitivity."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from medviz import registry
from medviz.hookspecs import Explainer, Occluder, hookimpl
from medviz.probe import Probe
from medviz.targets import FixedTarget
from medviz.windows import Windows, cut_out

_log = logging.getLogger("medviz")


def _as_size(size: Any) -> int | tuple[int, ...]:
    sizes = tuple(size) if isinstance(size, tuple | list) else (size,)
    if not sizes or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sizes):
        raise ValueError(f"`mask_size` is a positive number of voxels, or one for each axis; got {size!r}.")
    return sizes if isinstance(size, tuple | list) else sizes[0]


def _as_region(region: Any) -> tuple[tuple[int, int], ...] | None:
    if region is None:
        return None
    try:
        pairs = tuple((int(first), int(end)) for first, end in region)
    except (TypeError, ValueError):
        pairs = ()
    if not pairs or any(first < 0 or end <= first for first, end in pairs):
        raise ValueError(f"`region` is [(first, after the last), …] in voxels for each axis; got {region!r}.")
    return pairs


@attrs.frozen(eq=False)
class _Function(Occluder):
    """A plain function as an occluder."""

    function: Callable[[Tensor, Tensor, Tensor], Tensor] = attrs.field(validator=attrs.validators.is_callable())

    @hookimpl
    def occlude(self, patches: Tensor, image: Tensor, corners: Tensor) -> Tensor:
        return self.function(patches, image, corners)


@attrs.frozen(eq=False)
class Occlusion(Explainer):
    """Hide window after window and map how much the score falls; a voxel gets the mean over the windows that hide it.

    Source: Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks",
    https://arxiv.org/abs/1311.2901, section 4.2. Differs: windows overlap and are blended, by the occluder's weights.
    Costs one forward pass for each window (and channel, with `per_channel`): `passes` says how many.

    Args:
        mask_size: of a window, in voxels, for all axes or for each.
        overlap: of neighbouring windows along each axis, as a fraction of the window, in [0, 1).
        occluder: what stands in the place of what is hidden: a name, an instance, or a function of
            (patches, image, corners) as `Occluder.Hooks.occlude`.
        per_channel: hide one channel at a time and make a map of each: which modality matters?
        region: the part to be mapped, (first voxel, after the last) for each axis; None: all. Elsewhere the map is 0.
    """

    signed: ClassVar[bool] = True

    mask_size: int | tuple[int, ...] = attrs.field(default=16, converter=_as_size)
    overlap: float = attrs.field(default=0.6, validator=[attrs.validators.ge(0), attrs.validators.lt(1)])
    occluder: Occluder = registry.field(kind="occluders", default="medviz-xai/gaussian", wrap=_Function)
    per_channel: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    region: tuple[tuple[int, int], ...] | None = attrs.field(default=None, converter=_as_region)

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        windows, weight = self._plan(probe)
        clean = probe.scores(target)
        maps = torch.zeros(len(clean), probe.inputs.shape[1] if self.per_channel else 1, *windows.shape).to(clean)
        where = self._region(windows.shape)
        for image, score in enumerate(clean):
            for k, channel in enumerate(self._channels(probe)):
                hidden = self._scores(probe, target, _Occluded(self, probe.inputs, windows, image, channel))
                blended = windows.blend(hidden[:, None], weight)[0]
                maps[image, k][where] = score - blended[where].to(score)
        return maps

    def scores(self, probe: Probe, activate: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return what the network says of every class when a voxel is hidden: `(B, N, *S)`, NaN outside of `region`.

        Args:
            probe: the network, with an output `(B, N)`.
            activate: turns outputs `(M, N)` into what is blended, such as `lambda out: out.softmax(1)`.
        """
        if self.per_channel or probe.output.ndim != 2:
            raise ValueError("scores() needs an output (B, N), and all channels hidden together.")
        windows, weight = self._plan(probe)
        where = self._region(windows.shape)
        scores = probe.output.new_full((*probe.output.shape, *windows.shape), float("nan"))
        for image, scores_of_image in enumerate(scores):
            outputs = self._outputs(probe, _Occluded(self, probe.inputs, windows, image, None))
            blended = windows.blend(activate(outputs) if activate else outputs, weight)
            scores_of_image[where] = blended[where].to(scores)
        return scores

    def passes(self, shape: Sequence[int]) -> int:
        """Return how many forward passes of one image a batch of `shape` `(B, C, *S)` costs."""
        return shape[0] * len(self.windows(shape[2:])) * (shape[1] if self.per_channel else 1)

    def windows(self, shape: Sequence[int]) -> Windows:
        """Return the windows that slide over an image of `shape` `*S`.

        Raises:
            ValueError: `mask_size` or `region` do not have as many axes, or `region` leaves the image.
        """
        size = (self.mask_size,) * len(shape) if isinstance(self.mask_size, int) else self.mask_size
        region = self.region or tuple((0, s) for s in shape)
        if len(size) != len(shape) or len(region) != len(shape):
            raise ValueError(f"`mask_size` {size} and `region` {region} must fit the image's {len(shape)} axes.")
        if any(end > s for (_, end), s in zip(region, shape, strict=True)):
            raise ValueError(f"`region` {region} leaves the image, whose size is {tuple(shape)}.")
        return Windows.over(shape, size, self.overlap, region)

    def _plan(self, probe: Probe) -> tuple[Windows, Tensor]:
        _log.info("occlusion needs %d forward passes of one image", self.passes(probe.inputs.shape))
        windows = self.windows(probe.inputs.shape[2:])
        return windows, self.occluder.weight(windows.size)

    def _scores(self, probe: Probe, target: FixedTarget, rows: _Occluded) -> Tensor:
        """The target's score `(M,)` of each window of one image; logits are kept for the next target."""
        if probe.output.ndim > 2:
            return probe.scores_of(target, rows, rows.index)
        return probe.scores(target, self._outputs(probe, rows), rows.index)

    def _outputs(self, probe: Probe, rows: _Occluded) -> Tensor:
        made: Tensor = probe.remember((self, rows.position, rows.channel), lambda: probe.forward(rows, rows.index))
        return made

    def _channels(self, probe: Probe) -> Sequence[int | None]:
        return range(probe.inputs.shape[1]) if self.per_channel else [None]

    def _region(self, shape: Sequence[int]) -> tuple[EllipsisType | slice, ...]:
        return (..., *(slice(first, end) for first, end in self.region or [(0, s) for s in shape]))


@attrs.frozen(eq=False)
class _Occluded:
    """The copies of one image of a batch with a window hidden, made when they are needed."""

    config: Occlusion
    images: Tensor
    windows: Windows
    position: int
    channel: int | None

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def index(self) -> Tensor:
        """The image that each row belongs to."""
        return torch.full((len(self),), self.position, device=self.images.device)

    def __getitem__(self, rows: slice) -> Tensor:
        image, corners = self.images[self.position], self.windows.corners[rows]
        hidden = self.config.occluder(cut_out(image, corners, self.windows.size), image, corners)
        channels = slice(None) if self.channel is None else slice(self.channel, self.channel + 1)
        copies = image.repeat(len(hidden), *[1] * image.ndim)
        for i, patch in enumerate(hidden):
            copies[i, channels][self.windows.box(rows.start + i)] = patch[channels]
        return copies
