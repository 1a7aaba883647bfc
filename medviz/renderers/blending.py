"""The documented `blend_images`: a label or a heat map laid over an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medviz.renderers.colour import colour, colour_labels, colour_table, is_integer

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

_ROUNDING = 1e-3  # how far interpolation may carry a value beyond [0, 1] without its being another unit


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
    opacity = _opacity(alpha, picture)
    if transparent_background:
        opacity = torch.where(layer == 0, 0, opacity)
    picture = _rescale(picture) if rescale_arrays else _as_unit(picture, "image")
    blended = (1 - opacity) * picture + opacity * _colours(layer[0], colour_table(cmap), rescale_arrays)
    return _like(blended, image)


def _colours(layer: Tensor, table: Tensor, rescale: bool) -> Tensor:  # (*S) -> (3, *S)
    if is_integer(layer):
        return colour_labels(layer, table)
    return colour(_rescale(layer, include_zero=True) if rescale else layer, table)


def _as_tensor(array: Any, name: str, device: torch.device | None = None) -> Tensor:
    if not isinstance(array, Tensor | np.ndarray):
        raise TypeError(f"`{name}` is a {type(array).__name__}; expected a tensor or an array.")
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in "biufc":
            raise TypeError(f"`{name}` holds {array.dtype}; expected numbers.")
        array = torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
    tensor: Tensor = array.detach().as_subclass(Tensor).to(device)
    if tensor.is_complex():
        raise TypeError(f"`{name}` holds {tensor.dtype}; expected real numbers.")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"`{name}` holds {int((~torch.isfinite(tensor)).sum())} values that are NaN or infinite.")
    return tensor


def _check_shapes(image: Tensor, label: Tensor) -> None:
    if image.ndim not in (3, 4) or image.shape[0] not in (1, 3) or not image.numel():
        raise ValueError(f"`image` has shape {tuple(image.shape)}; expected (C, H, W) or (C, H, W, D), C 1 or 3.")
    if tuple(label.shape) != (1, *image.shape[1:]):
        raise ValueError(
            f"`label` has shape {tuple(label.shape)}; for this image it must be {(1, *image.shape[1:])}: one channel, "
            "the image's size."
        )


def _opacity(alpha: Any, image: Tensor) -> Tensor:  # a new tensor, (1 or C, *S), or () for a number
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
            opacity = torch.tensor(float(alpha), device=image.device)
        except (TypeError, ValueError) as err:
            raise TypeError(f"`alpha` is a number or an array; got {alpha!r}.") from err
    if not ((opacity >= 0) & (opacity <= 1)).all():
        raise ValueError(f"`alpha` must lie in [0, 1]; got {float(opacity.min()):g} to {float(opacity.max()):g}.")
    return opacity


def _rescale(x: Tensor, include_zero: bool = False) -> Tensor:
    """Map the smallest value to 0 and the largest to 1, in float32; a constant image becomes 0.

    For a heat map the range includes 0, the background's value: a map that is nowhere 0 keeps its smallest value
    visible, and a constant one is all 1.
    """
    x = x.to(torch.float32 if x.is_floating_point() and x.dtype != torch.float64 else torch.float64)
    low, high = x.min(), x.max()
    if include_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    return ((x - low) / (high - low)).float() if high > low else torch.zeros_like(x, dtype=torch.float32)


def _as_unit(x: Tensor, name: str) -> Tensor:
    low, high = float(x.min()), float(x.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"`{name}` spans {low:g} to {high:g}; with rescale_arrays=False it must lie in [0, 1]: divide it, or set "
            "rescale_arrays=True."
        )
    return x.float().clamp(0, 1)


def _like(result: Tensor, image: Any) -> Any:
    if not isinstance(image, Tensor):
        return result.numpy()
    if type(image) is Tensor:
        return result
    return image.detach()[:1].float().zero_() + result  # a MetaTensor hands its affine on to what is computed from it
