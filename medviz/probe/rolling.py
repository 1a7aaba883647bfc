"""Find the layer to explain in the pass that is made anyway."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import padding

from medviz.probe.choice import Choice, Seen, plain_shape
from medviz.probe.cut import Cut
from medviz.probe.layers import Layer, hand_on, hooked
from medviz.probe.models import buffers, parameters
from medviz.probe.order import usual_order
from medviz.probe.outputs import first_tensor, tensors_in
from medviz.probe.starts import Starts, is_its_own
from medviz.probe.ways import Call, numbered

_log = logging.getLogger("medviz")
# they move the map, and add cells that say nothing
_PADDINGS = tuple(getattr(padding, f"_{kind}PadNd") for kind in ("Circular", "Constant", "Reflection", "Replication"))
_TAIL = 50  # modules, the last that a model defines, whose outputs may start the graph: each start takes time


class RollingCut:
    """Watch all layers and find the one that the automatic choice takes, in the pass that is made anyway.

    With `starts`, the last spatial outputs each start the graph anew and let go of the one before, so that after the
    pass the graph reaches from the output to the last spatial layer and no further: its gradient is ready.

    Args:
        model: what runs.
        images: the batch that runs through it.
        starts: where the graph begins; None: there will be no backward pass.
        named: layers whose outputs start the graph too; from the first of them on it is not started anew.
        usual: whether maps lie in the usual order in memory where the graph begins, whatever order they had.

    Attributes:
        seen: the calls of all layers, in their order.
        several: whether the model returned more than one floating tensor, or they lie in a holder of another kind.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        starts: Starts | None,
        named: Cut | None = None,
        usual: bool = False,
    ) -> None:
        self.model, self.several = model, False
        self.batch, self.ndim = len(images), images.ndim
        self.seen: list[Seen] = []
        self.tensor: Tensor | None = None
        self._starts, self._named, self._usual = starts, named, usual
        self._version = -1
        self._last: Seen | None = None
        self._names: dict[int, tuple[str, bool]] = {}  # by the module's identity; whether it may start the graph
        self._held: dict[int, Tensor] = {}  # by identity: the model's weights, and what was made of them alone

    def hooks(self) -> contextlib.AbstractContextManager[None]:
        """Watch during the block."""
        named = [(name, module) for name, module in self.model.named_modules() if name]
        first = len(named) - _TAIL
        self._names = {id(module): (name, i >= first) for i, (name, module) in enumerate(named)}
        found = [self.model, *(module for _, module in named)]
        self._held = {id(tensor): tensor for tensor in (*parameters(found), *buffers(found))}
        watched = [*((module, self._watch) for _, module in named), (self.model, self._end)]
        return hooked([(module, hook) for module, hook in watched if not isinstance(module, torch.jit.ScriptModule)])

    def _end(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        self.several = sum(tensor.is_floating_point() for tensor in tensors_in(output)) != 1

    def _watch(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        if id(module) not in self._names:
            return None  # a copy that the model has made of one of its modules, with the hook
        name, starts = self._names[id(module)]
        tensor = output if type(output) is Tensor and output.is_floating_point() else first_tensor(output)
        shape = None if tensor is None else tensor.shape
        spatial = shape is not None and len(shape) == self.ndim and shape[0] == self.batch and math.prod(shape[2:]) > 1
        no_map = self._is_of_a_weight(given, tensor) or isinstance(module, _PADDINGS) or self._is_spread(given)
        spatial = spatial and not no_map
        seen = Seen(name, module, shape, spatial)
        self.seen.append(seen)
        if tensor is None or not spatial or self._is_handed_on(tensor, seen):
            return None
        self.tensor = self._start(tensor, module, given, output) if starts else tensor
        self._last, self._version = seen, _version(self.tensor)
        return None if self.tensor is tensor else hand_on(output, tensor, self.tensor, [module])

    def _is_spread(self, given: tuple[Any, ...]) -> bool:
        """Whether a layer is given a single cell, so that the cells it returns say nothing of where in the image."""
        args = given[0]
        source = args[0] if args else None
        return isinstance(source, Tensor) and source.ndim == self.ndim and source.shape[2:].numel() == 1

    def _is_of_a_weight(self, given: tuple[Any, ...], made: Tensor | None) -> bool:
        """Whether a module makes no map of the image, but a weight: a parametrisation, or what turns a table into one.

        It is given nothing, or a parameter or buffer of the model, or what another such module has made of it.
        """
        args, kwargs = given
        source = args[0] if args else None
        if not isinstance(source, Tensor):
            return not (args or kwargs)
        held = self._held.keys() & {id(source), id(source._base)}
        if not held and not isinstance(source, nn.Parameter):
            return False
        if made is not None:
            self._held[id(made)] = made  # held, so that no other tensor can take its place
        return True

    def _is_handed_on(self, tensor: Tensor, seen: Seen) -> bool:
        """Whether a container hands on the output of its last child: the outermost name stands for both.

        Not where another child goes on from there, such as a pooling layer whose output is returned beside it: the
        score may leave by that one.
        """
        if tensor is not self.tensor or _version(tensor) != self._version:
            return False
        last = self._last
        if last is not None and last.name.startswith(f"{seen.name}.") and not self._goes_on(last, seen):
            last.spatial = False
            self._last = seen
        else:
            seen.spatial, seen.handed_on = False, True
        return True

    def _goes_on(self, last: Seen, container: Seen) -> bool:
        after = itertools.takewhile(lambda s: s is not last, reversed(self.seen[:-1]))
        inside = (s.name for s in after if s.name.startswith(f"{container.name}.") and not s.handed_on)
        return any(not last.name.startswith(f"{name}.") for name in inside)

    def _start(self, tensor: Tensor, module: nn.Module, given: tuple[Any, ...], output: Any) -> Tensor:
        """Return the start of the graph: `tensor` where it can be one; and itself where the graph begins elsewhere."""
        if self._starts is None or not torch.is_grad_enabled():
            return tensor
        if tensor.requires_grad and self._named is not None and self._named.tensors:
            return tensor
        own = is_its_own(tensor, module, given)
        start = tensor.detach_() if own else tensor.as_subclass(Tensor).detach()
        if self._usual:
            start = usual_order(start)
        return self._starts.begin(start, module, output)

    def cut(self, name: str) -> Cut | None:
        """Return the cut that the pass has ended with, at the layer `name` and at those that were named before.

        None: its output was changed in place afterwards, or the graph does not begin there.
        """
        cut = self._named or Cut({}, self._starts)
        if name in cut.tensors:
            return cut
        if self.tensor is None or _version(self.tensor) != self._version:
            return None
        if self._last is None or self._last.name != name:
            return None  # it belongs to another output, or is called once more after the last spatial output
        if self._starts is not None and (not self.tensor.requires_grad or type(self.tensor) is not Tensor):
            return None
        cut.add(name, self.model.get_submodule(name), self.tensor, sum(seen.name == name for seen in self.seen))
        return cut

    def leave_out(self, leads: Mapping[Call, bool]) -> None:
        """Choose only among the calls that lead to the output that is meant, as another pass tells."""
        for call, seen in zip(numbered(seen.name for seen in self.seen), self.seen, strict=True):
            seen.leads = leads.get(call, True)

    def choose(self, output: Tensor) -> str:
        """Return the name of the layer that the automatic choice takes: see `Choice.choose`."""
        return Choice(self.seen, self.model, self.batch, self.ndim).choose(output)

    def layers(self, output: Tensor) -> list[Layer]:
        """Return what was called, in the model's order; of several calls of one module the last."""
        try:
            automatic = self.choose(output)
        except ValueError as err:
            _log.info("%s", err)
            automatic = ""
        last = {seen.name: seen for seen in self.seen}
        order = [name for name, _ in self.model.named_modules() if name in last]
        return [Layer(n, type(last[n].module).__name__, plain_shape(last[n].shape), n == automatic) for n in order]


def _version(tensor: Tensor) -> int:
    """Return a number that each operation in place changes; tensors of the inference mode have none."""
    return -1 if tensor.is_inference() else tensor._version
