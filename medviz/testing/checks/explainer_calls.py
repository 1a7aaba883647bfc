"""Checks of explainers: what a call leaves behind, and how it ends."""

from __future__ import annotations

import copy
import random
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medviz.contract import MANAGER
from medviz.hookspecs import Explainer, Wrapper, hookimpl
from medviz.tensors import numpy_of
from medviz.testing import cases
from medviz.testing.checks.watched import BrokenModelError, Watched
from medviz.testing.models import Classifier
from medviz.testing.outcome import TRACE, describe_error, fail, name_of, skip_unless


def check_model_untouched(instance: Explainer) -> None:
    """The model is afterwards as it was: after success, a bad target, an error in the model, and Ctrl-C."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    passes = _ending(explainer, ndim, "success", None)
    _ending(explainer, ndim, "a class that does not exist", ValueError)
    for at in sorted({0, passes - 1}):
        _ending(explainer, ndim, f"an error of the model in pass {at + 1} of {passes}", BrokenModelError, at)
        _ending(explainer, ndim, f"Ctrl-C in pass {at + 1} of {passes}", KeyboardInterrupt, at)


def _ending(explainer: Explainer, ndim: int, name: str, wanted: type[BaseException] | None, at: int = -1) -> int:
    """Run the explainer into one ending and compare the model with what it was; return how many passes it made."""
    model = Watched(ndim, at, wanted or BrokenModelError)
    before = model.state()
    raised: BaseException | None = None
    try:
        explainer(model, cases.images(ndim), 0 if at >= 0 or wanted is None else 99, batch_size=1)
    except (Exception, KeyboardInterrupt) as err:
        raised = err
    if wanted is None and raised is not None:
        got = describe_error(raised)
        fail(f"{name_of(explainer)} explained a network", "a map", got, TRACE)
    if wanted is not None and not isinstance(raised, wanted):
        fail(
            f"{name_of(explainer)} was stopped by {name}",
            f"the error itself, {wanted.__name__}",
            "no error" if raised is None else describe_error(raised),
            "Catch only errors that you expect by name, and never one of the model or KeyboardInterrupt.",
        )
    if parts := model.differences(before):
        fail(
            f"{name_of(explainer)} explained a network; the ending was {name}",
            "the model exactly as it was before",
            f"other {', '.join(parts)}",
            "Ask the `probe`; tensors that it hands out, such as `parameters_of`, are not to be changed in place.",
        )
    return model.script.passes


def check_input_untouched(instance: Explainer) -> None:
    """Neither the caller's tensor nor what the probe hands to the next method is changed."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    batch = cases.images(ndim).requires_grad_()
    values, version = batch.detach().clone(), batch._version
    seen: list[tuple[Tensor, Tensor]] = []
    spy = _spy(seen, explainer)
    cases.run(explainer, Classifier(ndim), batch, wrappers=[spy])
    same = torch.equal(batch, values) and batch._version == version and batch.grad is None and batch.requires_grad
    if not same or any(not torch.equal(before, after) for before, after in seen):
        fail(
            f"{name_of(instance)} explained images",
            "the images unchanged, for the caller and for the next method that shares the probe",
            "another image" if same else "another tensor of the caller",
            "Work on a copy: `probe.inputs.clone()`.",
        )


def _spy(seen: list[tuple[Tensor, Tensor]], explainer: Explainer) -> Any:
    class Spy(Wrapper):
        @hookimpl(wrapper=True)
        def explain(self, probe: Any) -> Any:
            before = [t.clone() for t in _handed_out(probe, explainer)]
            values = yield
            seen.extend(zip(before, _handed_out(probe, explainer), strict=True))
            return values

    return Spy()


def _handed_out(probe: Any, explainer: Explainer) -> list[Tensor]:
    return [probe.inputs, probe.output, *([probe.activation(None)] if explainer.needs_layer else [])]


def check_no_state(instance: Explainer) -> None:
    """An explainer holds configuration only: a call leaves nothing on it, so that no map depends on one before.

    Two copies explain two networks and images. What a call adds may follow from the parameters, such as a kernel that
    is made once, and is then the same in both; and a second call adds nothing.
    """
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    batch = cases.images(ndim)
    copies = [_copied(explainer), _copied(explainer)]
    before = list(map(_content, copies))
    for seed, each in enumerate(copies):
        cases.run(each, Classifier(ndim, seed=seed), batch * (1 + seed))
    first, other = map(_content, copies)
    cases.run(copies[0], Classifier(ndim, seed=1), batch * 2)
    again = _content(copies[0])
    names = sorted(before[0].keys() | first.keys() | other.keys() | again.keys())
    called = [n for n in names if first.get(n) != before[0].get(n) or other.get(n) != before[1].get(n)]
    kept = [n for n in names if again.get(n) != first.get(n) or (n in called and first.get(n) != other.get(n))]
    if kept:
        fail(
            f"{name_of(instance)} was called",
            "an instance that holds its parameters and nothing else",
            f"something kept in {', '.join(kept)}",
            "Keep what belongs to a call in local variables, or in `probe.remember`.",
        )


def _copied(explainer: Explainer) -> Explainer:
    """Return a copy as if it had never been called; what holds a lock or a file is copied by its parameters alone."""
    try:
        made = copy.deepcopy(explainer)
    except Exception:  # whatever a class that cannot be copied raises
        made = cases.changed(explainer)
    vars(made).pop(MANAGER, None)
    return made


def _content(holder: Any, seen: set[int] | None = None) -> dict[str, Any]:
    """Return what an object holds, in its `__dict__` and in slots, which attrs makes of fields, so that it compares."""
    held = dict(getattr(holder, "__dict__", {}))
    for cls in type(holder).__mro__:
        slots = vars(cls).get("__slots__", ())
        for slot in [slots] if isinstance(slots, str) else slots:
            private = slot.startswith("__") and not slot.endswith("__")
            name = f"_{cls.__name__.lstrip('_')}{slot}" if private else slot
            if hasattr(holder, name):
                held[name] = getattr(holder, name)
    seen = {id(holder)} if seen is None else seen
    return {name: _comparable(value, seen) for name, value in held.items() if name not in (MANAGER, "__weakref__")}


def _comparable(value: Any, seen: set[int]) -> Any:
    if isinstance(value, str | bytes | int | float | complex | None):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray):
        return _numbers(value)
    if isinstance(value, torch.Generator | random.Random | np.random.Generator):
        return _drawn(value)
    if id(value) in seen or isinstance(value, types.ModuleType | types.FunctionType | types.MethodType | type):
        return type(value).__name__
    seen.add(id(value))
    if isinstance(value, nn.Module):
        return type(value).__name__, _comparable(dict(value.state_dict()), seen)
    if isinstance(value, dict):
        return [(_comparable(key, seen), _comparable(item, seen)) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return type(value).__name__, [_comparable(item, seen) for item in value]
    return type(value).__name__, _content(value, seen)


def _numbers(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.is_meta:
            return str(value.dtype), tuple(value.shape)
        value = value.dequantize() if value.is_quantized else value.detach().to_dense()
        value = numpy_of(value.resolve_conj().resolve_neg())
    return value.dtype.str, value.shape, value.tobytes()


def _drawn(generator: Any) -> Any:
    """Return the state of a generator of random numbers."""
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    return repr(generator.getstate() if isinstance(generator, random.Random) else generator.bit_generator.state)


def check_bad_input(instance: Explainer) -> None:
    """What cannot be explained is refused by a ValueError or TypeError with a sentence, and never by a map."""
    explainer, ndim = cases.ready(instance), cases.axes(instance)
    model, batch = Classifier(ndim), cases.images(ndim)
    broken = batch.clone()
    broken[0, 0].flatten()[0] = torch.nan
    wrong: dict[str, Callable[[], Any]] = {
        "whole numbers as the image": lambda: explainer(model, batch.long(), 0),
        "an image without the batch axis": lambda: explainer(model, batch[0], 0),
        "an empty batch": lambda: explainer(model, batch[:0], 0),
        "an image with NaN": lambda: explainer(model, broken, 0),
        "no image but a string": lambda: explainer(model, "scan.nii", 0),
        "class 3 of 3": lambda: explainer(model, batch, 3),
        "class -1": lambda: explainer(model, batch, -1),
        "a target that returns a matrix": lambda: explainer(model, batch, lambda out: out),
        "no model but a function": lambda: explainer(model.forward, batch, 0),  # type: ignore[arg-type]
    }
    if explainer.needs_layer and cases.has(explainer, "layer"):
        unknown = cases.changed(explainer, layer="no.such.layer")
        wrong["a layer that does not exist"] = lambda: unknown(model, batch, 0)
    for name, call in wrong.items():
        try:
            call()
            got = "a result and no error"
        except (ValueError, TypeError) as err:
            got = "" if len(str(err).split()) > 3 else f"{type(err).__name__} with the message {str(err)!r}"
        except Exception as err:
            got = describe_error(err)
        if got:
            fail(
                f"{name_of(instance)} was given {name}",
                "a ValueError or TypeError that says what was given and what is expected",
                got,
                "Leave `__call__` as the base class has it, let its errors through, and add checks of your own.",
            )


def check_ndim(instance: Explainer) -> None:
    """A number of spatial axes that the explainer does not declare is refused."""
    others = [n for n in (2, 3) if n not in instance.ndim]
    skip_unless(bool(others), "it declares 2 and 3 spatial axes, so there is none to refuse.")
    for ndim in others:
        try:
            instance(Classifier(ndim), cases.images(ndim), 0)
        except (ValueError, TypeError):
            continue
        fail(
            f"{name_of(instance)}, which declares ndim = {instance.ndim}, was given images of {ndim} spatial axes",
            "a ValueError",
            "a map",
            "Leave `__call__` as the base class has it, or declare the number in `ndim`.",
        )
