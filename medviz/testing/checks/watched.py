"""A network in a state that is easily disturbed, that can be stopped in any pass."""

from __future__ import annotations

import random
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from medviz.testing.models import Classifier


class BrokenModelError(RuntimeError):
    """What the model of a check raises."""


@attrs.define
class Script:
    """What happens in which pass. Not a container: those of a model are put back after a call."""

    at: int
    error: type[BaseException]
    passes: int = 0


class Watched(nn.Module):
    """A classifier with mixed training flags, frozen and trained parameters, gradients, and a buffer that counts.

    Args:
        ndim: 2 or 3 spatial axes.
        at: the pass, counted from 0, in which it raises; −1: none.
        error: what it raises.
    """

    runs: Tensor

    def __init__(self, ndim: int, at: int = -1, error: type[BaseException] = BrokenModelError) -> None:
        super().__init__()
        self.net = Classifier(ndim)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("runs", torch.zeros((), device="cpu"))
        self.script = Script(at, error)
        self.train()
        self.net.stem[1].eval()
        self.net.fc.bias.requires_grad_(False)
        for parameter in self.net.deep.parameters():
            parameter.grad = torch.ones_like(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, or stop."""
        self.runs += 1
        number, self.script.passes = self.script.passes, self.script.passes + 1
        if number == self.script.at:
            raise self.script.error("the model stopped")
        logits: Tensor = self.drop(self.net(x))
        return logits

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that a call must leave as it is."""
        numpy: Any = np.random.get_state()
        return {
            "parameters and buffers": [t.clone() for t in self.state_dict().values()],
            "training flags": [m.training for m in self.modules()],
            "requires_grad": [p.requires_grad for p in self.parameters()],
            "gradients (.grad)": [p.new_zeros(0) if p.grad is None else p.grad.clone() for p in self.parameters()],
            "attributes": [sorted(vars(m)) for m in self.modules()],
            "hooks": [[len(v) for k, v in vars(m).items() if "hooks" in k] for m in self.modules()],
            "global random states": [torch.get_rng_state(), repr(random.getstate()), numpy[1].tolist()],
        }

    def differences(self, before: dict[str, Any]) -> list[str]:
        """Return the parts of the state that are not what they were."""
        after = self.state()
        return [part for part, was in before.items() if not all(map(_same, was, after[part]))]


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)
