"""Leave a model exactly as it was found, however the block ends."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run the block with every module in eval mode and every parameter frozen; afterwards put everything back.

    Put back are, for every sub-module: training flag, hooks, attributes (in-place flags, tensors kept on `self`) and
    the content of its containers; for every parameter: `requires_grad` and `.grad`; the value of every buffer;
    and the random states of torch, CUDA, numpy and `random`. What did not change is not written to: a copy onto itself
    would break a `loss.backward()` that the caller has still to run.

    A Ctrl-C that arrives while the state is taken or put back waits until that is done (main thread only).
    """
    with interrupts_deferred():
        state = _State(model)
    try:
        with interrupts_deferred():
            state.prepare()
        yield
    finally:
        with interrupts_deferred():
            state.restore()


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold back a Ctrl-C until the end of the block. Only the main thread gets one, so others need no holding."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    arrived: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if arrived:
            signal.raise_signal(signal.SIGINT)


class _State:
    """What can change in a model while it runs, and the global random states."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [_Module(module) for module in model.modules()]
        self.parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        self.buffers = [(b, b.detach().clone()) for b in model.buffers()]
        self.random = _random_states()

    def prepare(self) -> None:
        for module in self.modules:
            module.module.training = False
        for parameter, wanted, grad in self.parameters:
            if wanted and not parameter.is_inference():  # one made in inference mode keeps its flag for ever
                parameter.requires_grad_(False)
            if grad is not None:
                parameter.grad = None

    def restore(self) -> None:
        for module in self.modules:
            module.restore()
        for parameter, wanted, grad in self.parameters:
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)
            if parameter.grad is not grad:
                parameter.grad = grad
        for buffer, value in self.buffers:
            _put_back(buffer, value)
        _set_random_states(self.random)


class _Module:
    """The training flag and the attributes of one module; containers among them with all that they hold."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.training = module.training
        self.attributes = dict(vars(module))
        self.content = list(_contents(self.attributes.values(), set()))
        self.tensors = [(v, v.detach().clone()) for v in self.attributes.values() if isinstance(v, Tensor)]

    def restore(self) -> None:
        if self.module.training != self.training:
            self.module.training = self.training
        now = vars(self.module)
        for name in now.keys() - self.attributes.keys():
            del now[name]
        for name, value in self.attributes.items():
            if now.get(name, self) is not value:
                now[name] = value
        for container, items in self.content:
            if not _same(_items(container), items):
                container.clear()
                container.update(items) if isinstance(container, dict | set) else container.extend(items)
        for tensor, value in self.tensors:
            _put_back(tensor, value)


def _contents(values: Iterable[Any], seen: set[int]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield every container among `values` and inside of them, with what it holds."""
    for value in values:
        if not isinstance(value, dict | list | set | deque | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        if not isinstance(value, tuple):
            yield value, _items(value)
        yield from _contents(value.values() if isinstance(value, dict) else value, seen)


def _items(container: Any) -> list[Any]:
    return list(container.items() if isinstance(container, dict) else container)


def _same(a: list[Any], b: list[Any]) -> bool:
    """Compare by identity: values may be tensors. The items of a dict are pairs."""
    return len(a) == len(b) and all(
        x is y or (type(x) is tuple and len(x) == len(y) and all(p is q for p, q in zip(x, y, strict=True)))
        for x, y in zip(a, b, strict=True)
    )


def _put_back(tensor: Tensor, value: Tensor) -> None:
    """Write to a tensor only where it has changed: a copy onto itself would break a backward pass still to come."""
    if not torch.equal(tensor, value):
        with torch.inference_mode(tensor.is_inference()):
            tensor.data.copy_(value)


def _random_states() -> tuple[Any, Tensor, list[Tensor], Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return random.getstate(), torch.get_rng_state(), cuda, np.random.get_state()


def _set_random_states(states: tuple[Any, Tensor, list[Tensor], Any]) -> None:
    python, cpu, cuda, numpy = states
    random.setstate(python)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    np.random.set_state(numpy)
