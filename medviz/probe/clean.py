"""The forward pass over the clean images, and everything that it leaves behind: output, activations, gradients."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from medviz.errors import first_line
from medviz.finite import check_finite
from medviz.probe.copies import copy_on_write
from medviz.probe.cut import Cut
from medviz.probe.failures import is_out_of_memory
from medviz.probe.gradients import behind, gradients
from medviz.probe.layers import module_of, refuse_scripted
from medviz.probe.order import Order
from medviz.probe.rolling import RollingCut
from medviz.probe.runner import Runner
from medviz.probe.starts import Starts
from medviz.probe.ways import Call, Ways
from medviz.targets import FixedTarget
from medviz.tensors import wide

_T = TypeVar("_T")
_log = logging.getLogger("medviz")


class CleanPass:
    """Made when it is first needed, once for all layers and targets that are known by then.

    Args:
        runner: the model.
        order: in which the numbers of its maps lie in memory.
        inputs: the clean images `(B, C, *S)`.
        wanted: the layers that will be asked for; None among them: the automatic choice.
        graph: whether gradients will be asked for.
    """

    def __init__(self, runner: Runner, order: Order, inputs: Tensor, wanted: Sequence[str | None], graph: bool) -> None:
        self._runner, self._order = runner, order
        self._inputs = inputs
        self._index = torch.arange(len(inputs), device=inputs.device)
        self._wanted = list(dict.fromkeys(wanted))
        self._graph, self._starts = graph, Starts()
        self._done: tuple[Tensor, Cut] | None = None
        self._earlier_output: Tensor | None = None  # of the clean images, until the pass is done
        self._automatic: str | None = None
        self._is_repeatable = False  # the cut was made at layers whose names were known
        self._gradients: dict[FixedTarget, dict[str, Tensor | None]] = {}

    @property
    def output(self) -> Tensor:
        """The output as it came, with its graph."""
        return self._result()[0]

    def layer_name(self, layer: str | None) -> str:
        """Return `layer`, or the automatic choice where it is None."""
        if layer is not None:
            return layer
        if self._automatic is None and self._done is None and None in self._wanted:
            self._result()
        if self._automatic is None:
            rolling, output = self.roll(graph=False)
            self._automatic = _announce(rolling.choose(output))
        return self._automatic

    def tensor(self, name: str, graph: bool = False) -> Tensor:
        """Return the kept output of a layer, after one more pass where it was not named before the first."""
        _, cut = self._result()
        if name not in cut.tensors or (graph and not cut.starts):
            _log.info("layer %r was not named before the forward pass: one more pass", name)
            self._graph = self._graph or graph
            _, cut = self._done = self._order.tried(lambda: self._capture([*cut.tensors, name]))
            self._gradients.clear()
        return cut.tensors[name]

    def calls(self, names: Sequence[str]) -> Mapping[str, int]:
        """Return how often each layer is called in one pass."""
        for name in names:
            self.tensor(name)
        return self._result()[1].calls

    def gradient(self, name: str, target: FixedTarget) -> Tensor | None:
        """Return the gradient of each image's score with respect to a layer's output; None: there is no way to it."""
        self.tensor(name, graph=True)
        if name not in self._gradients.get(target, {}):
            self._gradients[target] = self._tried(functools.partial(self._backward, target))
        return self._gradients[target][name]

    def roll(self, graph: bool) -> tuple[RollingCut, Tensor]:
        """Run the clean images and watch all layers."""
        model = self._runner.model
        refuse_scripted(model, "`model`")

        def run() -> tuple[RollingCut, Tensor]:
            rolling = RollingCut(model, self._inputs, self._starts if graph else None, usual=self._order.channels_last)
            return rolling, self._run(graph, rolling)

        rolling, output = self._order.tried(run)
        self._follow(rolling)
        return rolling, output

    def differs(self) -> bool:
        """Return whether the model, as it is now, says something else of the clean images than in their pass."""
        output = self._earlier_output if self._done is None else self._done[0].detach()
        if output is None:
            return True
        with torch.no_grad():
            again = self._runner.run(self._inputs, self._index)
        return not torch.allclose(again, output, rtol=1e-4, atol=1e-6 * float(output.abs().max()))

    def close(self) -> None:
        """Let go of everything, and take the graph off what the model has kept."""
        self._done = self._earlier_output = None
        self._gradients.clear()
        self._starts.end()

    def _result(self) -> tuple[Tensor, Cut]:
        if self._done is None:
            find = self._find if None in self._wanted else functools.partial(self._capture, self._wanted)
            self._done = self._order.tried(lambda: self._tried(find))
            self._earlier_output = None
        return self._done

    def _tried(self, work: Callable[[], _T]) -> _T:
        """Return what `work` does, which is done again without following views where autograd refuses that."""
        try:
            return work()
        except RuntimeError as err:
            if not self._starts.followed or not {"inplace", "in-place"} & set(str(err).split()):
                raise
            self._starts.followed = False
            _log.info("views of the layers' outputs are not followed: %s", first_line(err))
            names = None if self._done is None else list(self._done[1].tensors)
            self._done = None if names is None else self._order.tried(lambda: self._capture(names))
            return work()

    def _find(self) -> tuple[Tensor, Cut]:
        """Find the automatic layer in the pass itself, if one is enough."""
        model = self._runner.model
        refuse_scripted(model, "`model`")
        named = self._cut(self._wanted)
        starts = self._starts if self._graph else None
        rolling = RollingCut(model, self._inputs, starts, named, usual=self._order.channels_last)
        output = self._run(self._graph, named, rolling)
        named.finish()
        wanted = list(named.layers)
        followed = (rolling.several or not self._graph) and self._follow(rolling)
        name = rolling.choose(output)
        output, cut, leads = self._at(name, rolling, wanted, output)
        if not leads and not followed and self._follow(rolling):
            name = rolling.choose(output)
            output, cut, _ = self._at(name, rolling, wanted, output)
        self._automatic = _announce(name)
        return output, cut

    def _at(self, name: str, rolling: RollingCut, wanted: Sequence[str], output: Tensor) -> tuple[Tensor, Cut, bool]:
        """Return the output with the cut at the layer `name`, and whether that leads to the output, if a graph tells.

        By a second pass where the first, `rolling`, has not kept what is needed.
        """
        cut = rolling.cut(name) if output.ndim == 2 else None
        if cut is not None:
            return output, cut, cut.starts is None or cut.edges[name].node in behind(output)
        ways = Ways(self._runner.model)
        output, cut = self._capture([*wanted, name], ways)
        return output, cut, cut.starts is None or ways.lead_on(name, output)

    def _follow(self, rolling: RollingCut) -> bool:
        """Let the automatic choice leave out layers that lead elsewhere than to the output, if that can be known.

        By one more pass with a graph from the images on, which keeps no tensors: only its ways are looked at. Where the
        network itself asks for a gradient, the pass is made again, with tensors. What stops the network both times is
        that images have a graph; what stops it once is an error of its own, and comes through.
        """
        try:
            leads = self._ways(keep=False)
        except Exception as stopped:
            if is_out_of_memory(stopped):
                raise
            try:
                leads = self._ways(keep=True)
            except Exception as err:
                if is_out_of_memory(err):
                    raise
                _log.info("which layers lead to the output is not known: %s", first_line(err))
                return False
            if not isinstance(stopped, _NotKeptError):
                raise
        rolling.leave_out(leads)
        return True

    def _ways(self, keep: bool) -> dict[Call, bool]:
        ways = Ways(self._runner.model)
        self._runner.begin(again=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of images with a graph, which are none of the caller's
            stack.enter_context(torch.enable_grad())
            if not keep:
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_not_kept, _missing))
            stack.enter_context(ways.hooks())
            images = copy_on_write(self._inputs.detach().requires_grad_())
            return ways.to(self._runner.run(images, self._index, copy=False))

    def _capture(self, wanted: Iterable[str | None], *watching: Ways) -> tuple[Tensor, Cut]:
        """Cut the graph at the layers and keep what they return."""
        cut = self._cut(wanted)
        self._is_repeatable = True
        output = self._run(cut.starts is not None, cut, *watching)
        cut.finish()
        return output, cut

    def _cut(self, names: Iterable[str | None]) -> Cut:
        modules = {name: module_of(self._runner.model, name) for name in names if name is not None}
        graph = self._graph and (bool(modules) or None in self._wanted)
        return Cut(modules, self._starts if graph else None, usual=self._order.channels_last)

    def _run(self, graph: bool, *watching: Cut | RollingCut | Ways) -> Tensor:
        """Run the clean images, inside of `tried`."""
        self._runner.begin(again=self._earlier_output is not None)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(graph))
            for watch in watching:
                stack.enter_context(watch.hooks())
            output = check_finite(self._order.run(self._inputs, self._index), "the model's output")
        if self._done is None:
            self._earlier_output = output.detach()
        return output

    def _backward(self, target: FixedTarget) -> dict[str, Tensor | None]:
        """One backward pass from the score to every kept layer."""
        output, cut = self._result()
        edges = list(cut.edges.values())
        with torch.enable_grad():
            scores = target.score(wide(output), self._index)
            half = self._runner.is_half(output, *cut.tensors.values())
            try:
                with cut.hooks_again(everywhere=any(t.device.type != "cpu" for t in (output, *cut.tensors.values()))):
                    found = gradients(scores, edges, half) if scores.requires_grad else [None] * len(edges)
            except CheckpointError:
                if self._is_repeatable:
                    raise
                # a rolling cut cannot be made twice in the same way
                self._done = self._order.tried(lambda: self._capture(list(cut.tensors)))
                return self._backward(target)
        return dict(zip(cut.edges, found, strict=True))


class _NotKeptError(RuntimeError):
    """A tensor of a graph is asked for that keeps none."""


def _not_kept(_: Tensor) -> None:
    return None


def _missing(_: None) -> Tensor:
    raise _NotKeptError


def _announce(name: str) -> str:
    _log.info("layer chosen automatically: %r", name)
    return name
