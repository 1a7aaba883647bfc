"""What the renderers share: their fields, and how they make a scene of an attribution."""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs
import numpy as np
import torch
from torch import Tensor

from medviz.attribution import Attribution
from medviz.finite import all_finite
from medviz.hookspecs import Renderer
from medviz.renderers.colour import get_cmap
from medviz.renderers.orientation import orient
from medviz.renderers.scene import Scene
from medviz.validators import number, one_of, whole

UNSIGNED_CMAP = "inferno"
SIGNED_CMAP = "bwr"
_ENOUGH = 2_000_000  # values that percentiles are taken from; more would cost seconds and change nothing


def as_plain(value: Any) -> Any:
    """Return NumPy's numbers and tensors of one number as Python's, also inside of a tuple; anything else stays."""
    if isinstance(value, tuple | list):
        return tuple(map(as_plain, value))
    return value.item() if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0 else value


@attrs.frozen(eq=False, kw_only=True)
class MapRenderer(Renderer):
    """A renderer that lays the map over the image.

    Args:
        cmap: matplotlib's name of a colour map; None: "inferno", and "bwr" (blue: against) for signed maps.
        alpha: opacity of the map where it is largest, 0 to 1; it fades to nothing at zero.
        channel: which channel of the image is the backdrop; None: the mean of all, or the colours of a 2-D image of
            three.
        reduce: how a map of several channels becomes one: "sum", "mean", "max_abs" (the value of largest magnitude,
            with its sign), or the number of a channel of the map.
        scale: what gets the last colour: the largest magnitude ("max") or the 99th percentile ("percentile").
        vmax: the raw magnitude that gets the last colour, instead of `scale`.
        window: the image's values that become black and white; None: its 0.5th and 99.5th percentiles;
            of a 2-D image of three channels 0 and 1, or its smallest and largest value where it leaves them.
    """

    cmap: str | None = attrs.field(default=None)
    alpha: float = attrs.field(default=0.75, converter=as_plain, validator=number(least=0, most=1))
    channel: int | None = attrs.field(default=None, converter=as_plain, validator=attrs.validators.optional(whole(0)))
    reduce: Literal["sum", "mean", "max_abs"] | int = attrs.field(default="sum", converter=as_plain)
    scale: Literal["max", "percentile"] = attrs.field(default="max", validator=one_of("max", "percentile"))
    vmax: float | None = attrs.field(
        default=None, converter=as_plain, validator=attrs.validators.optional(number(above=0))
    )
    window: tuple[float, float] | None = attrs.field(default=None, converter=as_plain)

    @cmap.validator
    def _check_cmap(self, _: Any, value: Any) -> None:
        if value is not None:
            get_cmap(value)

    @reduce.validator
    def _check_reduce(self, _: Any, value: Any) -> None:
        if value not in ("sum", "mean", "max_abs") and (not _is_whole(value) or value < 0):
            raise ValueError(f"`reduce` is 'sum', 'mean', 'max_abs' or the number of a channel; got {value!r}.")

    @window.validator
    def _check_window(self, _: Any, value: Any) -> None:
        if value is None:
            return
        if (
            not isinstance(value, tuple)
            or len(value) != 2
            or not all(_is_number(v) and abs(v) < float("inf") for v in value)
            or value[0] >= value[1]
        ):
            raise ValueError(f"`window` is (low, high) with low < high, in the image's own values; got {value!r}.")

    def scene(self, attribution: Attribution) -> Scene:
        """Check the attribution of one image and set it upright.

        Raises:
            ValueError: several images, values that are not finite, or a channel that does not exist.
        """
        _check(attribution)
        reduced = attrs.evolve(attribution, values=_reduced(attribution.values, self.reduce))
        scaled = reduced.normalized(scale=self.scale, vmax=self.vmax)
        orientation = orient(None if attribution.affine is None else attribution.affine[0], attribution.ndim)
        return Scene(
            backdrop=orientation.apply(_windowed(_backdrop(attribution.image[0], self.channel), self.window).float()),
            values=orientation.apply(reduced.values[0])[0],
            scaled=orientation.apply(scaled[0])[0].float(),
            top=_top(reduced.values, scaled, self.vmax),
            signed=attribution.signed,
            cmap=self.cmap or (SIGNED_CMAP if attribution.signed else UNSIGNED_CMAP),
            alpha=float(self.alpha),
            orientation=orientation,
        )


def describe(attribution: Attribution) -> str:
    """Return one line: method, target, score."""
    target = attribution.target
    if attribution.classes is not None and str(attribution.classes[0]) not in target.split():
        target = f"{target} class {attribution.classes[0]}".strip()
    score = "" if attribution.scores is None else f"score {attribution.scores[0]:.4g}"
    return "  ·  ".join(part for part in (attribution.method or "map", target, score) if part)


def _check(attribution: Attribution) -> None:
    if len(attribution) != 1:
        raise ValueError(f"a renderer draws one image; got {len(attribution)}: draw attribution[i].")
    for name in ("values", "image"):
        tensor = getattr(attribution, name)
        if not tensor.numel() or not all_finite(tensor):
            raise ValueError(f"`{name}` of the attribution is empty or holds NaN or infinite values; nothing is drawn.")
    if not attribution.signed and (attribution.values < 0).any():
        raise ValueError("`values` of the attribution hold negative values; make it with signed=True.")


def _reduced(values: Tensor, reduce: str | int) -> Tensor:  # (1, K, *S) -> (1, 1, *S)
    if isinstance(reduce, int):
        if reduce >= values.shape[1]:
            raise ValueError(f"`reduce` is channel {reduce}; the map has {values.shape[1]}, counted from 0.")
        return values[:, reduce : reduce + 1]
    if reduce == "max_abs":
        return values.gather(1, values.abs().argmax(1, keepdim=True))
    values = values.double() if values.shape[1] > 1 else values  # a sum may be larger than what float32 holds
    return values.sum(1, keepdim=True) if reduce == "sum" else values.mean(1, keepdim=True)


def _top(values: Tensor, scaled: Tensor, vmax: float | None) -> float:
    """The magnitude that became 1: scaling only divides, so it is the smallest of those that did."""
    if not values.any():
        return 0.0
    return vmax or float(values.abs()[scaled.abs() == 1].min())


def _backdrop(image: Tensor, channel: int | None) -> Tensor:  # (C, *S) -> (1 or 3, *S)
    image = image if image.dtype == torch.float64 else image.float()
    if channel is None:
        return image if image.ndim == 3 and len(image) == 3 else image.mean(0, keepdim=True)
    if channel >= len(image):
        raise ValueError(f"`channel` is {channel}; the image has {len(image)}, counted from 0.")
    return image[channel : channel + 1]


def _windowed(image: Tensor, window: tuple[float, float] | None) -> Tensor:
    low, high = window or _robust_range(image)
    return ((image - low) / (high - low)).clamp(0, 1) if high > low else torch.zeros_like(image)


def _robust_range(image: Tensor) -> tuple[float, float]:
    """Black and white of a picture: a photograph's colours stay as they are, outliers of a scan are cut off."""
    low, high = float(image.min()), float(image.max())
    if len(image) == 3:
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    step = -(-image.numel() // _ENOUGH)
    while any(math.gcd(step, length) > 1 for length in image.shape[1:]):  # else it would meet a few slices only
        step += 1
    inner = np.percentile(image.flatten()[::step].double().numpy(), (0.5, 99.5))
    return (float(inner[0]), float(inner[1])) if inner[1] > inner[0] else (low, high)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
