"""Which calls of a model's layers lead to its output, as the graph of a pass tells."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from medviz.probe.gradients import behind
from medviz.probe.layers import has_parameters, hooked
from medviz.probe.outputs import first_tensor

Call = tuple[str, int]
"""The name of a layer, and how often that was called before in the pass."""


@attrs.frozen(eq=False)
class _Noted:
    """One call: the node of the graph that made what it returned, and that of what this is a view of."""

    name: str
    module: nn.Module
    node: Any
    base: Any
    outside: bool  # it ran without gradients, so that no graph tells where it leads


class Ways:
    """Note all calls of layers in a pass that records a graph, and follow that from the output back to them.

    Args:
        model: what runs.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {id(module): name for name, module in model.named_modules() if name}
        self._noted: list[_Noted] = []

    def hooks(self) -> contextlib.AbstractContextManager[None]:
        """Watch during the block."""
        layers = (module for name, module in self._model.named_modules() if name)
        return hooked([(module, self._note) for module in layers if not isinstance(module, torch.jit.ScriptModule)])

    def _note(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        tensor = first_tensor(output)
        if id(module) not in self._names:
            return  # a copy that the model has made of one of its modules, with the hook
        node = None if tensor is None else tensor.grad_fn
        base = tensor._base.grad_fn if tensor is not None and tensor._is_view() and tensor._base is not None else None
        self._noted.append(_Noted(self._names[id(module)], module, node, base, not torch.is_grad_enabled()))

    def to(self, output: Tensor) -> dict[Call, bool]:
        """Return of each call whether what it returned is on the way to `output`; True where the graph cannot tell."""
        nodes = behind(output)
        # an operation in place on a view makes the node of the view anew
        written = {node.next_functions[0][0] for node in nodes if node.name().endswith("CopySlices")} - {None}
        leads = (not nodes or one.outside or one.node in nodes or one.base in written for one in self._noted)
        return dict(zip(numbered(one.name for one in self._noted), leads, strict=True))

    def lead_on(self, name: str, output: Tensor) -> bool:
        """Return whether `output` comes from a layer, and a segmentation from one with parameters that comes after it.

        The graph may begin at that layer.
        """
        nodes = behind(output)
        calls = [one for one in self._noted if one.node in nodes]
        places = [i for i, one in enumerate(calls) if one.name == name]
        if not places:
            return False
        return output.ndim == 2 or any(has_parameters(one.module) for one in calls[places[-1] + 1 :])


def numbered(names: Iterable[str]) -> Iterator[Call]:
    """Yield each name with how often it came before."""
    counted: Counter[str] = Counter()
    for name in names:
        yield name, counted[name]
        counted[name] += 1
