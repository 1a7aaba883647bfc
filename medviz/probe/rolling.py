"""Find the layer to explain in the pass that is made anyway."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules import padding

from medviz.probe.cut import Cut
from medviz.probe.layers import Layer, channel_axis, hand_on, has_parameters, hooked, works_along_last
from medviz.probe.outputs import first_tensor, tensors_in
from medviz.probe.starts import Starts, is_its_own
from medviz.probe.ways import Call, numbered

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
        return has_parameters(self.module)

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

    Attributes:
        seen: the calls of all layers, in their order.
        several: whether the model returned more than one floating tensor, or they lie in a holder of another kind.
    """

    def __init__(self, model: nn.Module, images: Tensor, starts: Starts | None, named: Cut | None = None) -> None:
        self.model, self.several = model, False
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
        self.several = sum(tensor.is_floating_point() for tensor in tensors_in(output)) != 1

    def _watch(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        if id(module) not in self._names:
            return None  # a copy that the model has made of one of its modules, with the hook
        name, starts = self._names[id(module)]
        tensor = output if type(output) is Tensor and output.is_floating_point() else first_tensor(output)
        shape = None if tensor is None else tensor.shape
        spatial = shape is not None and len(shape) == self.ndim and math.prod(shape[2:]) > 1
        spatial = spatial and not (isinstance(module, _PADDINGS) or self._is_spread(given) or _is_of_a_weight(given))
        seen = _Seen(name, module, shape, spatial)
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

    def leave_out(self, leads: Mapping[Call, bool]) -> None:
        """Choose only among the calls that lead to the output that is meant, as another pass tells."""
        for call, seen in zip(numbered(seen.name for seen in self.seen), self.seen, strict=True):
            seen.leads = leads.get(call, True)

    def choose(self, output: Tensor) -> str:
        """Return the name of the layer that the automatic choice takes for this output.

        `(B, N)`: the last layer with a spatial extent. `(B, N, *S)`: the last one on the coarsest grid before the last
        layer that has parameters, which is never the logits themselves. Of a layer that is called several times the
        last call counts, for which its name stands.

        Raises:
            ValueError: no layer suits, or the model goes on with tokens.
        """
        try:
            return self._choose([seen for seen in self.seen if seen.leads], output)
        except _NoLayerError:
            if all(seen.leads for seen in self.seen):
                raise
            return self._choose(self.seen, output)  # what is cut off from the graph may still be what is explained

    def _choose(self, among: Sequence[_Seen], output: Tensor) -> str:
        last, of_all = ({seen.name: seen for seen in some} for some in (among, self.seen))
        calls = [seen for seen in among if last[seen.name] is seen]
        # one that is called once more for another output is kept for its parameters only: its name stands for that call
        calls = [seen if of_all[seen.name] is seen else attrs.evolve(seen, spatial=False) for seen in calls]
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
            raise _NoLayerError("no layer of the model returns a spatial extent (B, K, *s); nothing can be mapped.")
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
            raise _NoLayerError("no spatial layer comes before the model's last layer; name one with `layer`.")
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


class _NoLayerError(ValueError):
    """There is none to choose."""


def _is_of_a_weight(given: tuple[Any, ...]) -> bool:
    """Return whether a module, such as a parametrisation or a fake quantisation, makes a weight and no map."""
    args, kwargs = given
    return not (args or kwargs) or (bool(args) and isinstance(args[0], nn.Parameter))


def _version(tensor: Tensor) -> int:
    """Return a number that each operation in place changes; tensors of the inference mode have none."""
    return -1 if tensor.is_inference() else tensor._version


def _plain(shape: torch.Size | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(shape)
