"""From whatever a model returns to the one tensor that is explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

_KEYS = ("logits", "out")
_FLAT = frozenset({bool, int, float, str, type(None)})  # most of what is met: a set is asked faster than a class
_HOLDERS = (dict, tuple, list, Mapping)  # the last is slow to ask


def select(raw: Any, choose: Callable[[Any], Tensor] | str | int | None = None) -> Tensor:
    """Return the output `(M, N)` or `(M, N, *S)` that is meant.

    A tuple or list means its first item (the main output under deep supervision); a dict its only tensor, else
    "logits" or "out"; `(M,)` is `(M, 1)`; `(M, N, 1, 1)` is `(M, N)`. `choose`, a callable, a key, the field of a named
    tuple or a position, says it for everything else.

    Raises:
        ValueError: no such item, or not a floating-point tensor with a batch axis.
    """
    if callable(choose):
        raw = choose(raw)
    elif choose is not None:
        try:
            if isinstance(raw, Tensor):
                raise TypeError("an item of a tensor is an image of the batch, or a slice, and not an output")
            fields = getattr(raw, "_fields", ())  # of a named tuple
            raw = raw[fields.index(choose) if choose in fields else _key(raw, choose)]
        except (KeyError, IndexError, TypeError) as err:
            raise ValueError(f"`output` {choose!r} is not in the model's output, {_shape(raw)}.") from err
    while not isinstance(raw, Tensor):
        raw = _inner(raw)
    output = raw.as_subclass(Tensor)
    if not output.is_floating_point() or not output.ndim:
        raise ValueError(
            f"the model's output is {output.dtype} {tuple(output.shape)}; expected floating-point logits (B, N) or "
            "(B, N, *S). Choose or compute them with `output`."
        )
    if output.ndim == 1:
        return output[:, None]
    return output.flatten(1) if output.ndim > 2 and output[0, 0].numel() == 1 else output


def _key(raw: Any, choose: str | int) -> str | int:
    """Return what an item is asked for by: a number, as the command line has it, may be the name of a key."""
    named = isinstance(raw, Mapping) and choose not in raw and str(choose) in raw
    return str(choose) if named else choose


def _inner(raw: Any) -> Any:
    if isinstance(raw, Mapping):
        tensors = [value for value in raw.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        for key in _KEYS:
            if key in raw:
                return raw[key]
    elif isinstance(raw, tuple | list) and raw:
        return raw[0]
    raise ValueError(
        f"the model returns {_shape(raw)}; say which tensor is meant with `output`: a key, a field, a position, or a "
        "function that takes it out."
    )


def _shape(raw: Any) -> str:
    if isinstance(raw, Mapping) or hasattr(raw, "_fields"):
        keys, names = ("keys", list(raw)) if isinstance(raw, Mapping) else ("fields", list(raw._fields))
        return f"a {type(raw).__name__} with the {keys} {names}"
    return f"a {type(raw).__name__}" + (f" of {len(raw)}" if isinstance(raw, tuple | list) else "")


def first_tensor(output: Any) -> Tensor | None:
    """Return the tensor that a layer's output stands for: the first floating one, where it is a tuple, list or dict."""
    several = isinstance(output, tuple | list)
    values = output.values() if isinstance(output, Mapping) else output if several else [output]
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts, in no particular order."""
    left, seen = [value], {}
    while left:
        one = left.pop()
        if type(one) in _FLAT:
            continue
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, _HOLDERS) and id(one) not in seen:  # it may hold itself
            seen[id(one)] = one  # held, so that no other object can take its place
            left += one if isinstance(one, tuple | list) else one.values()


def replace_tensor(output: Any, old: Tensor, new: Tensor) -> Any:
    """Return `output`, of the same kind, with `old` replaced by `new` wherever it is, also inside of what it holds."""
    if output is old:
        return new
    if isinstance(output, Mapping):
        changed = {key: replace_tensor(value, old, new) for key, value in output.items()}
        if all(changed[key] is value for key, value in output.items()):
            return output
        return changed if type(output) is dict else type(output)(**changed)
    if not isinstance(output, tuple | list):
        return output
    items = [replace_tensor(item, old, new) for item in output]
    if all(a is b for a, b in zip(items, output, strict=True)):
        return output
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
