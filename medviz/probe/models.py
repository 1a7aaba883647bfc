"""Which module it is that runs, on which device and in which precision, and how."""

from __future__ import annotations

import contextlib
import itertools
import operator
import sys
import threading
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from medviz.devices import as_device

_children, _values = operator.attrgetter("_modules"), operator.methodcaller("values")
_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside of `torch.compile` and data-parallel wrappers: hooks fire there, on one device.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` is a {type(model).__name__}; expected a torch.nn.Module.")
    while True:
        if hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def check_whole(found: Sequence[nn.Module]) -> None:
    """Raise a `ValueError` where a model, all of whose modules these are, is sharded or not yet initialised."""
    kinds = set(map(type, found))
    if any(base.__name__ in _SHARDED for kind in kinds for base in kind.__mro__):
        raise ValueError("`model` is sharded (FSDP); gather it into an ordinary module on one device first.")
    lazy = tuple(kind for kind in kinds if issubclass(kind, LazyModuleMixin))
    if lazy and any(module.has_uninitialized_params() for module in found if isinstance(module, lazy)):
        raise ValueError("`model` has lazy parameters that are not initialised; run it once before explaining it.")


def modules(model: nn.Module) -> list[nn.Module]:
    """Return what `model.modules()` yields, level by level and in a twentieth of the time: every pass needs it."""
    found: dict[Any, None] = {None: None, model: None}  # None: a child that is not there
    level = [model]
    while level:
        level = list(dict.fromkeys(itertools.chain.from_iterable(map(_values, map(_children, level)))))
        if not found.keys().isdisjoint(level):
            level = [module for module in level if module not in found]
        found.update(dict.fromkeys(level))
    return list(found)[1:]


def parameters(found: Iterable[nn.Module]) -> list[Tensor]:
    """Return what each of the modules itself has as parameters; one that several share comes several times."""
    return [p for module in found for p in module._parameters.values() if p is not None]


def buffers(found: Iterable[nn.Module]) -> list[Tensor]:
    """Return what each of the modules itself has as buffers; one that several share comes several times."""
    return [b for module in found for b in module._buffers.values() if b is not None]


def placement(model: nn.Module, images: Tensor, device: torch.device | str | None) -> tuple[torch.device, torch.dtype]:
    """Return where the images go and in which precision: those of the model's first floating parameter.

    Raises:
        ValueError: no parameter is on the `device` that was asked for, for the model is never moved; or there is no
            such device.
    """
    floating = (t for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point())
    first = next(floating, images)
    if device is None:
        return first.device, first.dtype
    wanted = as_device(device)
    if first is images:
        return wanted, first.dtype
    on = list(dict.fromkeys([first.device, *(t.device for t in floating)]))
    suits = [d for d in on if d.type == wanted.type and wanted.index in (None, d.index)]
    if not suits:
        raise ValueError(f"`device` is {wanted}, but the model is on {sorted(map(str, on))}; move it with model.to().")
    return suits[0], first.dtype


class _Eager:
    """PyTorch's stance is one for the whole process: the first of several threads takes it, the last puts it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._stance = torch.compiler.set_stance("force_eager")
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._stance.__exit__(*exception)


_EAGER = _Eager()


def eager() -> contextlib.AbstractContextManager[None]:
    """Run compiled parts eagerly: a compiled module never calls its hooks. Nothing is imported where none exists."""
    return _EAGER if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def autocast_dtype(device: torch.device, autocast: bool | torch.dtype | None) -> torch.dtype | None:
    """Return what the model is cast to, or None; an `autocast` of None means what is switched on around the call."""
    if isinstance(autocast, torch.dtype):
        if not _casts_to(device, autocast):
            raise ValueError(f"`autocast` is {autocast}, to which PyTorch casts nothing on {device.type}.")
        return autocast
    if autocast is not None and not isinstance(autocast, bool):
        raise TypeError(f"`autocast` is {autocast!r}; expected None, True, False or a dtype.")
    wanted = torch.is_autocast_enabled(device.type) if autocast is None else autocast
    return torch.get_autocast_dtype(device.type) if wanted else None


def _casts_to(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether PyTorch casts to that precision there: it goes on without, and a warning, where it does not."""
    with warnings.catch_warnings(), contextlib.suppress(RuntimeError):
        warnings.simplefilter("ignore")
        with torch.autocast(device.type, dtype=dtype):
            return torch.is_autocast_enabled(device.type)
    return False


def casting(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Cast the model's operations to `dtype` during the block; None: nothing is cast."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
