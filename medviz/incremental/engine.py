"""Run a network on patched copies of one image, layer by layer, inside of the boxes that the patch can reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from medviz.incremental import rules
from medviz.incremental.boxes import Box, fraction
from medviz.incremental.graph import constant, evaluate, trace

_DENSE = 0.6  # of a map: from there on, whole maps are faster


class Incremental:
    """The clean activations of one image, and what a patch makes of them.

    Exact: what is not run again cannot have changed. Source of the idea: Nakandala et al. 2019, "Incremental and
    Approximate Inference for Faster Occlusion-based Deep CNN Explanations", SIGMOD,
    https://doi.org/10.1145/3299869.3319874.

    Args:
        model: in eval mode; traced, not changed.
        image: the clean image, `(1, C, *S)`.

    Raises:
        Exception: whatever stops `torch.fx` from tracing the model.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.traced = trace(model)
        self.nd = image.ndim - 2
        self._last_use = _last_uses(self.traced)
        self.clean: dict[fx.Node, Any] = {}
        for node in self.traced.graph.nodes:
            self.clean[node] = self._clean(node, image)
        self._whole_work = sum(self._work(node, value) for node, value in self.clean.items())
        self._work_done = 0.0

    def _clean(self, node: fx.Node, image: Tensor) -> Any:
        if node.op == "placeholder":
            return image if self._is_image(node) else node.args[0] if node.args else None
        if node.op == "get_attr":
            return constant(node, self.traced)
        args, kwargs = _mapped(node, self.clean)
        return args[0] if node.op == "output" else evaluate(node, self.traced, args, kwargs)

    def _is_image(self, node: fx.Node) -> bool:
        return node is next(iter(self.traced.graph.nodes))

    @property
    def share(self) -> float:
        """How much of the work of a whole pass a patched copy took in the last run: convolutions and linear layers."""
        return self._work_done / self._whole_work if self._whole_work else 1.0

    def _work(self, node: fx.Node, value: Any) -> float:
        """The multiplications of a layer for each of its rows."""
        value = value.block if isinstance(value, Box) else value
        if node.op != "call_module" or not isinstance(value, Tensor) or not value.numel():
            return 0.0
        weight = getattr(self.traced.get_submodule(str(node.target)), "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2:
            return 0.0
        return value[0].numel() * weight[0].numel()

    def run(self, patches: Tensor, corners: Tensor) -> Any:
        """Return the network's raw output for copies of the image with a patch in the place of what was there.

        Args:
            patches: `(M, C, *mask)`.
            corners: the first voxel of each patch, `(M, nd)`.
        """
        values: dict[fx.Node, Any] = {}
        self._work_done = 0.0
        for node in self.traced.graph.nodes:
            if node.op == "placeholder" and self._is_image(node):
                values[node] = Box(self.clean[node], patches, corners.tolist())
            elif not any(n in values for n in node.all_input_nodes):
                continue  # untouched by the patch: the clean value stands
            else:
                values[node] = self._changed(node, values, len(patches))
                self._work_done += self._work(node, values[node])
            for done in self._last_use.get(node, ()):
                values.pop(done, None)
        output = next(node for node in self.traced.graph.nodes if node.op == "output")
        return values[output] if output in values else _expand(self.clean[output], len(patches))

    def _changed(self, node: fx.Node, values: dict[fx.Node, Any], rows: int) -> Any:
        """The value of a node that the patch has reached: a box where a rule knows it, else whole."""
        args, kwargs = _mapped(node, {**self.clean, **values})
        if node.op != "output" and all(isinstance(values.get(n), Box | None) for n in node.all_input_nodes):
            made = self._by_rule(node, args, kwargs)
            if made is not None:
                return made
        inputs = {n: self._whole(n, values, rows) for n in node.all_input_nodes}
        args, kwargs = _mapped(node, inputs)
        return args[0] if node.op == "output" else evaluate(node, self.traced, args, kwargs)

    def _whole(self, node: fx.Node, values: dict[fx.Node, Any], rows: int) -> Any:
        value = values.get(node, self.clean[node])
        if isinstance(value, Box):
            return value.whole()
        if node in values or node.op == "get_attr":
            return value
        return _expand(value, rows)

    def _by_rule(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        clean = self.clean[node]
        boxes = [value for value in _flat(args) if isinstance(value, Box)]
        if not boxes or not isinstance(clean, Tensor):
            return None
        module = self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if _is_global_mean(node, module, args, kwargs, self.nd):
            return rules.global_mean(boxes[0], clean)
        if clean.ndim != self.nd + 2:
            return None
        if _is_elementwise(node, module) and args[0] is boxes[0] and not _has_tensor(args[1:], kwargs):
            block = evaluate(node, self.traced, (boxes[0].block, *args[1:]), kwargs)
            return boxes[0].with_block(clean, block)
        window = rules.Window.of(module, self.nd) if module is not None else None
        if window is not None:
            return self._by_window(window, boxes[0], clean)
        return self._by_combination(node, args, kwargs, clean)

    def _by_window(self, window: rules.Window, box: Box, clean: Tensor) -> Box | None:
        starts, size = window.reach(box, clean.shape[2:])
        if fraction(size, clean.shape[2:]) > _DENSE:
            return None
        return Box(clean, window(box, starts, size), starts)

    def _by_combination(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], clean: Tensor
    ) -> Box | None:
        if node.op == "call_function" and node.target in rules.ARITHMETIC and not kwargs:
            return rules.combine(args, lambda blocks: evaluate(node, self.traced, tuple(blocks), {}), clean)
        if node.op == "call_function" and node.target is torch.cat:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if axis == 1:
                return rules.combine(args[0], lambda blocks: torch.cat(blocks, 1), clean)
        return None


def _is_elementwise(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return type(module) in rules.ELEMENTWISE_MODULES
    return node.target in (rules.ELEMENTWISE_FUNCTIONS if node.op == "call_function" else rules.ELEMENTWISE_METHODS)


def _is_global_mean(
    node: fx.Node, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any], nd: int
) -> bool:
    if module is not None:
        size = getattr(module, "output_size", None)
        return type(module) in rules.GLOBAL_POOLS and size in (1, (1,) * nd)
    if node.target in (torch.mean, "mean"):
        axes = kwargs.get("dim", args[1] if len(args) > 1 else None)
        return isinstance(axes, tuple | list) and {a % (nd + 2) for a in axes} == set(range(2, nd + 2))
    return False


def _has_tensor(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return any(isinstance(value, Tensor | Box) for value in _flat([*args, *kwargs.values()]))


def _flat(values: Any) -> list[Any]:
    return [item for value in values for item in (_flat(value) if isinstance(value, list | tuple) else [value])]


def _mapped(node: fx.Node, values: dict[fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args: Any = fx.map_arg(node.args, lambda n: values[n])
    kwargs: Any = fx.map_arg(node.kwargs, lambda n: values[n])
    return tuple(args), dict(kwargs)


def _expand(value: Any, rows: int) -> Any:
    """The clean value for every row; what is no tensor, or belongs to no image, stays."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == 1:
        return value.expand(rows, *value.shape[1:])
    return value


def _last_uses(traced: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """Return, for each node, whose values nobody needs after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        for used in node.all_input_nodes:
            last[used] = node
    done: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last.items():
        done.setdefault(node, []).append(used)
    return done
