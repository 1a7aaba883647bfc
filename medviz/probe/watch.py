"""Watch a pass for operations that may do something else where the channels of maps come last in memory."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from medviz.probe.guard import interrupts_deferred
from medviz.probe.plain import Known
from medviz.probe.starts import memory_of

_LARGE = 2**19  # numbers in a weight: to bring more of them into another order takes longer than a convolution gains
_watching = threading.local()


class UnknownOperationError(BaseException):
    """A network does what is not known to be the same in both orders.

    It is no `Exception`, so that a network which catches those does not catch it.
    """


class Watch(TorchFunctionMode):
    """Let through the operations that give the same in both orders, and stop the pass at any other, during the block.

    The same are those that compute; that return a view, or a copy, in whatever order; and that write in place. Some
    return a view or a copy as the order has it, such as `reshape`: what is written in place then, into that memory or
    into what it was made of, is seen in other places. That stops the pass too.

    Convolutions with a large weight get maps in the usual order, and what follows has it too: for each pass PyTorch
    brings the weight into the order of the map. Kernels of one voxel lie in both orders alike, and may be larger.

    To watch takes some microseconds for each operation. Sequences of which it is known before what they do are not
    watched inside: during the block they are of a class that sees to that.

    Args:
        found: the modules of the network.
    """

    def __init__(self, found: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self._found = found
        self._known: dict[int, Known] = {}  # by the identity of the sequence
        self._outer: Watch | None = None  # of a pass in whose course this one is made
        self._either: dict[int, StorageWeakRef] = {}  # memory of what may be a view in one order only; held by its key
        self._stopped_at: str | None = None

    def __enter__(self) -> Any:
        self._known = {id(known.sequence): known for known in Known.among(self._found, _LARGE)}
        self._outer = _watch()
        with interrupts_deferred():
            for known in self._known.values():
                _change_class(known.sequence, _Sequence)
            _watching.watch = self
            return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        with interrupts_deferred():
            super().__exit__(*exception)  # type: ignore[no-untyped-call]
            _watching.watch = self._outer
            for known in self._known.values():
                if type(known.sequence) is _Sequence:
                    _change_class(known.sequence, nn.Sequential)

    def knows(self, sequence: nn.Sequential, given: Any) -> bool:
        """Return whether the call of a sequence with what it is given need not be watched."""
        known = self._known.get(id(sequence))
        alone = torch._C._len_torch_function_stack() == 1  # other modes are not ours to switch off
        return known is not None and alone and type(given) is Tensor and known.is_plain()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is None or "out" in kwargs:
            raise self.stop(func)
        return func(*args, **kwargs) if rule is _same else rule(self, func, args, kwargs)

    def stop(self, func: Any) -> UnknownOperationError:
        """Return what is to be raised where `func` is called, or what a text names is done."""
        owner = getattr(func, "__self__", func)  # of a property the attribute, and not its `__get__`
        self._stopped_at = str(getattr(owner, "__name__", getattr(func, "__name__", func)))
        return self._error()

    def check(self) -> None:
        """Raise what was raised in the pass, if the network has caught it."""
        if self._stopped_at is not None:
            raise self._error()

    def _error(self) -> UnknownOperationError:
        return UnknownOperationError(f"{self._stopped_at!r} may do something else")

    def write(self, func: Any, tensor: Any) -> None:
        """Stop where an operation writes to memory that others see in one order only."""
        if self._either and isinstance(tensor, Tensor) and memory_of(tensor) in self._either:
            raise self.stop(func)

    def share(self, *tensors: Tensor) -> None:
        """Note memory that may be shared in one order only."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._either[storage._cdata] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]


class _Sequence(nn.Sequential):
    """What a sequence is during a pass. A copy is an ordinary one: it is made of what the attributes say."""

    def forward(self, input: Any) -> Any:  # noqa: A002 - as PyTorch names it
        watch = _watch()
        known = watch is not None and watch.knows(self, input)
        with torch._C.DisableTorchFunction() if known else _nothing:
            return super().forward(input)  # type: ignore[no-untyped-call]

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = super().__reduce_ex__(protocol)
        return nn.Sequential, (), *made[2:]


_Sequence.__name__ = _Sequence.__qualname__ = nn.Sequential.__name__


def _change_class(sequence: nn.Sequential, kind: type[nn.Sequential]) -> None:
    object.__setattr__(sequence, "__class__", kind)


def unwatched() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which nothing is watched: what we do ourselves in a pass."""
    return _nothing if _watch() is None else torch._C.DisableTorchFunction()


_nothing = contextlib.nullcontext()


def stop_where_shared(tensor: Tensor) -> None:
    """Stop a pass that is watched where others may see the memory of a tensor in one order only."""
    if (watch := _watch()) is not None:
        watch.write("a map of which there is a view", tensor)


def _watch() -> Watch | None:
    watch: Watch | None = getattr(_watching, "watch", None)
    return watch


Rule = Callable[[Watch, Any, Any, Any], Any]


def _same(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    """It gives the same."""
    return func(*args, **kwargs)


def _in_place(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    """It writes to what it is called on; also what it reads, where that is a part of the same memory."""
    written = args[0] if args else None
    watch.write(func, written)
    others = [other for other in args[1:] if isinstance(other, Tensor) and other is not written]
    if isinstance(written, Tensor) and any(memory_of(other) == memory_of(written) for other in others):
        raise watch.stop(func)
    return func(*args, **kwargs)


def _perhaps_in_place(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    """It writes to its input where it is told so; by position or by name."""
    if any(value for value in (*args[1:], *kwargs.values()) if not isinstance(value, float | Tensor)):
        watch.write(func, args[0] if args else kwargs.get("input"))
    return func(*args, **kwargs)


def _either(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    """It returns a view or a copy, as the order has it."""
    made = func(*args, **kwargs)
    given = args[0] if args else kwargs["input"]
    watch.share(given, made)
    return made


def _convolution(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    large = len(args) > 1 and args[1].numel() >= _LARGE
    if large and (args[1].numel() >= 2 * _LARGE or args[1].shape[2:].numel() > 1):
        args = (args[0].contiguous(), *args[1:])
    return func(*args, **kwargs)


def _unless(name: str, position: int, default: bool) -> Rule:
    """Return the rule of what does the same unless it is told otherwise, by position or by name."""

    def rule(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
        if args[position] if len(args) > position else kwargs.get(name, default):
            raise watch.stop(func)
        return _perhaps_in_place(watch, func, args, kwargs)

    return rule


def _named(names: str, rule: Rule) -> dict[Any, Rule]:
    """Return the rule of functions and methods, wherever PyTorch has them under these names."""
    places: Iterable[Any] = (torch, torch._C._nn, F, Tensor)
    found = (getattr(place, name, None) for name in names.split() for place in places)
    return dict.fromkeys(filter(callable, found), rule)


_TELLING = ("_base", "_version", "_cdata", "_backward_hooks")  # whether a tensor is a view, and the like
_ATTRIBUTES = {
    kind.__get__: _same for name, kind in inspect.getmembers(Tensor, inspect.isgetsetdescriptor) if name not in _TELLING
}
_RULES: dict[Any, Rule] = {
    **_ATTRIBUTES,
    **_named("size dim numel __len__ is_floating_point is_complex", _same),
    **_named("linear conv_transpose1d conv_transpose2d conv_transpose3d matmul bmm einsum", _same),
    **_named("max_pool2d max_pool3d _max_pool2d _max_pool3d avg_pool2d avg_pool3d adaptive_avg_pool2d", _same),
    **_named("adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d _adaptive_max_pool2d", _same),
    **_named("_adaptive_max_pool3d pad prelu gelu sigmoid tanh softmax log_softmax softplus", _same),
    **_named("cat concat concatenate stack chunk split unbind narrow select __getitem__ repeat clone detach", _same),
    **_named("view view_as permute transpose movedim squeeze unsqueeze expand expand_as unflatten", _same),
    **_named("add sub mul div true_divide neg pow sqrt rsqrt exp log abs square clamp clamp_min clamp_max", _same),
    **_named("__rsub__ __rdiv__ __pow__ __rpow__ lerp addcmul sign round erf sin cos logsigmoid", _same),
    **_named("mean sum std var norm amax amin max min argmax argmin minimum maximum normalize", _same),
    **_named("gt ge lt le eq ne __eq__ any all where masked_fill isnan isfinite", _same),
    **_named("logical_not logical_and logical_or __invert__ __and__ __or__", _same),
    **_named("item __bool__ __int__ __float__ float half double bool long type_as", _same),
    **_named("flip roll grid_sample affine_grid", _same),
    **_named("zeros ones full zeros_like ones_like full_like new_zeros new_ones arange tensor as_tensor", _same),
    **_named("add_ sub_ mul_ div_ relu_ sigmoid_ tanh_ clamp_ leaky_relu_ elu_ hardtanh_", _in_place),
    **_named("__setitem__ copy_ fill_ zero_", _in_place),
    **_named("relu relu6 leaky_relu elu selu celu silu mish hardswish hardsigmoid hardtanh", _perhaps_in_place),
    **_named("flatten reshape reshape_as ravel contiguous to cpu", _either),
    **_named("pixel_shuffle pixel_unshuffle channel_shuffle", _either),
    **_named("conv1d conv2d conv3d", _convolution),
    # it is less precise with the statistics of the batch
    **_named("batch_norm", _unless("training", 5, True)),
    **_named("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout", _unless("training", 2, True)),
    # it is wrong so (PyTorch 2.6 to 2.14) for some sizes of two channels
    **_named("interpolate", _unless("antialias", 6, False)),
}
