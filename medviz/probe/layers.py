"""Find a model's layers by name, and watch what they return."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from medviz.errors import suggest
from medviz.probe.outputs import replace_tensor
from medviz.probe.watch import unwatched

_NORMS = (nn.LayerNorm, nn.RMSNorm)  # along the last axis
_CHANNELS = ("in_channels", "out_channels", "num_features", "num_channels")


@attrs.frozen
class Layer:
    """A module that was called in a forward pass.

    Args:
        name: its dotted name.
        type: the name of its class.
        shape: the shape of its output in the last call; None: the output holds no tensor.
        automatic: the automatic choice takes this one.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None
    automatic: bool = False


def module_of(model: nn.Module, name: str) -> nn.Module:
    """Return the module called `name`.

    Raises:
        ValueError: there is none, or it takes no hooks.
    """
    found = _at(model, name)
    if found is None:
        modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        inside = name.removeprefix("module.").removeprefix("_orig_mod.")  # of a wrapper that is taken off
        near = f"; there it is {inside!r}." if inside != name and inside in modules else suggest(name, modules)
        raise ValueError(
            f"`layer` {name!r} is not in the model{near} "
            "List the layers with dict(model.named_modules()) or `medviz layers`."
        )
    refuse_scripted(found, f"`layer` {name!r}")
    return found


def _at(model: nn.Module, name: str) -> nn.Module | None:
    """Return the module called `name`; to list all names takes longer than a small part of a pass."""
    found: nn.Module | None = model
    for part in name.split("."):
        found = None if found is None else dict(found._modules.items()).get(part)
    return found


def refuse_scripted(module: nn.Module, what: str) -> None:
    """Raise a `ValueError` where `module` is scripted or traced: its hooks would never be called."""
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{what} is a scripted or traced module, which takes no hooks; use a method that needs no layer "
            "(occlusion, input gradients), or load the weights into the ordinary module."
        )


def has_parameters(module: nn.Module) -> bool:
    """Return whether a module has parameters of its own, or a weight that is computed of some."""
    return next(module.parameters(recurse=False), None) is not None or is_parametrized(module)


def works_along_last(module: nn.Module, last: int) -> bool:
    """Return whether a module works along a last axis of that length, so that its output ends in channels."""
    if type(module) is nn.Linear:
        return bool(module.out_features == last)
    return type(module) is nn.LayerNorm and tuple(module.normalized_shape) == (last,)


def channel_axis(module: nn.Module, shape: Sequence[int], model: Sequence[nn.Module]) -> int | None:
    """Return which axis of what a layer returns holds its channels, 1 or -1, as the layers tell; None: they do not.

    The last one, `(B, *s, K)`, where the layer works along it; or what is right inside of it does, and nothing inside
    has as many channels as the second axis is long; or others do, and nothing in the model has. Where both axes are of
    one length, any norm inside counts, however deep. The second one, where something inside has as many channels as it
    is long; or something in the model has, and no norm works along a last axis of this length; or the model has no norm
    along the last axis at all.

    Args:
        module: the layer.
        shape: of what it returns.
        model: all modules of the model.
    """
    second, last = shape[1], shape[-1]
    if works_along_last(module, last):
        return -1
    norms = [layer for layer in module.modules() if type(layer) is nn.LayerNorm]
    inside = norms if second == last else module.children()
    local = _has_channels(module.modules(), second)
    if local and _has_channels([*module.modules()][-1:], second):
        return 1  # what it ends with
    if any(works_along_last(layer, last) for layer in inside):
        return None if local else -1
    if local:
        return 1
    normed, multiplied = _widths(model)
    known = second in normed | multiplied or _has_channels(model, second)
    if last not in normed | multiplied:
        return 1 if known or not normed else None
    if known:  # a layer that only multiplies may be a gate or the head
        return None if last in normed else 1
    return None if any(weight.shape[:1] == (second,) for weight in module.parameters()) else -1


def _widths(model: Sequence[nn.Module]) -> tuple[set[int], set[int]]:
    """How many channels the layers take that work along the last axis: norms, and linear ones."""
    kinds = set(map(type, model))
    norms, linear = ({kind for kind in kinds if issubclass(kind, one)} for one in (_NORMS, nn.Linear))
    normed: list[Any] = [layer for layer in model if type(layer) in norms]
    multiplied: list[Any] = [layer for layer in model if type(layer) in linear]
    return {layer.normalized_shape[-1] for layer in normed}, {layer.in_features for layer in multiplied}


def _has_channels(modules: Iterable[nn.Module], number: int) -> bool:
    return any(getattr(module, name, None) == number for module in modules for name in _CHANNELS)


Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


@contextlib.contextmanager
def hooked(hooks: Sequence[tuple[nn.Module, Hook]], everywhere: bool = False) -> Iterator[None]:
    """Call each hook after the forward of its module, during the block, with what the module was given and returns.

    Args:
        hooks: the modules and their hooks.
        everywhere: also where another thread calls the module. Another thread may be using the model for something
            else; but elsewhere than on a CPU, the backward pass runs in threads of its own.
    """
    here = threading.get_ident()

    @functools.cache  # one for all modules that share a hook: hundreds of small objects wake the garbage collector
    def of_this_pass(hook: Hook) -> Any:
        def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not everywhere and threading.get_ident() != here:
                return None
            with unwatched():
                return hook(module, (args, kwargs), output)

        return called

    handles: list[Any] = []
    try:
        handles += [module.register_forward_hook(of_this_pass(hook), with_kwargs=True) for module, hook in hooks]
        yield
    finally:
        for handle in handles:
            handle.remove()


def hand_on(output: Any, old: Tensor, new: Tensor, modules: Iterable[nn.Module]) -> Any:
    """Return a layer's `output` with `old` replaced by `new`, and replace it where `modules` have kept it on `self`.

    A model that goes on from there, and not from what the layer returned, would otherwise go past the replacement. The
    guard around the model puts the attributes back.
    """
    for module in modules:
        attributes = vars(module)
        for name, value in attributes.items():
            if value is old:
                attributes[name] = new
            elif type(value) is list and any(item is old for item in value):
                value[:] = [new if item is old else item for item in value]
            elif type(value) is dict and any(item is old for item in value.values()):
                value.update({key: new for key, item in value.items() if item is old})
    return replace_tensor(output, old, new)
