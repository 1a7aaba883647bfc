"""What the renderers share: their fields, and the map and its backdrop, checked, scaled and set upright."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medviz.attribution import Attribution
from medviz.hookspecs import Renderer
from medviz.renderers.blending import blend_images
from medviz.renderers.colour import colour, colour_table, get_cmap
from medviz.renderers.orientation import Orientation, orient, square_size

UNSIGNED_CMAP = "inferno"
SIGNED_CMAP = "bwr"
_OPACITY_POWER = 0.7  # below 1: half of the maximum is seen well, and still nothing is laid over a map of zero
_ENOUGH = 2_000_000  # values that percentiles are taken from; more would cost seconds and change nothing


@attrs.frozen(eq=False)
class Scene:
    """A map and its backdrop on the three display axes `(D, H, W)`; a 2-D image is a volume of one slice.

    Args:
        backdrop: `(1 or 3, D, H, W)` in [0, 1].
        values: the map as the method gave it, one channel, `(D, H, W)`.
        scaled: the same divided by `top`: [0, 1], or [-1, 1] where it is signed.
        top: the magnitude that has the last colour; 0 where the map is zero everywhere.
        signed: whether negative values mean something.
        cmap: name of the colour map.
        alpha: the largest opacity of the map.
        orientation: how the image's axes became the display axes.
    """

    backdrop: Tensor
    values: Tensor
    scaled: Tensor
    top: float
    signed: bool
    cmap: str
    alpha: float
    orientation: Orientation

    @property
    def shape(self) -> tuple[int, int, int]:
        """The number of voxels along each display axis."""
        depth, height, width = self.scaled.shape
        return depth, height, width

    def peak(self) -> tuple[int, int, int]:
        """Return where the magnitude is largest; of several such voxels the one nearest to their centre."""
        magnitude = self.values.abs()
        places = (magnitude == magnitude.max()).nonzero()
        distance = (places - places.double().mean(0)).square().sum(1)
        first, second, third = places[distance.argmin()].tolist()
        return first, second, third

    def span(self) -> str:
        """Return in words which raw values the first and the last colour mean."""
        if not self.top:
            return "the map is 0 everywhere"
        return f"colours {number(-self.top) if self.signed else 0} to {number(self.top)}"

    def size(self, axis: int, least: int = 1, most: int | None = None) -> tuple[int, int]:
        """Return the size in square pixels of a slice with `axis` fixed, `least` to `most` along its longer side."""
        kept = [i for i in range(3) if i != axis]
        shape, spacing = self.shape, self.orientation.spacing
        return square_size((shape[kept[0]], shape[kept[1]]), (spacing[kept[0]], spacing[kept[1]]), least, most)

    def slice(self, axis: int, at: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return backdrop `(1 or 3, *size)` and scaled map `(*size)` of one slice, linearly resampled."""
        backdrop = _resample(self.backdrop.select(axis + 1, at), size)
        return backdrop, _resample(self.scaled.select(axis, at)[None], size)[0]

    def picture(self, axis: int, at: int, size: tuple[int, int], wash: bool = True) -> np.ndarray:
        """Return one slice `(*size, 3)` uint8, with the map laid over it where `wash` is set."""
        backdrop, scaled = self.slice(axis, at, size)
        return to_uint8(self.wash(backdrop, scaled) if wash else backdrop.expand(3, -1, -1))

    def colours(self, scaled: np.ndarray) -> np.ndarray:
        """Return the full colours `(N, 3)` of scaled values `(N,)`."""
        position = torch.from_numpy((scaled + 1) / 2 if self.signed else scaled)
        return colour(position, colour_table(self.cmap)).T.numpy()

    def wash(self, backdrop: Tensor, scaled: Tensor) -> Tensor:
        """Lay the scaled map `(H, W)` over the backdrop `(1 or 3, H, W)`; zero is transparent."""
        position = (scaled + 1) / 2 if self.signed else scaled
        opacity = self.alpha * scaled.abs() ** _OPACITY_POWER
        washed: Tensor = blend_images(
            backdrop, position[None], opacity, self.cmap, rescale_arrays=False, transparent_background=False
        )
        return washed


def as_tuple(value: Any) -> Any:
    """Return a list as a tuple; anything else stays, for the validator to judge."""
    return tuple(value) if isinstance(value, list) else value


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
        window: the image's values that become black and white; None: its 0.5th and 99.5th percentiles.
    """

    cmap: str | None = attrs.field(default=None)
    alpha: float = attrs.field(default=0.75)
    channel: int | None = attrs.field(default=None)
    reduce: Literal["sum", "mean", "max_abs"] | int = attrs.field(default="sum")
    scale: Literal["max", "percentile"] = attrs.field(
        default="max", validator=attrs.validators.in_(("max", "percentile"))
    )
    vmax: float | None = attrs.field(default=None)
    window: tuple[float, float] | None = attrs.field(default=None, converter=as_tuple)

    @cmap.validator
    def _check_cmap(self, _: Any, value: Any) -> None:
        if value is not None:
            get_cmap(value)

    @alpha.validator
    def _check_alpha(self, _: Any, value: Any) -> None:
        if not _is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"`alpha` is an opacity from 0 to 1; got {value!r}.")

    @channel.validator
    def _check_channel(self, _: Any, value: Any) -> None:
        if value is not None and (not _is_whole(value) or value < 0):
            raise ValueError(f"`channel` is the number of a channel of the image, from 0, or None; got {value!r}.")

    @reduce.validator
    def _check_reduce(self, _: Any, value: Any) -> None:
        if value not in ("sum", "mean", "max_abs") and (not _is_whole(value) or value < 0):
            raise ValueError(f"`reduce` is 'sum', 'mean', 'max_abs' or the number of a channel; got {value!r}.")

    @vmax.validator
    def _check_vmax(self, _: Any, value: Any) -> None:
        if value is not None and (not _is_number(value) or not 0 < value < float("inf")):
            raise ValueError(f"`vmax` must be positive and finite; got {value!r}.")

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
            backdrop=orientation.apply(_windowed(_backdrop(attribution.image[0].float(), self.channel), self.window)),
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


def number(value: float) -> str:
    """Return a raw value with three digits, and a true minus sign."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def to_uint8(picture: Tensor) -> np.ndarray:
    """Return `(3, H, W)` in [0, 1] as `(H, W, 3)` uint8."""
    return picture.mul(255).round().clamp(0, 255).byte().movedim(0, -1).contiguous().numpy()


def pick_axis(orientation: Orientation, frame_axis: int | None) -> int:
    """Return the display axis that the frames run along; `frame_axis` is an axis of the image, or None for the first.

    Raises:
        ValueError: the image has no such axis, or it is 2-D and has no frames.
    """
    ndim = len(orientation.order)
    if frame_axis is None:
        return 0
    if ndim == 2:
        raise ValueError(f"`frame_axis` is {frame_axis}, but a 2-D image has no axis of frames; leave it at None.")
    if not -ndim <= frame_axis < ndim:
        raise ValueError(f"`frame_axis` is {frame_axis}; the image has {ndim} spatial axes, 0 to {ndim - 1}.")
    return orientation.display_axis(frame_axis % ndim)


def frame_places(scene: Scene, axis: int, frame_axis: int | None) -> list[int]:
    """Return the places of all frames on a display axis: foot to head, or in the image's own order if it was named."""
    places = list(range(scene.shape[axis]))
    orientation = scene.orientation
    if len(orientation.order) == 2:
        return places
    against = orientation.known if frame_axis is None else orientation.flips[axis]
    return places[::-1] if against else places


def _check(attribution: Attribution) -> None:
    if len(attribution) != 1:
        raise ValueError(f"a renderer draws one image; got {len(attribution)}: draw attribution[i].")
    for name in ("values", "image"):
        tensor = getattr(attribution, name)
        if not tensor.numel() or not torch.isfinite(tensor).all():
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
    return values.sum(1, keepdim=True) if reduce == "sum" else values.mean(1, keepdim=True)


def _top(values: Tensor, scaled: Tensor, vmax: float | None) -> float:
    """The magnitude that became 1: scaling only divides, so it is the smallest of those that did."""
    if not values.any():
        return 0.0
    return vmax or float(values.abs()[scaled.abs() == 1].min())


def _backdrop(image: Tensor, channel: int | None) -> Tensor:  # (C, *S) -> (1 or 3, *S)
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
    flat = image.flatten()
    inner = np.percentile(flat[:: -(-len(flat) // _ENOUGH)].double().numpy(), (0.5, 99.5))
    return (float(inner[0]), float(inner[1])) if inner[1] > inner[0] else (low, high)


def _resample(x: Tensor, size: tuple[int, int]) -> Tensor:  # (C, h, w) -> (C, *size)
    if x.shape[1:] == size:
        return x
    smaller = any(new < old for new, old in zip(size, x.shape[1:], strict=True))
    return interpolate(x[None], size, mode="bilinear", antialias=smaller)[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
