"""Run a network on patched copies of one image, layer by layer, inside of the boxes that the patch can reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, fx, nn

from medviz.incremental.boxes import Box, Same
from medviz.incremental.graph import as_graph, is_new, is_relu, last_uses
from medviz.incremental.layout import channels_last, depends_on_order, layers_channels_last
from medviz.incremental.nodes import (
    Call,
    arguments,
    clean_value,
    give_layer,
    in_place,
    is_fact,
    layer,
    on_a_copy,
    operation,
)
from medviz.incremental.operations import asked_for_type, is_elementwise, weight_of
from medviz.incremental.rules import Rules, flat
from medviz.incremental.windows import whole_mean

_DENSE = 0.75  # of a map: from there on, whole maps are quicker
# how many multiplications of a convolution take as long, on a CPU, as to make one value, and to place one box
_VALUE, _BOX = 50, 1.6e6
_CALLS = ("call_module", "call_function", "call_method")


@attrs.frozen(eq=False)
class Step:
    """One operation.

    Args:
        node: in the graph.
        module: the layer, if it is one.
        run: the operation; it may overwrite its first argument, if nobody else looks at that.
        run_clean: the operation; its arguments stay.
        in_place: it overwrites its first argument.
        elementwise: it works on each voxel by itself.
        fact: its value is a size or a type.
        weight: `(N, K, …)` of a convolution or linear layer, or whose value it is; else None.
        done: whose values nobody needs after it.
    """

    node: fx.Node
    module: nn.Module | None
    run: Call
    run_clean: Call
    in_place: bool
    elementwise: bool
    fact: bool
    weight: Tensor | fx.Node | None
    done: list[fx.Node]

    @classmethod
    def of(cls, node: fx.Node, traced: fx.GraphModule, module: nn.Module | None, done: list[fx.Node]) -> Step:
        """Return what a node of a graph stands for; `module` is the layer that it calls, if it calls one."""
        plain = whole_mean(node, module) or operation(node, module)
        overwrites = in_place(node, traced)
        run_clean = on_a_copy(plain) if overwrites else plain
        first = node.args[0] if node.args else None
        free = isinstance(first, fx.Node) and is_new(first, traced) and len(first.users) == 1
        run = run_clean if not free else _relu_in_place if is_relu(node, traced) else plain
        voxelwise = is_elementwise(node, module)
        return cls(node, module, run, run_clean, overwrites, voxelwise, is_fact(node), weight_of(node, module), done)

    def work(self, value: Any, clean: Mapping[fx.Node, Any]) -> float:
        """Return how long each row of its value took, in multiplications of a convolution or linear layer."""
        values = [one.block if isinstance(one, Box) else one for one in flat([value])]
        tensors = [one for one in values if isinstance(one, Tensor) and one.ndim and len(one)]
        each = sum(one.numel() / len(one) for one in tensors)
        weight = clean[self.weight] if isinstance(self.weight, fx.Node) else self.weight
        with_each = weight.shape[1:].numel() if isinstance(weight, Tensor) and weight.ndim > 1 else 0
        return each * (_VALUE + with_each) if self.node.op in _CALLS else 0.0


class Incremental:
    """The clean activations of one image, and what a patch makes of them.

    Exact: what is not run again cannot have changed. Source of the idea: Nakandala et al. 2019, "Incremental and
    Approximate Inference for Faster Occlusion-based Deep CNN Explanations", SIGMOD,
    https://doi.org/10.1145/3299869.3319874.

    Args:
        model: in eval mode; traced, not changed.
        image: the clean image, `(1, C, *S)`.
        growth: how much of a map a box may fill along each axis, in (0, 1]: below 1 it stops growing there, and the
            result is approximate.

    Raises:
        Exception: whatever stops `torch.fx` from tracing the model.
        TypeError: it overwrites a part of a value that is read later.
    """

    def __init__(self, model: nn.Module, image: Tensor, growth: float = 1.0) -> None:
        self.traced = as_graph(model, image)
        self._growth = growth
        quicker = layers_channels_last(self.traced, image)
        try:
            self._begin(channels_last(image) if quicker else image, quicker)
        except RuntimeError:
            if not quicker:
                raise
            self._begin(image, {})  # it asks for values in their usual order
        else:
            for node, module in quicker.items():
                give_layer(node, self.traced, module)  # those of a batch-norm that was put into them go

    def _begin(self, image: Tensor, layers: Mapping[fx.Node, nn.Module]) -> None:
        """Make the clean activations; `layers` are called in the place of the network's own.

        Raises:
            RuntimeError: an operation does not take values in the order in which they lie here.
        """
        done = last_uses(self.traced)
        own = {node: layers.get(node) or layer(node, self.traced) for node in self.traced.graph.nodes}
        self._steps = [Step.of(node, self.traced, module, done.get(node, [])) for node, module in own.items()]
        self._image, self._output = self._steps[0].node, self._steps[-1].node
        self._elementwise = {step.node for step in self._steps if step.elementwise}
        self._rules = Rules(image.ndim - 2, _DENSE, self._growth)
        self._whole_work = self._work_done = 0.0
        self._boxes = self._largest = 0
        self.clean: dict[fx.Node, Any] = {self._image: image}
        self._channels_last: set[fx.Node] = set()
        needed = {self._image}
        for step in self._steps[1:]:
            needed.difference_update(step.done)
            if step.in_place:
                self._refuse_views(step, needed)
            if step.node.users:
                needed.add(step.node)
            if layers and depends_on_order(step.node, [self.clean[node] for node in step.node.all_input_nodes]):
                raise RuntimeError(f"{step.node.name} depends on the order of values in memory")
            value = clean_value(step.node, self.traced, step.run_clean, self.clean)
            if layers and self._is_map(step.node, value):
                value = channels_last(value)
                self._channels_last.add(step.node)
            self.clean[step.node] = value
            self._whole_work += step.work(self.clean[step.node], self.clean)
            for node in step.done:
                if self._is_passed_on(node):
                    self.clean[node] = self.clean[node].to("meta")

    @property
    def share(self) -> float:
        """How much of the work of a whole pass a patched copy took in the last run."""
        return self._work_done / self._whole_work if self._whole_work else 1.0

    @property
    def overhead(self) -> float:
        """How much of the work of a whole pass it takes in addition to find, cut and put boxes: much in a small one."""
        return self._boxes * _BOX / self._whole_work if self._whole_work else 0.0

    @property
    def row_bytes(self) -> int:
        """How large the largest value of a patched copy was in the last run."""
        return self._largest

    def run(self, patches: Tensor, corners: Tensor) -> Any:
        """Return the network's raw output for copies of the image with a patch in the place of what was there.

        Args:
            patches: `(M, C, *mask)`.
            corners: the first voxel of each patch, `(M, nd)`.
        """
        values: dict[fx.Node, Any] = {self._image: Box(self.clean[self._image], patches, corners)}
        self._work_done, self._boxes, self._largest = 0.0, 0, 0
        for step in self._steps[1:]:
            made = self._changed(step, values)
            if made is not None:
                values[step.node] = made = self._in_order(step.node, made)
                self._work_done += step.work(made, self.clean)
                self._boxes += not step.fact
                self._largest = max(self._largest, _row_bytes(made))
            for node in step.done:
                values.pop(node, None)
        return values[self._output] if self._output in values else _expand(self.clean[self._output], len(patches))

    def _is_map(self, node: fx.Node, value: Any) -> bool:
        """Return whether a value is a new map that comes from maps: attention's stay as they are."""
        if not isinstance(value, Tensor) or value.ndim != self._rules.nd + 2 or not is_new(node, self.traced):
            return False
        return any(one is self._image or one in self._channels_last for one in node.all_input_nodes)

    def _in_order(self, node: fx.Node, made: Any) -> Any:
        """Return a value in the order of the clean one, which some kernels change."""
        if node in self._channels_last and isinstance(made, Box):
            return attrs.evolve(made, block=channels_last(made.block))
        return channels_last(made) if node in self._channels_last and isinstance(made, Tensor) else made

    def _refuse_views(self, step: Step, needed: set[fx.Node]) -> None:
        """Raise a `TypeError` where a value that is `needed` later has memory in common with one that is overwritten.

        Here it is not overwritten, so that the later readers would see what was there before.
        """
        first = step.node.args[0] if step.node.args else None
        written = self.clean.get(first) if isinstance(first, fx.Node) else None
        if not isinstance(written, Tensor):
            return
        for other in needed - {first}:
            if any(_overlap(value, written) for value in flat([self.clean[other]])):
                raise TypeError(f"{step.node.name} overwrites a part of {other.name}, which is read later")

    def _is_passed_on(self, node: fx.Node) -> bool:
        """Whether nobody looks at the clean map around the boxes of a node: its voxels are taken one by one."""
        value = self.clean[node]
        alone = all(user in self._elementwise and user.args and user.args[0] is node for user in node.users)
        alone = alone and all(user.all_input_nodes == [node] for user in node.users)
        if not alone or node.op == "get_attr" or not isinstance(value, Tensor) or value.ndim != self._rules.nd + 2:
            return False
        return value.shape[2:].numel() > 1  # else it may be a mean over space, which is corrected by its change

    def _changed(self, step: Step, values: dict[fx.Node, Any]) -> Any:
        """The value of a node: a box where a rule knows it, else whole; None where the clean value stands."""
        node, clean = step.node, self.clean.get(step.node)
        reached = [n for n in node.all_input_nodes if n in values]
        if not reached or set(reached) <= set(asked_for_type(node)):
            return None
        inputs = {n: values[n] if n in values else self.clean[n] for n in node.all_input_nodes}
        if step.fact:
            made = step.run(*arguments(node, {n: _outline(value) for n, value in inputs.items()}))
            return None if made == clean else made  # the number of rows is another one now; most sizes are not
        first = node.args[0] if node.args else None
        run = step.run if isinstance(first, fx.Node) and first in values else step.run_clean
        if node.op != "output" and all(n not in values or is_fact(n) or _is_partial(values[n]) for n in inputs):
            made = self._rules(node, step.module, *arguments(node, inputs), clean, run)
            if made is not None:
                return made
        args, kwargs = arguments(node, {n: _whole(value) for n, value in inputs.items()})
        return args[0] if node.op == "output" else run(args, kwargs)


def _overlap(value: Any, written: Tensor) -> bool:
    """Whether two tensors lie in memory so that one may be a part of the other."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or not (value.numel() and written.numel()):
        return False
    (start, end), (first, last) = map(_memory, (value, written))
    return start < last and first < end


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor begins and ends."""
    after = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + after * tensor.element_size()


def _relu_in_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return torch.relu_(args[0])


def _is_partial(value: Any) -> bool:
    return isinstance(value, Box | Same) or (type(value) is tuple and all(map(_is_partial, value)))


def _whole(value: Any) -> Any:
    """A whole value: that of the patched copies, or what does not depend on the image, as the model made it."""
    if type(value) is tuple:
        return tuple(map(_whole, value))
    return value.whole() if isinstance(value, Box | Same) else value


def _outline(value: Any) -> Any:
    """What is asked for its size or type: the same as the whole value has."""
    return value.outline() if isinstance(value, Box | Same) else value


def _row_bytes(value: Any) -> int:
    if type(value) is tuple:
        return sum(map(_row_bytes, value))
    value = value.block if isinstance(value, Box) else value
    return value.nbytes // len(value) if isinstance(value, Tensor) and value.ndim and len(value) else 0


def _expand(value: Any, rows: int) -> Any:
    """An output that does not depend on the image, for every row; what is no tensor stays."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == 1:
        return value.expand(rows, *value.shape[1:])
    return value
