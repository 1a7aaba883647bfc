"""Gradients of scores, safe from the small range of float16, and numbers of the precision that sums need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from medviz.finite import all_finite
from medviz.tensors import wide

# float16 loses what is below 6e-8, and 1 / 128³ is not far above: the gradient is scaled up on its way, as far as fits
_SCALES = (15, 10, 5, 0, -5, -10)
_BATCH_NORMS = ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm")  # instance-norm is made of it


def gradients(scores: Tensor, tensors: Sequence[Tensor] | Sequence[GradientEdge], half: bool) -> list[Tensor | None]:
    """Return the gradient of each row's score with respect to its row of each tensor, in float32 or float64.

    The graph is kept for further targets. None stands for a tensor that the scores do not depend on.

    Args:
        scores: `(M,)`, float32 or float64, with a graph.
        tensors: each `(M, …)`, or the place in the graph where it was; rows do not depend on each other.
        half: float16 is somewhere on the way.

    Raises:
        ValueError: the graph holds a reentrant checkpoint, or the gradient is not finite.
    """
    for power in _SCALES if half else (0,):
        found = _grad(scores, tensors, 2.0**power)
        scaled = [None if g is None else wide(g) / 2.0**power for g in found]
        if all(g is None or all_finite(g) for g in scaled):
            return scaled
    raise ValueError("the gradient of the score holds values that are NaN or infinite.")


@contextlib.contextmanager
def _in_order(scores: Tensor) -> Iterator[None]:
    """Hand the batch-norms of a graph their gradients in the order of the axes, during the block.

    PyTorch takes a gradient whose values lie channels last for one whose values lie channels first, where an axis has a
    single element, as that of one image has: with patches flattened and transposed after a batch-norm, or channels
    moved behind an instance-norm, its gradients are those of other voxels. Shown in `tests/test_probe_gradients.py`.
    """
    handles = [node.register_prehook(_ordered) for node in behind(scores) if node.name().startswith(_BATCH_NORMS)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ordered(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(g.contiguous() if g is not None and 1 in g.shape else g for g in gradients)


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


def _grad(scores: Tensor, tensors: Sequence[Tensor] | Sequence[GradientEdge], scale: float) -> Sequence[Tensor | None]:
    try:
        with _in_order(scores):
            return torch.autograd.grad(
                scores, tensors, torch.full_like(scores, scale), retain_graph=True, allow_unused=True
            )
    except RuntimeError as err:
        if "heckpoint" in str(err):
            raise ValueError(
                "the model checkpoints in the reentrant way, which has no gradients for single layers; use "
                "torch.utils.checkpoint.checkpoint(…, use_reentrant=False)."
            ) from err
        raise
