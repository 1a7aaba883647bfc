"""Find the layer to explain in the pass that is made anyway."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules import padding

from medviz.probe.cut import Cut
from medviz.probe.layers import Layer, channel_axis, hand_on, hooked, works_along_last
from medviz.probe.outputs import first_tensor, tensors_in
from medviz.probe.starts import Starts, is_its_own

_log = logging.getLogger("medviz")
# they move the map, and add cells that say nothing
_PADDINGS = tuple(getattr(padding, f"_{kind}PadNd") for kind in ("Circular", "Constant", "Reflection", "Replication"))
_FIXED_GRIDS = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
_TAIL = 50  # modules, the last that a model defines, whose outputs may start the graph: each start takes time


@attrs.define(eq=False)
class _Seen:
    """One call of a module. What only the choice asks for is worked out then: a pass calls hundreds of modules."""

    name: str
    module: nn.Module
    shape: torch.Size | None
    spatial: bool
    made_by: Any  # the node of the graph that made it, where the graph is followed
    handed_on: bool = False  # it returns what another one has returned
    leads: bool = True  # to the output that is meant

    @property
    def elements(self) -> int:
        return math.prod(self.shape or ())

    @property
    def cells(self) -> int:
        return math.prod((self.shape or ())[2:])

    @property
    def parametrised(self) -> bool:
        return next(self.module.parameters(recurse=False), None) is not None

    @property
    def channels_last(self) -> bool:
        return self.shape is not None and self.spatial and works_along_last(self.module, self.shape[-1])


class RollingCut:
    """Watch all layers and find the one that the automatic choice takes, in the pass that is made anyway.

    With `starts`, the last spatial outputs each start the graph anew and let go of the one before, so that after the
    pass the graph reaches from the output to the last spatial layer and no further: its gradient is ready.

    Args:
        model: what runs.
        images: the batch that runs through it.
        starts: where the graph begins; None: there will be no backward pass.
        named: layers whose outputs start the graph too; from the first of them on it is not started anew.
        follow: keep in mind which node of the graph made what each layer returned, for `way_to`.

    Attributes:
        seen: the calls of all layers, in their order.
        several: whether the model returned more than one floating tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        starts: Starts | None,
        named: Cut | None = None,
        follow: bool = False,
    ) -> None:
        self.model, self.several, self._follow = model, False, follow
        self.batch, self.ndim = len(images), images.ndim
        self.seen: list[_Seen] = []
        self.tensor: Tensor | None = None
        self._starts, self._named = starts, named
        self._version = -1
        self._last: _Seen | None = None
        self._names: dict[int, tuple[str, bool]] = {}  # by the module's identity; whether it may start the graph

    def hooks(self) -> contextlib.AbstractContextManager[None]:
        """Watch during the block."""
        named = [(name, module) for name, module in self.model.named_modules() if name]
        first = len(named) - _TAIL
        self._names = {id(module): (name, i >= first) for i, (name, module) in enumerate(named)}
        watched = [*((module, self._watch) for _, module in named), (self.model, self._end)]
        return hooked([(module, hook) for module, hook in watched if not isinstance(module, torch.jit.ScriptModule)])

    def _end(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        self.several = sum(tensor.is_floating_point() for tensor in tensors_in(output)) > 1

    def _watch(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        if id(module) not in self._names:
            return None  # a copy that the model has made of one of its modules, with the hook
        name, starts = self._names[id(module)]
        tensor = output if type(output) is Tensor and output.is_floating_point() else first_tensor(output)
        shape = None if tensor is None else tensor.shape
        spatial = shape is not None and len(shape) == self.ndim and math.prod(shape[2:]) > 1
        spatial = spatial and not (isinstance(module, _PADDINGS) or self._is_spread(given))
        seen = _Seen(name, module, shape, spatial, tensor.grad_fn if self._follow and tensor is not None else None)
        self.seen.append(seen)
        if tensor is None or not spatial or len(tensor) != self.batch or self._is_handed_on(tensor, seen):
            return None
        self.tensor = self._start(tensor, module, given, output) if starts else tensor
        self._last, self._version = seen, _version(self.tensor)
        return None if self.tensor is tensor else hand_on(output, tensor, self.tensor, [module])

    def _is_spread(self, given: tuple[Any, ...]) -> bool:
        """Whether a layer is given a single cell, so that the cells it returns say nothing of where in the image."""
        args = given[0]
        source = args[0] if args else None
        return isinstance(source, Tensor) and source.ndim == self.ndim and source.shape[2:].numel() == 1

    def _is_handed_on(self, tensor: Tensor, seen: _Seen) -> bool:
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

    def _goes_on(self, last: _Seen, container: _Seen) -> bool:
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

    def way_to(self, output: Tensor) -> list[bool]:
        """Return of each call whether what it returned is on the way to `output`, as the graph tells that was followed.

        All are, where there is no graph.
        """
        nodes = behind(output)
        return [not nodes or seen.made_by in nodes for seen in self.seen]

    def leads_on(self, name: str, output: Tensor) -> bool:
        """Return whether `output` comes from a layer, and where it is a segmentation from one with parameters after it.

        Both as the graph tells that was followed.
        """
        calls = [seen for seen, on_it in zip(self.seen, self.way_to(output), strict=True) if on_it and seen.made_by]
        places = [i for i, seen in enumerate(calls) if seen.name == name]
        if not places:
            return False
        return output.ndim == 2 or any(seen.parametrised for seen in calls[places[-1] + 1 :])

    def leave_out(self, leads: Sequence[bool]) -> None:
        """Choose only among the calls that lead to the output that is meant."""
        for seen, does in zip(self.seen, leads, strict=True):
            seen.leads = does

    def choose(self, output: Tensor) -> str:
        """Return the name of the layer that the automatic choice takes for this output.

        `(B, N)`: the last layer with a spatial extent. `(B, N, *S)`: the last one on the coarsest grid before the last
        layer that has parameters, which is never the logits themselves. Of a layer that is called several times the
        last call counts, for which its name stands.

        Raises:
            ValueError: no layer suits, or the model goes on with tokens.
        """
        last = {seen.name: seen for seen in self.seen if seen.leads}
        calls = [seen for seen in self.seen if last.get(seen.name) is seen]
        if output.ndim > 2:
            return self._coarsest(calls)
        spatial = [i for i, seen in enumerate(calls) if seen.spatial]
        self._refuse_tokens(calls[spatial[-1] + 1 if spatial else 0 :])
        mixed = spatial and any(seen.channels_last for seen in calls)
        axis = self._channel_axis(calls[spatial[-1]]) if mixed else 1
        if axis == -1:
            raise ValueError(
                "`layer` cannot be chosen for a model that works on (B, *s, C), channels last; name one, with "
                'reshape="channels_last".'
            )
        if axis is None:
            unclear = calls[spatial[-1]]
            raise ValueError(
                f"`layer` cannot be chosen: whether the channels of {unclear.name!r}, {_plain(unclear.shape)}, come "
                'first or last, nothing tells. Name a layer, with reshape="channels_last" if that is where they are.'
            )
        if not spatial:
            raise ValueError("no layer of the model returns a spatial extent (B, K, *s); nothing can be mapped.")
        return calls[spatial[-1]].name

    def _refuse_tokens(self, calls: Sequence[_Seen]) -> None:
        tokens = [seen for seen in calls if self._is_tokens(seen)]
        if tokens:
            raise ValueError(
                "`layer` cannot be chosen for a model that works on tokens (B, N, C); name one whose tokens the score "
                "still depends on: before the last attention, such as the first norm of the last block. The model's "
                f"token layers end with {[seen.name for seen in tokens][-4:]}."
            )

    def _channel_axis(self, seen: _Seen) -> int | None:
        return None if seen.shape is None else channel_axis(seen.module, seen.shape, list(self.model.modules()))

    def _coarsest(self, calls: Sequence[_Seen]) -> str:
        parametrised = [i for i, seen in enumerate(calls) if seen.parametrised]
        end = parametrised[-1] if parametrised else 0
        embedding = self._embedding(calls[:end])
        before = [seen for seen in calls[len(embedding) : end] if seen.spatial]
        if not before:
            self._refuse_tokens(calls[len(embedding) : end] if embedding else [])
            raise ValueError("no spatial layer comes before the model's last layer; name one with `layer`.")
        made_by = {seen.cells: seen.module for seen in reversed(before)}  # each grid, by the first layer that has it
        # a pooling to a fixed grid is a branch that the others go past, as in a pyramid of them
        grids = [cells for cells, module in made_by.items() if not isinstance(module, _FIXED_GRIDS)] or list(made_by)
        return [seen.name for seen in before if seen.cells == min(grids)][-1]

    def _embedding(self, calls: Sequence[_Seen]) -> Sequence[_Seen]:
        """The first calls, where they make tokens of patches of the image, which say nothing of what a network found.

        Where the tokens come back to that grid without a layer, it would be the coarsest.
        """
        first = next((i for i, seen in enumerate(calls) if self._is_tokens(seen)), 0)
        return calls[:first] if sum(seen.parametrised for seen in calls[:first]) == 1 else []

    def _is_tokens(self, seen: _Seen) -> bool:
        return seen.shape is not None and len(seen.shape) == 3 and seen.shape[0] == self.batch and seen.shape[1] > 1

    def layers(self, output: Tensor) -> list[Layer]:
        """Return what was called, in the model's order; of several calls of one module the last."""
        try:
            automatic = self.choose(output)
        except ValueError as err:
            _log.info("%s", err)
            automatic = ""
        last = {seen.name: seen for seen in self.seen}
        order = [name for name, _ in self.model.named_modules() if name in last]
        return [Layer(n, type(last[n].module).__name__, _plain(last[n].shape), n == automatic) for n in order]


def behind(output: Tensor) -> set[Any]:
    """Return the nodes of the graph that `output` comes from."""
    nodes: set[Any] = set()
    left = [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            left += [before for before, _ in node.next_functions]
    return nodes


def _version(tensor: Tensor) -> int:
    """Return a number that each operation in place changes; tensors of the inference mode have none."""
    return -1 if tensor.is_inference() else tensor._version


def _plain(shape: torch.Size | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(shape)
