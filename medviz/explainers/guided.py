"""The rule of guided backpropagation, applied to what a network calls and not to the names of its modules.

Every rectifier that is called through torch is meant: `nn.ReLU`, `F.relu`, `torch.relu`, `tensor.relu_()`, shared and
in-place ones, ReLU6, hard tanh, thresholds and `clamp(min=0)`. The forward values are never changed. Behind a
rectifier f the gradient g goes on as f'(x) · max(g, 0) where f(x) > 0 and as 0 elsewhere: for a ReLU the paper's rule.
The same generalises to LeakyReLU, PReLU, RReLU, ELU, SELU, CELU, Softplus, SiLU, GELU, Mish and Hardswish.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from medviz.probe import Probe

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
_CLAMPS = frozenset({torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_, torch.clamp_min, Tensor.clamp_min})
_OPAQUE = ("Swish", "Mish")  # written as functions of their own, or in parts: torch is never asked for the rectifier


class Guided:
    """One use of the rule on one probe.

    Args:
        probe: its model is looked through for what the rule cannot reach.

    Raises:
        ValueError: the model is scripted, or has activations that hide from the rule.
    """

    def __init__(self, probe: Probe) -> None:
        self.rectifiers = 0
        with probe.model() as model:
            scripted = [name or "model" for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
            hidden = [f"{name} ({type(m).__name__})" for name, m in model.named_modules() if _is_opaque(m)]
        if scripted:
            raise ValueError(f"guided backpropagation cannot reach into scripted or traced modules: {scripted[:4]}.")
        if hidden:
            raise ValueError(
                f"guided backpropagation does not know these activations: {', '.join(hidden[:8])}; replace them by "
                "torch's own (nn.SiLU, nn.Mish), or use another method."
            )

    @contextlib.contextmanager
    def rule(self) -> Iterator[None]:
        """Apply the rule during the block, forward and backward."""
        with _Mode(self):
            yield

    def checked(self, gradient: Tensor) -> Tensor:
        """Return `gradient`.

        Raises:
            ValueError: no rectifier was called, so that the rule has changed nothing.
        """
        if not self.rectifiers:
            raise ValueError("the model calls no rectifier, so that guided backpropagation is the plain gradient.")
        return gradient


class _Mode(TorchFunctionMode):
    """Put a gate behind every rectifier that is called: what is negative goes back no further."""

    def __init__(self, guided: Guided) -> None:
        super().__init__()
        self.guided = guided

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        rectifies = func in _RECTIFIERS or (func in _CLAMPS and _lower(args, kwargs or {}) == 0)
        if not rectifies or not isinstance(result, Tensor):
            return result
        self.guided.rectifiers += 1
        if result.requires_grad:
            positive = result > 0
            # a hook belongs to the value as it is now: what is later changed in place is not gated twice
            result.register_hook(lambda gradient: gradient.clamp(min=0) * positive)  # type: ignore[no-untyped-call]
        return result


def _lower(args: Any, kwargs: Any) -> Any:
    return kwargs.get("min", args[1] if len(args) > 1 else None)


def _is_opaque(module: torch.nn.Module) -> bool:
    return type(module).__name__.endswith(_OPAQUE) and type(module).__module__ != "torch.nn.modules.activation"
