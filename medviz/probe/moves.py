"""What operations do to the place of a map's voxels: which leave them, and how the others move them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from medviz.incremental import windows

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_POOL = ("input", "kernel_size", "stride", "padding")
_MAX_POOL = (*_POOL, "dilation", "ceil_mode")
_PAD = ("input", "pad")
_RESIZED = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
_NARROW = ("input", "dim", "start", "length")

# what leaves each voxel where it is: names without the underscores around them
_KEEPS = {
    *("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "div", "rdiv", "truediv", "rtruediv", "pow"),
    *("itruediv", "maximum", "minimum", "where", "lerp", "addcmul", "addcdiv", "masked_fill", "nan_to_num"),
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish"),
    *("hardtanh", "hardsigmoid", "sigmoid", "logsigmoid", "tanh", "softplus", "softsign", "threshold", "glu", "clip"),
    *("clamp", "clamp_min", "clamp_max", "softmax", "log_softmax", "abs", "neg", "exp", "log", "sqrt", "rsqrt"),
    *("square", "sin", "cos", "erf", "batch_norm", "instance_norm", "group_norm", "layer_norm", "normalize"),
    *("local_response_norm", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"),
    *("feature_alpha_dropout", "contiguous", "clone", "detach", "data", "to", "float", "half", "bfloat16", "double"),
    *("type", "type_as", "requires_grad", "copy", "as_subclass", "cuda", "cpu", "channel_shuffle"),
    *("mean", "sum", "amax", "amin", "max", "min", "var", "std", "norm", "logsumexp", "expand", "expand_as", "repeat"),
    *("gt", "lt", "ge", "le", "eq", "ne", "logical_and", "logical_or", "logical_not", "bool", "log1p", "log2", "log10"),
    *("rpow", "sign", "reciprocal", "floor", "ceil", "round"),
}
_JOINS = {"cat", "concat", "concatenate"}
_PARTS = {"chunk", "split", "tensor_split", "index_select"}
RESHAPES = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "reshape", "view", "unflatten"}
RESHAPES |= {"flatten", "squeeze", "unsqueeze", "mT", "H", "T"}

Size = tuple[int, ...]
Moved = tuple[Sequence[float], Sequence[float]] | None
"""Cell j of the new grid lies in the old one at the first plus j times the second, along each axis; None: not known."""


def name_of(func: Any) -> str:
    """Return what a function of torch is called, without the underscores around it; of an attribute its name."""
    name = str(getattr(func, "__name__", ""))
    name = str(getattr(func.__self__, "__name__", name)) if name == "__get__" else name
    return name.strip("_")


def is_constant(name: str) -> bool:
    """Return whether what an operation makes has the size of a map, and nothing of its values."""
    return name.endswith("_like") or name.startswith("new_")


def swaps(name: str, args: Any, kwargs: Mapping[str, Any], axes: int) -> bool:
    """Return whether an operation puts the spatial axes of a map into another order, the channels staying second."""
    if name == "mT":
        return True
    if name in ("transpose", "swapaxes", "swapdims", "movedim", "moveaxis"):
        given = [*args[1:], *(value for key, value in kwargs.items() if key != "input")]
        named = [n for one in given for n in (one if isinstance(one, tuple | list) else (one,))]
        return all(isinstance(n, int) and n % axes >= 2 for n in named)
    if name == "permute":
        order = [n % axes for n in (args[1] if isinstance(args[1], tuple | list) else args[1:])]
        return order[:2] == [0, 1] and order != sorted(order)
    return False


def is_along_channels(index: Any, axes: int) -> bool:
    """Return whether an index takes all of each spatial axis of a map of so many `axes`."""
    each = index if isinstance(index, tuple) else (index,)
    at = next((i for i, one in enumerate(each) if one is Ellipsis), len(each))
    front, back = each[:at], each[at + 1 :]
    every = [*front, *[slice(None)] * (axes - len(front) - len(back)), *back]
    return all(isinstance(one, slice) and one == slice(None) for one in every[2:]) and not isinstance(every[0], Tensor)


def keeps(name: str, args: Any, kwargs: Mapping[str, Any], axes: int) -> bool:
    """Return whether an operation leaves each voxel where it is; `axes`: of the map."""
    if name in _JOINS:
        return kwargs.get("dim", args[1] if len(args) > 1 else 0) in (1, 1 - axes)
    if name in _PARTS:
        place = 1 if name == "index_select" else 2
        return kwargs.get("dim", args[place] if len(args) > place else 0) in (1, 1 - axes)
    return name in _KEEPS


def moved(name: str, args: Any, kwargs: Mapping[str, Any], old: Size, new: Size) -> Moved:
    """Return how an operation moves voxels.

    Raises:
        KeyError: it is none that is known to move them.
    """
    nd = len(old)
    return _MOVES[_kind(name, nd)](nd, args, kwargs, old, new)


def moves(name: str, nd: int) -> bool:
    """Return whether an operation is known to move voxels."""
    return _kind(name, nd) in _MOVES


def _kind(name: str, nd: int) -> str:
    return name.removesuffix("_with_indices").replace(f"{nd}d", "")


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
    return _through(windows.convolution(**{"bias": None, **given}))


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
    """Every cell of the new grid stands for an equal part of the old one, or for one cell of it."""
    given = _bound(_RESIZED, args, kwargs)
    times = [o / n for o, n in zip(old, new, strict=True)]
    if given.get("align_corners"):
        ends = [(o - 1) / max(1, n - 1) for o, n in zip(old, new, strict=True)]
        each = [(0.0, e) if e else ((t - 1) / 2, t) for e, t in zip(ends, times, strict=True)]  # of one cell: its parts
        return [first for first, _ in each], [step for _, step in each]
    if given.get("scale_factor") is not None and not given.get("recompute_scale_factor"):
        times = [1 / factor for factor in windows.each_axis(given["scale_factor"], nd)]
    mode = str(given.get("mode", "nearest"))
    if mode.startswith("nearest") and any(t > 1 for t in times):
        whole = all(float(t).is_integer() for t in times)
        return ([t // 2 if mode == "nearest-exact" else 0.0 for t in times], times) if whole else None
    return [(t - 1) / 2 for t in times], times


def _pooled(nd: int, args: Any, kwargs: Any, old: Size, new: Size) -> Moved:
    """Every cell of the new grid stands for an equal part of the old one."""
    times = [o / n for o, n in zip(old, new, strict=True)]
    return [(t - 1) / 2 for t in times], times


def _narrow(nd: int, args: Any, kwargs: Any, old: Size, new: Size) -> Moved:
    given = _bound(_NARROW, args, kwargs)
    start = [0.0] * nd
    dim = given["dim"] % (nd + 2)
    if dim >= 2:
        start[dim - 2] = float(given["start"] % old[dim - 2])
    return start, [1.0] * nd


def _piece(nd: int, args: Any, kwargs: Any, old: Size, new: Size) -> Moved:
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    some = len(index) > 1 and index[0] is not Ellipsis and isinstance(index[1], list | Tensor)  # of the channels
    index = (index[0], slice(None), *index[2:]) if some else index
    if any(not isinstance(one, slice) and one is not Ellipsis for one in index):
        return None
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    every = [*index[:at], *[slice(None)] * (nd + 2 - len(index) + (Ellipsis in index)), *index[at + 1 :]]
    taken = [range(n)[one] for one, n in zip(every[2:], old, strict=True)]
    return [r.start for r in taken], [r.step for r in taken]


_MOVES: dict[str, Callable[[int, Any, Any, Size, Size], Moved]] = {
    **{"conv": _convolution, "conv_transpose": _transposed, "max_pool": _max_pool, "avg_pool": _avg_pool},
    **{"pad": _pad, "interpolate": _resized, "getitem": _piece},
    **{"adaptive_avg_pool": _pooled, "adaptive_max_pool": _pooled, "pixel_shuffle": _pooled},
    **{"pixel_unshuffle": _pooled, "upsample": _resized, "narrow": _narrow},
}
