"""Leave a model exactly as it was found, however the block ends."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import operator
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from medviz.probe.models import buffers, parameters
from medviz.probe.snapshot import Containers, by_identity
from medviz.probe.values import Values

_log = logging.getLogger("medviz")
_PATIENCE = 30.0  # seconds, after which a thread says that it waits
_turns: WeakKeyDictionary[nn.Module, _Turn] = WeakKeyDictionary()
_making_turns = threading.Lock()
_requires_grad, _grad, _is_leaf, _training = map(operator.attrgetter, ("requires_grad", "grad", "is_leaf", "training"))
_NOT_LEFT_BY_PASSES = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_non_persistent_buffers_set"}


@contextlib.contextmanager
def untouched(found: Sequence[nn.Module]) -> Iterator[State]:
    """Run the block with every module in eval mode and every parameter frozen; afterwards put everything back.

    Put back are, for every sub-module: training flag, hooks, attributes (in-place flags, tensors kept on `self`) and
    the content of its containers; for every parameter: `requires_grad` and `.grad`; the value of every buffer;
    and the random states of torch, CUDA, numpy and `random`. What did not change is not written to: a copy onto itself
    would break a `loss.backward()` that the caller has still to run. A buffer or parameter that came into a graph is
    taken off it, unless a buffer is a view of another tensor, or others are views of it.

    A Ctrl-C that arrives while the state is taken or put back waits until that is done (main thread only).

    Not put back are the values of parameters, a copy of which would take as much memory as the model, and the graph of
    a buffer that was in one before and was written to in place.

    Args:
        found: all modules of a model, itself first; see `models.modules`.
    """
    state = None
    try:
        with interrupts_deferred():
            state = State(found)
            state.freeze()
        yield state
    finally:
        if state is not None:
            with interrupts_deferred():
                state.restore()


@contextlib.contextmanager
def in_turn(model: nn.Module) -> Iterator[None]:
    """Run the block while no other thread runs one for the same model; in one thread, one block may lie in another."""
    with _making_turns:
        turn = _turns.setdefault(model, _Turn())
    taken = False
    try:
        turn.take()
        taken = True
        yield
    finally:
        if taken:
            turn.give_back()


class _Turn:
    """A lock that the thread which holds it may take again, and that any thread may give back."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._holder: threading.Thread | None = None
        self._depth = 0

    def take(self) -> None:
        here = threading.current_thread()
        with self._free:
            while self._holder not in (None, here):
                if not self._free.wait(_PATIENCE):
                    _log.warning("still waiting for another thread, which explains the same model")
            self._holder = here
            self._depth += 1

    def give_back(self) -> None:
        with self._free:
            self._depth -= 1
            if not self._depth:
                self._holder = None
                self._free.notify()


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


class State:
    """What can change in a model while it runs, and the global random states."""

    def __init__(self, found: Sequence[nn.Module]) -> None:
        self.modules, self.training = found, list(map(_training, found))
        self.attributes = Containers(map(vars, found))
        held = by_identity(parameters(found))
        self.parameters = list(held.values())
        # no pairs: hundreds of small objects wake the garbage collector
        self.wanted, self.grads = (list(map(asked, self.parameters)) for asked in (_requires_grad, _grad))
        self._leaves = list(filter(_is_leaf, self.parameters))
        self.values = self._values_beside(held, self.attributes)
        self.random = _random_states()
        self._weights: Values | None = None
        self._baseline = self.attributes, self.values  # as each pass is to find the model

    @property
    def kinds(self) -> set[type]:
        """The classes of all tensors that the model holds."""
        return {*map(type, self.parameters), *self.values.kinds}

    def _values_beside(self, held: dict[int, Tensor], attributes: Containers) -> Values:
        # those of ordinary modules are among their attributes
        scripted = [module for module in self.modules if not isinstance(vars(module).get("_buffers"), dict)]
        tensors = attributes.tensors | by_identity(buffers(scripted))
        return Values([tensor for key, tensor in tensors.items() if key not in held])

    def freeze(self) -> None:
        if any(self.training):
            self._call_own_eval(list(itertools.compress(self.modules, self.training)))
            for module in filter(_training, self.modules):
                module.training = False
        for parameter in itertools.compress(self.parameters, self.wanted):
            if not parameter.is_inference():  # one made in inference mode keeps its flag for ever
                parameter.requires_grad_(False)
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            if grad is not None:
                parameter.grad = None

    def _call_own_eval(self, training: Sequence[nn.Module]) -> None:
        """Put into eval mode, by themselves, modules that do more for it than to set a flag.

        Some look up a table then, some add an adapter to a weight: what they do to parameters of their own, or of the
        modules right inside, is put back too. A copy of all would take as much memory as the model.
        """
        own = [module for module in training if _has_own_eval(type(module))]
        if not own:
            return
        self._weights = Values(list(by_identity(parameters([*own, *(c for m in own for c in m.children())])).values()))
        for module in own:
            try:
                with torch.no_grad():
                    if module.training:
                        module.eval()
            except Exception as err:
                _log.info("a module cannot be put into eval mode by its own method, and only its flag is set: %s", err)
        attributes = Containers(map(vars, self.modules))
        self._baseline = attributes, self._values_beside(by_identity(self.parameters), attributes)

    def is_left_as_it_was(self) -> bool:
        """Return whether passes have left nothing in the model."""
        attributes, values = self._baseline
        return attributes.is_unchanged(_NOT_LEFT_BY_PASSES) and values.is_unchanged()

    def rewind(self) -> None:
        """Put back, for another pass, what passes have left in the model.

        Hooks, sub-modules and training flags stay: they belong to whoever set them.
        """
        attributes, values = self._baseline
        attributes.rewind(_NOT_LEFT_BY_PASSES)
        values.restore()

    def restore(self) -> None:
        self.attributes.restore()
        for module, training in _differing(self.modules, _training, self.training):
            module.training = training  # a scripted module keeps it elsewhere
        if self._weights is not None:
            self._weights.restore()
        _set_random_states(self.random)
        self.values.restore()
        for parameter in itertools.filterfalse(_is_leaf, self._leaves):
            parameter.detach_()  # the model has written into it, in place, what has a graph
        for parameter, grad in _differing(self.parameters, _grad, self.grads):
            parameter.grad = grad
        for parameter, wanted in _differing(self.parameters, _requires_grad, self.wanted):
            parameter.requires_grad_(wanted)


def _differing(objects: Sequence[Any], asked: Callable[[Any], Any], before: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the objects that no longer say what they said, which is another object then, and that."""
    return itertools.compress(zip(objects, before, strict=True), map(operator.is_not, map(asked, objects), before))


def _has_own_eval(kind: type[nn.Module]) -> bool:
    """Return whether a class does more than PyTorch's own `train(mode)` or `eval()`, and takes what they take."""
    if (kind.train, kind.eval) == (nn.Module.train, nn.Module.eval):
        return False
    taken = [list(inspect.signature(method).parameters) for method in (kind.train, kind.eval)]
    return taken == [["self", "mode"], ["self"]]  # `train(self, loader, epochs=1)` is something else


class BetweenPasses:
    """Lets every pass begin with the model as it was found, also one that remembers what it has seen.

    Whether it keeps something is looked at after the first two passes: to look costs a millisecond or a few, and most
    models do not. What makes no difference, such as a table that is made in the first pass, may stay.

    Args:
        state: of the model.

    Attributes:
        differs: whether the model says something else now of what it was first given.
    """

    def __init__(self, state: State) -> None:
        self.differs: Callable[[], bool] = _always
        self._state = state
        self._passes = 0
        self._remembers: bool | None = None
        self._lent = 0

    def close(self) -> None:
        """Let go of who knows: else both would hold each other, and tensors wait for the garbage collector."""
        self.differs = _always

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Leave the model alone during the block: somebody else has it, and may have changed it for a while."""
        self()
        self._lent += 1
        try:
            yield
        finally:
            self._lent -= 1

    def __call__(self, again: bool = False) -> None:
        """Called before each pass; `again`: over what the pass before was over, after which others may still change."""
        if self._lent:
            return
        self._passes += not again
        if self._remembers is None and (again or self._passes in (2, 3)) and not self._state.is_left_as_it_was():
            self._remembers = self.differs()
            if self._remembers:
                _log.info("the model keeps something from pass to pass; each begins as the model was found")
        if self._remembers:
            self._state.rewind()


def _always() -> bool:
    return True


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
