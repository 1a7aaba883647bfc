"""What the methods take: how each parameter is checked, and how captum is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from medviz import Probe
from medviz.validators import SEED, number, whole

Baseline = float | Literal["min", "mean"]


def _as_baseline(baseline: Any) -> Baseline:
    if baseline == "min" or baseline == "mean":
        return "min" if baseline == "min" else "mean"
    if isinstance(baseline, bool) or not isinstance(baseline, int | float) or not math.isfinite(baseline):
        raise ValueError(f"`baseline` is a finite number, 'min' or 'mean'; got {baseline!r}.")
    return float(baseline)


def _as_layer(layer: Any) -> str | None:
    """Return a module's name; those of an nn.Sequential are numbers, which plugin strings read as numbers."""
    if isinstance(layer, bool) or not isinstance(layer, str | int | None):
        raise TypeError(f"`layer` is the name of one module, or None; got {layer!r}.")
    return None if layer is None else str(layer)


def _baseline(value: Baseline, image: Tensor, _: Probe) -> dict[str, Any]:
    """Return an image `(1, C, *S)` of one value for each channel."""
    axes = tuple(range(2, image.ndim))
    if value == "min":
        made = image.amin(axes, keepdim=True)
    else:
        made = image.mean(axes, keepdim=True) if value == "mean" else torch.full_like(image, value)
    return {"baselines": made.expand_as(image).contiguous()}


def _blocks(value: int, image: Tensor, probe: Probe) -> dict[str, Any]:
    """Return the number of each voxel's block, `value` blocks along each axis, all channels together."""
    block = torch.zeros((), dtype=torch.long, device=image.device)
    for size in image.shape[2:]:
        along = torch.arange(size, device=image.device) * min(value, size) // size
        block = block[..., None] * min(value, size) + along
    return {"feature_mask": block.expand(image.shape).contiguous(), "perturbations_per_eval": probe.rows_at_once()}


def _window(value: int, image: Tensor, probe: Probe) -> dict[str, Any]:
    shape = (image.shape[1], *(min(value, size) for size in image.shape[2:]))
    return {"sliding_window_shapes": shape, "perturbations_per_eval": probe.rows_at_once()}


def _stride(value: int, image: Tensor, _: Probe) -> dict[str, Any]:
    return {"strides": (1, *(min(value, size) for size in image.shape[2:]))}


def _steps(value: int, _: Tensor, probe: Probe) -> dict[str, Any]:
    # two, because conductance is a difference of neighbouring steps
    return {"n_steps": value, "internal_batch_size": max(2, probe.rows_at_once(graph=True))}


def _nothing(value: Any, image: Tensor, probe: Probe) -> dict[str, Any]:
    return {}


def _check_stride(instance: Any, attribute: attrs.Attribute[Any], value: int) -> None:
    if value > instance.window:
        raise ValueError(f"`stride` {value} is longer than `window` {instance.window}; some voxels would be left out.")


@attrs.frozen
class Parameter:
    """One parameter.

    Args:
        text: what it is, for the docstring.
        field: makes its attrs field, with default and check.
        given: from its value, the image `(1, C, *S)` and the probe to keyword arguments of captum's `attribute`.
    """

    text: str
    field: Callable[[], Any]
    given: Callable[[Any, Tensor, Probe], Mapping[str, Any]]


PARAMETERS: dict[str, Parameter] = {
    "layer": Parameter(
        "dotted name of a module whose output is `(B, K, *s)`; None: chosen automatically.",
        lambda: attrs.field(default=None, converter=_as_layer),
        _nothing,
    ),
    "baseline": Parameter(
        'what stands for "nothing": a value for all voxels, or the "min" or the "mean" of each channel.',
        lambda: attrs.field(default=0.0, converter=_as_baseline),
        _baseline,
    ),
    "steps": Parameter("points on the way; ≥ 1.", lambda: attrs.field(default=50, validator=whole(1)), _steps),
    "samples": Parameter(
        "random points or orders; ≥ 1.",
        lambda: attrs.field(default=25, validator=whole(1)),
        lambda value, image, probe: {"n_samples": value},
    ),
    "stdev": Parameter(
        "standard deviation of the noise on the image, in the image's unit; ≥ 0.",
        lambda: attrs.field(default=0.0, validator=number(least=0)),
        lambda value, image, probe: {"stdevs": value},
    ),
    "blocks": Parameter("blocks along each axis; ≥ 1.", lambda: attrs.field(default=8, validator=whole(1)), _blocks),
    "window": Parameter(
        "side of the window in voxels; ≥ 1.", lambda: attrs.field(default=8, validator=whole(1)), _window
    ),
    "stride": Parameter(
        "step of the window in voxels; from 1 to `window`.",
        lambda: attrs.field(default=4, validator=[whole(1), _check_stride]),
        _stride,
    ),
    "seed": Parameter(
        "of the random numbers; None: a fresh one, which the provenance records.",
        lambda: attrs.field(default=None, validator=attrs.validators.optional(SEED)),
        _nothing,
    ),
}
