"""What the methods that read layers share: which layers, tokens as a grid, several layers fused into one map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import attrs
from torch import Tensor

from medviz.hookspecs import Explainer
from medviz.probe import Probe
from medviz.probe.centres import centres
from medviz.targets import FixedTarget
from medviz.tensors import resize
from medviz.validators import as_python, of_type

_ORDERS = {"channels_first": 1, "channels_last": -1}  # the axis of the channels
_ALIKE = 1.5  # the steps of a grid along two axes, which padding may make unequal
Reshape = Callable[[Tensor], Tensor] | Sequence[int] | str | None


def _as_layers(layer: Any) -> str | tuple[str, ...] | None:
    if layer is None:
        return None
    names = tuple(map(as_name, layer if isinstance(layer, tuple | list) else [layer]))
    if not names or len(set(names)) < len(names):
        raise TypeError(f"`layer` is the name of a module, several different names, or None; got {layer!r}.")
    return names if isinstance(layer, tuple | list) else names[0]


def as_name(name: Any) -> str:
    """Return a module's name; those of an nn.Sequential are numbers, which plugin strings read as numbers."""
    if isinstance(name, float):
        raise TypeError(
            f"a layer is named, and {name!r} is a number; put a name such as '0.10' in quotes, and in a shell others "
            "around them: \"gradcam:layer='0.10'\"."
        )
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise TypeError(f"a layer is the dotted name of a module; got {name!r}.")
    return str(name)


def _as_reshape(reshape: Any) -> Any:
    reshape = as_python(reshape)
    if reshape is None or callable(reshape) or (isinstance(reshape, str) and reshape in _ORDERS):
        return reshape
    if isinstance(reshape, tuple | list) and reshape and all(isinstance(n, int) and n > 0 for n in reshape):
        return tuple(reshape)
    expected = "None, a grid such as (14, 14), 'channels_first', 'channels_last' or a callable"
    raise TypeError(f"`reshape` is {expected}; got {reshape!r}.")


@attrs.frozen(eq=False)
class LayerExplainer(Explainer):
    """A method that makes one map from each layer; subclass it and implement `explain` with `self.fused`.

    Args:
        layer: dotted name of a module whose output is `(B, K, *s)` or tokens `(B, N, K)`; several names: their maps are
            fused; None: the last layer that still has a spatial extent (for a segmentation output the last one on the
            coarsest grid).
        reshape: how tokens become a grid: the grid `(14, 14)`, behind whatever class tokens lead; "channels_last" for
            `(B, *s, K)` and "channels_first" for `(B, K, *s)`, where the layers do not tell; a callable from the
            layer's output to `(B, K, *s)`; None: found from the layers, the number of tokens and the image's shape,
            where only one grid fits.
        aligned: put each cell of the layer's grid where its receptive field has its centre in the image, by one more
            pass over one image. False: where resizing puts it, in the middle of an equal part of the image, as other
            libraries do: each convolution of kernel 3, stride 2 and padding 1 on the way, at the stride t, moves the
            map by t / 2 voxels towards higher indices.
    """

    needs_layer: ClassVar[bool] = True

    layer: str | tuple[str, ...] | None = attrs.field(default=None, converter=_as_layers)
    reshape: Reshape = attrs.field(default=None, converter=_as_reshape, kw_only=True)
    aligned: bool = attrs.field(default=False, validator=of_type(bool), kw_only=True)

    def fused(self, probe: Probe, one: Callable[[str], Tensor]) -> Tensor:
        """Return `one(layer)` `(B, 1, *s)`; for several layers the mean of their maps, each of magnitude at most 1.

        Maps of different layers have different units: each is divided by the largest magnitude in each image, and they
        are resized linearly to the finest of their grids. A map of zeros counts as zeros. Where they are `aligned`,
        they are on the image's grid.
        """
        asked = [self.layer] if self.layer is None or isinstance(self.layer, str) else self.layer
        names = [probe.layer_name(name) for name in asked]
        maps = [one(name) for name in names]
        if self.aligned:
            places = centres(probe, {name: m.shape[2:] for name, m in zip(names, maps, strict=True)})
            maps = [place.resample(m, probe.inputs.shape[2:]) for place, m in zip(places, maps, strict=True)]
        if len(maps) == 1:
            return maps[0]
        grid = max((m.shape[2:] for m in maps), key=math.prod)
        scaled = [m / m.abs().flatten(1).amax(1).clamp(min=1e-30).view(-1, *[1] * (m.ndim - 1)) for m in maps]
        resized = [resize(m, grid) for m in scaled]
        return sum(resized[1:], resized[0]) / len(resized)

    def activation(self, probe: Probe, layer: str) -> Tensor:
        """Return the layer's output as `(B, K, *s)`."""
        return self.grid(probe, layer, probe.activation(layer))

    def gradient(self, probe: Probe, layer: str, target: FixedTarget) -> Tensor:
        """Return the gradient of the score with respect to the layer's output, as `(B, K, *s)`.

        Raises:
            ValueError: the score depends on the layer's class token alone, so that there is nothing to map.
        """
        gradient = probe.gradient(layer, target)
        grid = self.grid(probe, layer, gradient)
        if gradient.ndim == 3 and gradient.any() and not grid.any():
            raise ValueError(
                f"the score {target.label!r} depends on `layer` {layer!r} only through its class token; name a layer "
                "before the last attention, such as the first norm of the last block."
            )
        return grid

    def grid(self, probe: Probe, layer: str, features: Tensor) -> Tensor:
        """Return a layer's features as `(B, K, *s)`.

        Raises:
            ValueError: they have no spatial extent, their channels come last, or it is ambiguous which tokens stand
                where.
        """
        image = tuple(probe.inputs.shape)
        if callable(self.reshape):
            features = self.reshape(features)
        elif features.ndim == 3 and self.reshape not in _ORDERS:
            sizes = self.reshape if self.reshape is not None else _token_grid(features.shape[1], image[2:], layer)
            features = _tokens_to_grid(features, tuple(int(n) for n in sizes), layer)
        elif features.ndim == len(image):
            features = self._channels_first(probe, layer, features)
        elif self.reshape == "channels_last":
            features = features.movedim(-1, 1)
        if features.ndim != len(image) or len(features) != image[0] or math.prod(features.shape[2:]) <= 1:
            raise ValueError(
                f"`layer` {layer!r} has no spatial extent: its features are {tuple(features.shape)}, expected "
                f"(B, K, *s) with {len(image) - 2} spatial axes and more than one cell. Name an earlier layer, or say "
                "with `reshape` how to get there."
            )
        return features

    def _channels_first(self, probe: Probe, layer: str, features: Tensor) -> Tensor:
        """Return features that are a grid already, `(B, K, *s)` or `(B, *s, K)`, as the former."""
        axis = probe.remember((layer, "axis"), lambda: probe.channel_axis(layer))
        returns = f"`layer` {layer!r} returns {tuple(features.shape)}"
        if self.reshape is None and axis is None and _ends_in_channels(features.shape, probe.inputs.shape):
            raise ValueError(
                f"{returns}, and the layers do not tell whether its channels come first or last; give "
                "reshape='channels_first' or 'channels_last'."
            )
        if self.reshape is None and axis == -1:
            raise ValueError(
                f"{returns}, channels last; give reshape='channels_last', if the axes between are those of the image, "
                "and not of heads, windows or tokens (where the channels do come first, a function that returns them "
                "as they are)."
            )
        if self.reshape in _ORDERS and axis == -_ORDERS[self.reshape]:
            raise ValueError(
                f"{returns}, channels {'first' if axis == 1 else 'last'}; leave `reshape` out (or, where they do come "
                f"{'last' if axis == 1 else 'first'}, give a function that returns `(B, K, *s)`)."
            )
        if self.reshape == "channels_last":
            return features.movedim(-1, 1)
        if isinstance(self.reshape, tuple) and tuple(features.shape[2:]) != self.reshape:
            raise ValueError(f"{returns}, which is a grid already; `reshape` {self.reshape} is for tokens (B, N, K).")
        return features


def _ends_in_channels(shape: Sequence[int], image: Sequence[int]) -> bool:
    """Return whether the axes before the last are in the image's proportions, and those behind the second are not."""
    return _is_in_proportion(shape[1:-1], image[2:]) and not _is_in_proportion(shape[2:], image[2:])


def _is_in_proportion(grid: Sequence[int], image: Sequence[int]) -> bool:
    steps = [size / cells for size, cells in zip(image, grid, strict=True)]
    return max(steps) <= _ALIKE * min(steps)


def _tokens_to_grid(tokens: Tensor, grid: tuple[int, ...], layer: str) -> Tensor:
    leading = tokens.shape[1] - math.prod(grid)
    if leading < 0:
        raise ValueError(f"`reshape` {grid} wants {math.prod(grid)} tokens; `layer` {layer!r} has {tokens.shape[1]}.")
    return tokens[:, leading:].movedim(1, 2).reshape(len(tokens), -1, *grid)


def _token_grid(tokens: int, image: tuple[int, ...], layer: str) -> tuple[int, ...]:
    """Return the one grid of equal patches that gives this number of tokens, with at most one class token.

    Cubic patches are preferred; without any, a grid counts if it is the only one whose patches divide the image.
    """
    for cubic in (True, False):
        grids = {grid for n in (tokens, tokens - 1) for grid in _grids(n, image, cubic)}
        if len(grids) == 1:
            return grids.pop()
        if grids:
            break
    raise ValueError(
        f"`layer` {layer!r} returns {tokens} tokens for an image {image}, and "
        f"{'several grids fit: ' + str(_likely(grids, image)[:4]) if grids else 'no grid fits'}; give `reshape=(…)`."
    )


def _likely(grids: Collection[tuple[int, ...]], image: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return grids, those first whose patches are nearest to cubes."""

    def stretched(grid: tuple[int, ...]) -> float:
        patch = [n / cells for n, cells in zip(image, grid, strict=True)]
        return max(patch) / min(patch)

    return sorted(sorted(grids), key=stretched)


def _grids(tokens: int, image: tuple[int, ...], cubic: bool) -> list[tuple[int, ...]]:
    if tokens < 2:
        return []
    if cubic:
        edges = range(1, min(image) + 1)
        candidates = [tuple(s // p for s in image) for p in edges if all(s % p == 0 for s in image)]
    else:
        candidates = list(itertools.product(*[[n for n in range(1, s + 1) if s % n == 0] for s in image]))
    return [grid for grid in candidates if math.prod(grid) == tokens]
