"""The rule of guided backpropagation, applied to what a network calls and not to the names of its modules.

Every rectifier that is called through torch is meant: `nn.ReLU`, `F.relu`, `torch.relu`, `tensor.relu_()`, shared and
in-place ones, ReLU6, hard tanh, thresholds, `clamp(min=0)` and the maximum with zeros. The forward values are never
changed. Behind a rectifier f the gradient g goes on as f'(x) · max(g, 0) where f(x) > 0 and as 0 elsewhere: for a ReLU
the paper's rule. The same generalises to LeakyReLU, PReLU, RReLU, ELU, SELU, CELU, Softplus, SiLU, GELU, Mish and
Hardswish.

Out of reach is what torch is never asked for: scripted modules, and activations put together from other operations,
such as `x * torch.sigmoid(x)`. Modules that are called like an activation and turn out to be one of those are refused
by name; an expression that does the same without a module of its own (`x * (x > 0)`) passes unseen.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from medviz.probe import Probe
from medviz.tensors import as_tensor

_RECTIFIERS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
        *(F.relu6, F.hardtanh, F.hardtanh_, F.threshold, torch.threshold, torch.threshold_),
        *(F.leaky_relu, F.leaky_relu_, F.prelu, torch.prelu, Tensor.prelu),
        *(F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_),
        *(F.elu, F.elu_, F.selu, F.selu_, F.celu, F.celu_, torch.selu, torch.selu_, torch.celu, torch.celu_),
        *(F.softplus, F.silu, F.gelu, F.mish, F.hardswish),
    }
)
_CLAMPS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_),
        *(torch.clip, torch.clip_, Tensor.clip, Tensor.clip_),
        *(torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_),
    }
)
_MAXIMA: frozenset[Callable[..., Any]] = frozenset({torch.maximum, Tensor.maximum, torch.max, Tensor.max})
_ACTIVATION = re.compile(r"(elu|swish|silu|mish)\d*(activation|implementation)?$", re.IGNORECASE)


class Guided:
    """One use of the rule on one probe.

    Args:
        probe: its model is looked through for what the rule cannot reach.

    Raises:
        ValueError: the model is scripted.
    """

    def __init__(self, probe: Probe) -> None:
        self.gates = 0
        self._hidden: dict[str, str] = {}
        with probe.model() as model:
            modules = dict(model.named_modules())
        if scripted := [name or "model" for name, m in modules.items() if isinstance(m, torch.jit.ScriptModule)]:
            raise ValueError(f"guided backpropagation cannot reach into scripted or traced modules: {scripted[:4]}.")
        self._suspects = {name: m for name, m in modules.items() if _is_suspect(m)}

    @contextlib.contextmanager
    def rule(self) -> Iterator[None]:
        """Apply the rule during the block, forward and backward.

        Raises:
            ValueError: the model has activations that hide from the rule.
        """
        with contextlib.ExitStack() as stack:
            for name, module in self._suspects.items():
                for handle in self._watch(name, module):
                    stack.callback(handle.remove)
            stack.enter_context(_Mode(self))
            yield
        if self._hidden:
            named = ", ".join(f"{name} ({kind})" for name, kind in list(self._hidden.items())[:8])
            raise ValueError(
                f"guided backpropagation does not know these activations: {named}; replace them by torch's own "
                "(nn.SiLU, nn.Mish), or use another method."
            )

    def checked(self, gradient: Tensor) -> Tensor:
        """Return `gradient`.

        Raises:
            ValueError: no rectifier was called on the way from the image, so that the rule has changed nothing.
        """
        if not self.gates:
            raise ValueError("the model calls no rectifier, so that guided backpropagation is the plain gradient.")
        return gradient

    def _watch(self, name: str, module: nn.Module) -> list[Any]:
        """Note a module that is called like an activation and whose gradient passes no gate."""
        before: list[int] = []

        def enter(*_: Any) -> None:
            before.append(self.gates)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if before.pop() == self.gates and getattr(output, "requires_grad", False):
                self._hidden[name] = type(module).__name__

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


class _Mode(TorchFunctionMode):
    """Put a gate behind every rectifier that is called: what is negative goes back no further."""

    def __init__(self, guided: Guided) -> None:
        super().__init__()
        self.guided = guided

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAXIMA and _is_with_zeros(args, kwargs):
            return self._gated(func(*args, **kwargs))
        if func not in _RECTIFIERS and not (func in _CLAMPS and _clamps_at_zero(args, kwargs)):
            return func(*args, **kwargs)
        x = args[0] if args else kwargs.get("input")
        if not (isinstance(x, Tensor) and x._is_view() and x.requires_grad and _in_place(func, kwargs)):
            return self._gated(func(*args, **kwargs))
        # the gradient of a view that was changed in place goes to its base, past a hook on the view
        changed = self._gated(func(x.clone(), *args[1:], **{k: v for k, v in kwargs.items() if k != "input"}))
        return x.copy_(changed)

    def _gated(self, result: Any) -> Any:
        if isinstance(result, Tensor) and result.requires_grad:
            self.guided.gates += 1
            # a hook belongs to the value as it is now: what is later changed in place is not gated twice
            result.register_hook(functools.partial(_gate, result > 0))  # type: ignore[no-untyped-call]
        return result


def _gate(positive: Tensor, gradient: Tensor | None) -> Tensor | None:
    """Return what passes back; None: an operation behind the rectifier gives it no gradient."""
    return None if gradient is None else gradient.clamp(min=0) * positive


def _clamps_at_zero(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    low = kwargs.get("min", args[1] if len(args) > 1 else None)
    return low is not None and bool((as_tensor(low) == 0).all())


def _is_with_zeros(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether one of two values is zero everywhere, and no value that the network has made."""
    both = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return len(both) == 2 and any(not value.requires_grad and not value.any() for value in both)


def _in_place(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether the input is changed; torch hands on `inplace` by its name, however it was given."""
    return func.__name__.endswith("_") or bool(kwargs.get("inplace"))


def _is_suspect(module: nn.Module) -> bool:
    named = _ACTIVATION.search(type(module).__name__) and type(module).__module__ != "torch.nn.modules.activation"
    return bool(named) and not any(True for _ in module.children())
