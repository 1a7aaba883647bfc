"""A device in the CPU's memory, which refuses what a GPU refuses, where there is none.

Its tensors do not mix with those of the CPU, NumPy cannot read them, and a random generator of the CPU cannot fill
them. Where that is asked for it has no float64, as Apple's GPUs have none. It has no kernels of its own: nothing can be
timed on it, and nothing is learnt of what a kernel of a GPU would do.

Written against PyTorch's interface for devices that are made in Python, which is an experimental one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "faraway"
_HERE = torch.device("cpu")
_OF_ITS_VALUES = {Tensor.tolist, Tensor.data_ptr, Tensor.untyped_storage}
_ACROSS = {"copy_", "_to_copy"}  # these take tensors of two devices
_JOINING = {"cat", "stack"}  # these take no single numbers from the CPU
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}  # these take indices from the CPU
_open: list[object] = []  # blocks in which the device exists


class _Backend:
    """What PyTorch asks a device about itself."""

    def is_available(self) -> bool:
        return bool(_open)

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """It has no generator of its own."""

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def _is_there() -> bool:
    """Tell PyTorch of the device, once in a process; return whether it can be told."""
    register = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if register is not None:
        register(NAME, _Backend())
    return register is not None


DEVICES = [NAME] if _is_there() else []


class Far(Tensor):
    """A tensor of the device, with its values in one of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> Far:
        far: Far = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=device,
        )
        far.held = held
        return far

    def __repr__(self, **kwargs: Any) -> str:
        return f"Far({self.held!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is Tensor.numpy:
            if (kwargs or {}).get("force"):
                return args[0].held.numpy(force=True)
            raise TypeError(f"can't convert {NAME} tensor to numpy; use Tensor.cpu() first")
        if func in _OF_ITS_VALUES:
            return func(args[0].held)
        if func is Tensor.as_subclass:
            return args[0]
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            args[0].held = args[1].held
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees also what no tensor of the device takes part in, such as `torch.zeros`."""

    def __init__(self, float64: bool) -> None:
        super().__init__()
        self._float64 = float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self._float64)


@contextlib.contextmanager
def there(float64: bool = True) -> Iterator[None]:
    """Let the device exist during the block.

    Args:
        float64: whether it has numbers of that precision.
    """
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # else `torch.tensor` asks for a kernel
    try:
        with _Mode(float64) as mode:
            _open.append(mode)
            yield
    finally:
        _open.pop()
        torch._C._set_only_lift_cpu_tensors(before)


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], float64: bool = True) -> Any:
    """Do on the CPU what PyTorch asks of the device, after what a GPU would not have done is refused."""
    leaves = pytree.tree_leaves((args, kwargs))
    far = [leaf for leaf in leaves if isinstance(leaf, Far)]
    near = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Far)]
    name = func.overloadpacket.__name__
    if far and name not in _ACROSS:
        _check_mixture(func, args, near)
    device = _device_of(args[0] if name in _ACROSS else next(iter(far), None), kwargs.get("device"))
    if device.type == NAME and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a {NAME!r} device type for generator but found 'cpu'")
    held_args, held_kwargs = pytree.tree_map(_held, (args, kwargs))
    result = func(*held_args, **held_kwargs)
    return pytree.tree_map(_wrapper({id(tensor.held): tensor for tensor in far}, device, float64), result)


def _device_of(taken: Any, asked: torch.device | str | None) -> torch.device:
    """Return where a result is to be: where it was asked for, else where `taken` is."""
    if asked is None:
        return taken.device if isinstance(taken, Tensor) else _HERE
    asked = torch.device(asked)
    return torch.device(NAME, asked.index or 0) if asked.type == NAME else asked


def _check_mixture(func: Any, args: Sequence[Any], near: Sequence[Tensor]) -> None:
    """Raise where tensors of the CPU take part; its single numbers may, and in an index its indices."""
    name = func.overloadpacket.__name__
    if name.endswith("_") and not isinstance(args[0], Far):
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device; what is written to is on the CPU")
    if name in _INDEXED and isinstance(args[0], Far):
        near = [tensor for tensor in near if not any(tensor is index for index in args[1])]
    if name not in _JOINING:
        near = [tensor for tensor in near if tensor.ndim]
    if near:
        shapes = [tuple(tensor.shape) for tensor in near]
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device; on the CPU are {shapes}")


def _held(value: Any) -> Any:
    if isinstance(value, Far):
        return value.held
    return _HERE if isinstance(value, torch.device) and value.type == NAME else value


def _wrapper(known: Mapping[int, Far], device: torch.device, float64: bool) -> Callable[[Any], Any]:
    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if (before := known.get(id(value))) is not None:
            if before.shape != value.shape or before.stride() != value.stride():
                raise NotImplementedError("another shape in place")
            return before  # an operation in place returns what it was given
        if device.type != NAME:
            return value
        if value.dtype == torch.float64 and not float64:
            raise TypeError(f"{NAME} has no float64")
        return Far(value, device)

    return wrapped
