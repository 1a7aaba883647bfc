"""Where in the image the cells of a layer's grid lie: followed through a pass, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from medviz.incremental import windows
from medviz.probe.layers import hooked, module_of
from medviz.probe.outputs import first_tensor, tensors_in
from medviz.probe.probe import Probe

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_POOL = ("input", "kernel_size", "stride", "padding")
_MAX_POOL = (*_POOL, "dilation", "ceil_mode")
_PAD = ("input", "pad")
_RESIZED = ("input", "size", "scale_factor", "mode", "align_corners")
_TURNS = {"flip", "fliplr", "flipud", "roll", "rot90", "grid_sample"}
_RESHAPES = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "reshape", "view", "unflatten"}

Size = tuple[int, ...]
Moved = tuple[Sequence[float], Sequence[float]] | None


@attrs.frozen
class Centres:
    """The centres of the cells of a grid, in voxels of the image: that of cell i lies at `first + i · step`.

    Args:
        first: of the first cell, along each axis.
        step: from one cell to the next, along each axis.
    """

    first: tuple[float, ...]
    step: tuple[float, ...]

    def moved(self, by: Sequence[float], times: Sequence[float]) -> Centres:
        """Return those of another grid, whose cell j lies in this one at `by + j · times`."""
        first = tuple(f + s * b for f, s, b in zip(self.first, self.step, by, strict=True))
        return Centres(first, tuple(s * t for s, t in zip(self.step, times, strict=True)))

    def resample(self, values: Tensor, size: Sequence[int]) -> Tensor:
        """Return `(B, K, *s)` on the image's grid `size`: linear between the centres, and constant beyond them."""
        for axis, (first, step, voxels) in enumerate(zip(self.first, self.step, size, strict=True), start=2):
            last = values.shape[axis] - 1
            place = torch.arange(voxels, dtype=torch.float64, device="cpu").sub(first).div(step).clamp(0, last)
            low = place.floor().clamp(max=max(0, last - 1))
            weight = (place - low).to(values).view(-1, *[1] * (values.ndim - 1 - axis))
            index = low.long().to(values.device)
            lower, upper = (values.index_select(axis, i) for i in (index, (index + 1).clamp(max=last)))
            values = torch.lerp(lower, upper, weight)
        return values


def centres(probe: Probe, layer: str, grid: Sequence[int]) -> Centres:
    """Return where the cells of a layer lie, after one pass over one image that is made for all layers at once.

    Args:
        probe: it is open.
        layer: a module's name.
        grid: the size of its map, `*s`; tokens lie where the grid of that size lay.

    Raises:
        ValueError: an operation on the way moves voxels in a way that is not known.
    """
    follow: _Follow = probe.remember((centres, layer), lambda: _followed(probe, layer))
    found = follow.of_layer(tuple(grid))
    if found is None:
        raise ValueError(
            f"it is not known where in the image the cells of `layer` {layer!r}, {tuple(grid)}, lie: something before "
            "it moves voxels in another way than convolutions, poolings and resizing do; leave out aligned=True."
        )
    return found


def _followed(probe: Probe, layer: str) -> _Follow:
    image = probe.inputs[:1].clone()
    with probe.model() as model, torch.no_grad():
        follow = _Follow(image, len(probe.inputs.shape) - 2)
        with hooked([(module_of(model, layer), follow.keep)]), follow:
            probe.run(image, torch.zeros(1, dtype=torch.long, device=image.device))
    return follow


class _Follow(TorchFunctionMode):
    """Notes of every map, while the network runs, where its cells lie."""

    def __init__(self, image: Tensor, nd: int) -> None:
        super().__init__()
        self._nd = nd
        self._known: Any = WeakTensorKeyDictionary()
        self._of_size: dict[Size, set[Centres | None]] = {}  # None: one of them lies somewhere else
        self._kept: tuple[Size, Centres | None] | None = None
        self._note(image, Centres((0.0,) * nd, (1.0,) * nd))

    def keep(self, module: Any, given: Any, output: Any) -> None:
        """Keep those of what the layer returns: a forward hook."""
        tensor = first_tensor(output)
        if tensor is not None and tensor.ndim == self._nd + 2:
            self._kept = tuple(tensor.shape[2:]), self._known.get(tensor)

    def of_layer(self, grid: Size) -> Centres | None:
        """Return those of the layer that was kept; or of all maps on such a grid, where they lie in one place."""
        if self._kept is not None and self._kept[0] == grid and self._kept[1] is not None:
            return self._kept[1]
        return self._alone(grid)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for made in tensors_in(result):
            if made.ndim == self._nd + 2 and made not in self._known:
                self._note(made, self._made(func, args, kwargs, made))
        return result

    def _note(self, tensor: Tensor, where: Centres | None) -> None:
        if where is not None:
            self._known[tensor] = where
            self._of_size.setdefault(tuple(tensor.shape[2:]), set()).add(where)

    def _alone(self, grid: Size) -> Centres | None:
        found = self._of_size.get(grid, set())
        return next(iter(found)) if len(found) == 1 else None

    def _made(self, func: Any, args: Any, kwargs: Mapping[str, Any], made: Tensor) -> Centres | None:
        """Return those of what an operation has made."""
        name = getattr(func, "__name__", "")
        before = [tensor for tensor in tensors_in([*args, *kwargs.values()]) if tensor in self._known]
        if not before:
            return None
        source, grid = before[0], tuple(made.shape[2:])
        moves = _MOVES.get(name.removesuffix("_with_indices").replace(f"{self._nd}d", ""))
        if moves is not None:
            moved = moves(self._nd, args, kwargs, tuple(source.shape[2:]), grid)
            return None if moved is None else self._known[source].moved(*moved)
        if name in _TURNS:
            self._of_size.setdefault(grid, set()).add(None)
            return None
        same = [tensor for tensor in before if tuple(tensor.shape[2:]) == grid]
        return self._known[same[0]] if same and name not in _RESHAPES else self._alone(grid)


def _bound(names: Sequence[str], args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _through(window: windows.Window | windows.Transposed | None) -> Moved:
    """Return where the outputs of a window lie in its input."""
    if window is None:
        return None
    middle = [(k - 1) * d / 2 for k, d in zip(window.kernel, window.dilation, strict=True)]
    if isinstance(window, windows.Transposed):
        axes = list(zip(middle, window.padding, window.stride, strict=True))
        return [(p - m) / s for m, p, s in axes], [1 / s for _, _, s in axes]
    return [m - low for m, (low, _) in zip(middle, window.padding, strict=True)], window.stride


def _convolution(nd: int, args: Any, kwargs: Any, old: Size, new: Size) -> Moved:
    given = _bound(_CONVOLUTION, args, kwargs)
    given.pop("input")
    return _through(windows.convolution(**given))


def _transposed(nd: int, args: Any, kwargs: Any, old: Size, new: Size) -> Moved:
    given = _bound(_TRANSPOSED, args, kwargs)
    each = [windows.each_axis(given.get(name, usual), nd) for name, usual in (("stride", 1), ("padding", 0))]
    dilation = windows.each_axis(given.get("dilation", 1), nd)
    kernel = tuple(given["weight"].shape[2:])
    return _through(windows.Transposed(kernel, each[0], each[1], dilation, lambda block: block))


def _max_pool(nd: int, args: Any, kwargs: Any, old: Size, new: Size) -> Moved:
    given = _bound(_MAX_POOL, args, kwargs)
    stride, padding, dilation = given.get("stride"), given.get("padding", 0), given.get("dilation", 1)
    return _through(windows.max_pool(nd, given["kernel_size"], stride, padding, dilation))


def _avg_pool(nd: int, args: Any, kwargs: Any, old: Size, new: Size) -> Moved:
    given = _bound(_POOL, args, kwargs)
    return _through(windows.avg_pool(nd, given["kernel_size"], given.get("stride"), given.get("padding", 0)))


def _pad(nd: int, args: Any, kwargs: Any, old: Size, new: Size) -> Moved:
    given = _bound(_PAD, args, kwargs)
    before = [*given["pad"], *[0] * 2 * nd][: 2 * nd : 2]  # the last axis comes first
    return [-float(n) for n in reversed(before)], [1.0] * nd


def _resized(nd: int, args: Any, kwargs: Any, old: Size, new: Size) -> Moved:
    """Every cell of the new grid stands for an equal part of the old one."""
    if _bound(_RESIZED, args, kwargs).get("align_corners"):
        return [0.0] * nd, [(o - 1) / max(1, n - 1) for o, n in zip(old, new, strict=True)]
    times = [o / n for o, n in zip(old, new, strict=True)]
    return [(t - 1) / 2 for t in times], times


def _piece(nd: int, args: Any, kwargs: Any, old: Size, new: Size) -> Moved:
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if any(not isinstance(one, slice) and one is not Ellipsis for one in index):
        return None
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    every = [*index[:at], *[slice(None)] * (nd + 2 - len(index) + (Ellipsis in index)), *index[at + 1 :]]
    taken = [range(n)[one] for one, n in zip(every[2:], old, strict=True)]
    return [r.start for r in taken], [r.step for r in taken]


_MOVES: dict[str, Callable[[int, Any, Any, Size, Size], Moved]] = {
    **{"conv": _convolution, "conv_transpose": _transposed, "max_pool": _max_pool, "avg_pool": _avg_pool},
    **{"pad": _pad, "interpolate": _resized, "__getitem__": _piece},
    **{"adaptive_avg_pool": _resized, "adaptive_max_pool": _resized, "pixel_shuffle": _resized},
}
