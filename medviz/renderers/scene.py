"""A map and its backdrop, scaled and set upright: what every renderer draws slices of."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medviz.renderers.blending import blend_images
from medviz.renderers.colour import colour, colour_table
from medviz.renderers.orientation import Orientation, square_size

_OPACITY_POWER = 0.7  # below 1: half of the maximum is seen well, and still nothing is laid over a map of zero
_LONGEST = 1e6  # from there on, a power of ten is read more easily
_AT_ONCE = 1 << 18  # pixels that are resampled and blended together, so that a long movie takes no more memory


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
        largest = magnitude == magnitude.max()
        # no list of places, for all voxels of a map may be 0
        distance = torch.zeros(self.shape, dtype=torch.float64, device="cpu")
        for axis, voxels in enumerate(self.shape):
            counts = largest.sum([other for other in range(3) if other != axis]).double()
            along = torch.arange(voxels, dtype=torch.float64, device="cpu")
            centre = (counts @ along) / counts.sum()
            distance += (along - centre).square().view([-1 if other == axis else 1 for other in range(3)])
        place = int(distance.masked_fill_(~largest, torch.inf).argmin())
        first, second, third = np.unravel_index(place, self.shape)
        return int(first), int(second), int(third)

    def span(self) -> str:
        """Return in words which raw values the first and the last colour mean."""
        if not self.top:
            return "the map is 0 everywhere"
        return f"colours {three_digits(-self.top) if self.signed else 0} to {three_digits(self.top)}"

    def size(self, axis: int, least: int = 1, most: int | None = None) -> tuple[int, int]:
        """Return the size in square pixels of a slice with `axis` fixed, `least` to `most` along its longer side."""
        kept = [i for i in range(3) if i != axis]
        shape, spacing = self.shape, self.orientation.spacing
        return square_size((shape[kept[0]], shape[kept[1]]), (spacing[kept[0]], spacing[kept[1]]), least, most)

    def slices(self, axis: int, places: Sequence[int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return backdrop `(1 or 3, T, *size)` and scaled map `(T, *size)` of T slices, linearly resampled."""
        index = torch.tensor(places, device="cpu")
        backdrop = self.backdrop.index_select(axis + 1, index).movedim(axis + 1, 1)
        return _resample(backdrop, size), _resample(self.scaled.index_select(axis, index).movedim(axis, 0), size)

    def pictures(self, axis: int, places: Sequence[int], size: tuple[int, int], wash: bool = True) -> np.ndarray:
        """Return slices `(T, *size, 3)` uint8, with the map laid over them where `wash` is set."""
        pictures = np.empty((len(places), *size, 3), np.uint8)
        step = max(1, _AT_ONCE // (size[0] * size[1]))
        for start in range(0, len(places), step):
            some = slice(start, start + step)
            backdrop, scaled = self.slices(axis, places[some], size)
            pictures[some] = to_uint8(self.wash(backdrop, scaled) if wash else backdrop.expand(3, -1, -1, -1))
        return pictures

    def picture(self, axis: int, at: int, size: tuple[int, int], wash: bool = True) -> np.ndarray:
        """Return one slice `(*size, 3)` uint8, with the map laid over it where `wash` is set."""
        picture: np.ndarray = self.pictures(axis, [at], size, wash)[0]
        return picture

    def colours(self, scaled: np.ndarray) -> np.ndarray:
        """Return the full colours `(N, 3)` of scaled values `(N,)`."""
        position = torch.from_numpy((scaled + 1) / 2 if self.signed else scaled)
        return colour(position, colour_table(self.cmap)).T.numpy()

    def wash(self, backdrop: Tensor, scaled: Tensor) -> Tensor:
        """Lay the scaled map `(*S)` over the backdrop `(1 or 3, *S)`, both 2-D or 3-D; zero is transparent."""
        position = (scaled + 1) / 2 if self.signed else scaled
        opacity = scaled.abs().clamp_(max=1).pow_(_OPACITY_POWER).mul_(self.alpha)  # resampling may round above 1
        washed: Tensor = blend_images(
            backdrop, position[None], opacity, self.cmap, rescale_arrays=False, transparent_background=False
        )
        return washed


def three_digits(value: float) -> str:
    """Return a raw value with three digits that count, such as 0.0123 or 1,840, and a true minus sign."""
    text = f"{value + 0.0:.3g}"
    if "e+" in text and abs(value) < _LONGEST:
        text = f"{float(text):,.0f}"
    return text.replace("-", "\N{MINUS SIGN}")


def millimetres(value: float) -> str:
    """Return a place in millimetres with one digit after the point, where it is not 0, and a true minus sign."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0").replace("-", "\N{MINUS SIGN}")


def to_uint8(picture: Tensor) -> np.ndarray:
    """Return `(3, *S)` in [0, 1] as `(*S, 3)` uint8."""
    return picture.mul(255).round_().clamp_(0, 255).byte().movedim(0, -1).contiguous().numpy()


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


def _resample(x: Tensor, size: tuple[int, int]) -> Tensor:  # (C, T, h, w) or (T, h, w) -> (…, *size)
    old = x.shape[-2:]
    if old == size:
        return x
    smaller = any(new < n for new, n in zip(size, old, strict=True))
    planes = interpolate(x.reshape(1, -1, *old), size, mode="bilinear", antialias=smaller)
    return planes.view(*x.shape[:-2], *size)
