"""The documented `blend_images`: a label or a heat map laid over an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medviz.renderers.colour import colour, colour_labels, colour_table, is_integer
from medviz.tensors import as_tensor, precise

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

_ROUNDING = 1e-3  # how far interpolation may carry a value beyond [0, 1] without its being another unit
_AT_ONCE = 1 << 17  # voxels: few calls of torch, and what they make stays in the processor's cache
_MANY = 1 << 24  # voxels on another device
_WITHOUT_ORDER = (torch.uint16, torch.uint32, torch.uint64)  # torch finds no smallest and largest of these


def blend_images(
    image: Any,
    label: Any,
    alpha: Any = 0.5,
    cmap: str | Colormap = "hsv",
    rescale_arrays: bool = True,
    transparent_background: bool = True,
) -> Any:
    """Blend an image with a label or a heat map.

    Source: the text and results of `monai.visualize.blend_images` 1.6.1. Differs where that is defective: background is
    where the label as given is 0; an integer label has a colour of its own, whatever other labels there are and whether
    it is rescaled or not; the range of a heat map always includes 0; `alpha` is never changed.

    Args:
        image: `(C, H, W[, D])`, C 1 or 3, array or tensor.
        label: `(1, H, W[, D])`. Integers or truth values: labels. Floating point: a heat map.
        alpha: opacity of the label, 0 to 1: a number, or an array `(H, W[, D])`, `(1, H, W[, D])` or of the image's
            shape.
        cmap: a colour map of matplotlib.
        rescale_arrays: scale image and heat map to [0, 1] first. Otherwise the image must lie there already; a heat map
            beyond gets the first or last colour.
        transparent_background: leave the image as it is where the label is 0.

    Returns:
        `(3, H, W[, D])` float32 in [0, 1]: a tensor on the image's device where `image` is one, else an array.

    Raises:
        TypeError: not arrays or tensors.
        ValueError: shapes that do not fit, values that are not finite, values outside [0, 1], unknown colour map.
    """
    picture = _as_tensor(image, "image")
    layer = _as_tensor(label, "label", picture.device)
    _check_shapes(picture, layer)
    opacity = _opacity(alpha, picture).expand(-1, layer.numel())
    lighten = _scaling(picture, "image", rescale_arrays)
    paint = _painting(layer, colour_table(cmap), rescale_arrays)
    blended = _empty_like(image if isinstance(image, Tensor) else picture)
    target = blended.as_subclass(Tensor).view(3, -1)
    picture, layer = picture.flatten(1), layer.flatten(1)
    step = _at_once(layer)
    for part in (slice(start, start + step) for start in range(0, layer.shape[1], step)):
        weight = opacity[:, part]
        if transparent_background:
            weight = weight * torch.ne(layer[:, part], 0, out=torch.empty_like(layer[:, part], dtype=torch.float32))
        torch.lerp(lighten(picture[:, part]), paint(layer[0, part]), weight, out=target[:, part])
    return blended if isinstance(image, Tensor) else blended.numpy()


def _at_once(x: Tensor) -> int:
    """Return how many voxels are worked on together."""
    return _AT_ONCE if x.device.type == "cpu" else _MANY


def _painting(layer: Tensor, table: Tensor, rescale: bool) -> Callable[[Tensor], Tensor]:
    """Return what gives values `(n,)` of the label their colours `(3, n)`."""
    if not is_integer(layer):
        scale = _scaling(layer, "label", rescale, include_zero=True)
        return lambda values: colour(scale(values), table)
    low, high = (int(end) for end in _ends(layer.long() if layer.dtype in _WITHOUT_ORDER else layer))
    if high - low >= _AT_ONCE:
        return lambda values: colour_labels(values, table)
    every = colour_labels(torch.arange(low, high + 1, device=layer.device), table).contiguous()
    return lambda values: every.index_select(1, values.long() - low)


def _scaling(x: Tensor, name: str, rescale: bool, include_zero: bool = False) -> Callable[[Tensor], Tensor]:
    """Return what maps values of `x` to [0, 1], float32: the smallest to 0 and the largest to 1; a constant to 0.

    For a heat map the range includes 0, the background's value: a map that is nowhere 0 keeps its smallest value
    visible, and a constant one is all 1.
    """
    low, high = _bounds(x, name)
    if not rescale:
        if not include_zero and (low < -_ROUNDING or high > 1 + _ROUNDING):
            raise ValueError(
                f"`{name}` spans {low:g} to {high:g}; with rescale_arrays=False it must lie in [0, 1]: divide it, or "
                "set rescale_arrays=True."
            )
        return lambda values: values.float().clamp(0, 1)
    if include_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    span = high - low if high > low else torch.ones_like(low)
    widened = precise if low.dtype == torch.float64 else Tensor.float
    return lambda values: widened(values).sub(low).div_(span).float().to(values.device)  # float64 may be on the CPU


def _bounds(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value, in the type that values are scaled in: float32, or float64."""
    low, high = _ends(precise(x) if x.dtype in _WITHOUT_ORDER else x)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError(f"`{name}` holds {int((~torch.isfinite(x)).sum())} values that are NaN or infinite.")
    narrow = x.is_floating_point() and x.dtype != torch.float64 and torch.isfinite(high.float() - low.float())
    return (low.float(), high.float()) if narrow else (precise(low), precise(high))


def _ends(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value; NaN if there is one."""
    ends = [part.aminmax() for part in torch.split(x.flatten(), _at_once(x))]
    return torch.stack([end.min for end in ends]).amin(), torch.stack([end.max for end in ends]).amax()


def _empty_like(image: Tensor) -> Tensor:
    """Return `(3, *S)`, not filled; a MetaTensor hands its affine on to what is computed from it."""
    coloured = image.detach()[:1].expand(3, *image.shape[1:])
    return torch.empty_like(coloured, dtype=torch.float32, memory_format=torch.contiguous_format)


def _as_tensor(array: Any, name: str, device: torch.device | None = None) -> Tensor:
    if not isinstance(array, Tensor | np.ndarray):
        raise TypeError(f"`{name}` is a {type(array).__name__}; expected a tensor or an array.")
    if isinstance(array, np.ndarray) and array.dtype.kind not in "biufc":
        raise TypeError(f"`{name}` holds {array.dtype}; expected numbers.")
    tensor: Tensor = as_tensor(array).detach().as_subclass(Tensor).to(device)
    if tensor.is_complex():
        raise TypeError(f"`{name}` holds {tensor.dtype}; expected real numbers.")
    return tensor


def _check_shapes(image: Tensor, label: Tensor) -> None:
    if image.ndim not in (3, 4) or image.shape[0] not in (1, 3) or not image.numel():
        raise ValueError(f"`image` has shape {tuple(image.shape)}; expected (C, H, W) or (C, H, W, D), C 1 or 3.")
    if tuple(label.shape) != (1, *image.shape[1:]):
        raise ValueError(
            f"`label` has shape {tuple(label.shape)}; for this image it must be {(1, *image.shape[1:])}: one channel, "
            "the image's size."
        )


def _opacity(alpha: Any, image: Tensor) -> Tensor:  # (1 or C, N), or (1, 1) for a number
    if isinstance(alpha, Tensor | np.ndarray) and alpha.ndim:
        opacity = _as_tensor(alpha, "alpha", image.device).float()
        opacity = opacity[None] if opacity.ndim == image.ndim - 1 else opacity
        if tuple(opacity.shape) not in (tuple(image.shape), (1, *image.shape[1:])):
            raise ValueError(
                f"`alpha` has shape {tuple(alpha.shape)}; expected a number, {tuple(image.shape[1:])}, "
                f"{(1, *image.shape[1:])} or {tuple(image.shape)}."
            )
    else:
        try:
            opacity = torch.full((1, 1), float(alpha), dtype=torch.float32, device=image.device)
        except (TypeError, ValueError) as err:
            raise TypeError(f"`alpha` is a number or an array; got {alpha!r}.") from err
    low, high = opacity.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"`alpha` must lie in [0, 1]; got {low:g} to {high:g}.")
    return opacity.reshape(len(opacity), -1)
