"""The passes over perturbed copies: batched, without a graph, by the quickest way that gives the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from medviz.finite import check_finite
from medviz.probe.batching import Batches
from medviz.probe.clean import CleanPass
from medviz.probe.compiled import CompiledPasses
from medviz.probe.cut import Replace
from medviz.probe.layers import module_of
from medviz.probe.order import Order
from medviz.probe.patched import Patched, PatchedPasses, Prepared
from medviz.probe.quicker import Quicker, Way, after, is_timed
from medviz.probe.runner import Runner
from medviz.tensors import wide

Reduce = Callable[[Tensor, Tensor], Tensor]


class Rows(Protocol):
    """Rows of images that may be made when they are needed; a tensor `(M, C, *S)` is one of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@attrs.frozen(eq=False)
class PerturbedPasses:
    """What a probe does with perturbed copies of its images.

    Args:
        runner: the model.
        order: in which the numbers of its maps lie in memory.
        clean: the pass over the clean images, which knows how often each layer is called.
        batches: how many rows at once.
        compiled: passes by `torch.compile`; None: nobody asked for them.
        patched: passes of copies that differ inside of a window.
    """

    runner: Runner
    order: Order
    clean: CleanPass
    batches: Batches
    compiled: CompiledPasses | None
    patched: PatchedPasses
    _choices: dict[Any, Quicker] = attrs.field(factory=dict, init=False)  # of each kind of copies

    def run(self, inputs: Rows, index: Tensor, replace: Mapping[str, Rows], reduce: Reduce | None = None) -> Tensor:
        """Return the outputs `(M, N, …)`, float32 or float64, or what `reduce` makes of them.

        Args:
            inputs: the copies.
            index: the image that each belongs to, `(M,)`.
            replace: what layers are to return instead.
            reduce: from some of the outputs and their part of `index` to what is kept of them.
        """
        return torch.cat(list(self.batches.each(len(inputs), self._way(inputs, index, replace, reduce), graph=False)))

    def run_patched(self, rows: Patched, growth: float, reduce: Reduce | None) -> Tensor:
        """Return the same of copies that differ inside of a window, incrementally where that proves itself."""
        if growth == 1 and len(rows) > 1 and is_timed(rows.clean.device):
            size = self.batches.rows_at_once(graph=False)
            return torch.cat(list(self.batches.with_bar(len(rows), size, self._quicker(rows, size, reduce))))
        part = self.patched.prepared(rows, growth)
        if part is None:
            return self.run(rows, rows.index, {}, reduce)
        run = _incrementally(part, rows, reduce)
        return torch.cat(list(self.batches.each(len(rows), run, graph=False, row_bytes=part.row_bytes)))

    def _quicker(self, rows: Patched, size: int, reduce: Reduce | None) -> Iterator[Tensor]:
        """Yield the same, in the quicker way once it is known; `size`: of whole passes."""
        choice = self._choices.setdefault(self.patched.kind(rows, 1.0), Quicker())
        whole = self._way(rows, rows.index, {}, reduce)

        def prepare() -> Way | None:
            part = self.patched.prepared(rows)
            return None if part is None else _incrementally(part, rows, reduce)

        done = yield from choice.first(len(rows), size, whole, prepare)
        if choice.incremental is False:
            self.patched.release()
        part = self.patched.prepared(rows) if choice.incremental and done < len(rows) else None
        if part is not None:
            whole, size = _incrementally(part, rows, reduce), self.batches.rows_at_once(False, part.row_bytes)
        yield from after(done, whole, len(rows), size)

    def _way(self, inputs: Rows, index: Tensor, replace: Mapping[str, Rows], reduce: Reduce | None) -> Way:
        """Return what makes whole passes of some of the rows."""
        modules = {name: module_of(self.runner.model, name) for name in replace}
        calls = self.clean.calls(list(modules)) if modules else {}
        runner = self._whole(len(inputs), bool(modules))

        def run(rows: slice) -> Tensor:
            self.runner.begin()
            replaced = Replace(modules, {n: t[rows] for n, t in replace.items()}, calls)
            output = replaced.run(lambda: runner.run(inputs[rows], index[rows]))
            return _kept(output, index[rows], reduce)

        return lambda rows: self.order.tried(lambda: run(rows))

    def _whole(self, rows: int, hooked: bool) -> Order | CompiledPasses:
        """What makes whole passes: a compiled model calls no hooks, and one pass is not worth compiling for."""
        if self.compiled is None or hooked or rows <= self.batches.rows_at_once(graph=False):
            return self.order
        return self.compiled


def _incrementally(part: Prepared, rows: Patched, reduce: Reduce | None) -> Way:
    return lambda some: _kept(part.run(some), rows.index[some], reduce)


def _kept(output: Tensor, index: Tensor, reduce: Reduce | None) -> Tensor:
    output = wide(check_finite(output, "the model's output"))
    return output if reduce is None else reduce(output, index)


def which_image(index: Tensor | None, rows: int, images: int) -> Tensor:
    """Return the image that each of some rows belongs to, `(M,)`; None: row i belongs to image i.

    Raises:
        ValueError: there is no such image, or not one for each row.
    """
    if index is None:
        if rows != images:
            raise ValueError(f"{rows} rows for {images} images; say with `index` which row belongs to which image.")
        return torch.arange(rows, device="cpu")
    if index.shape != (rows,) or index.is_floating_point() or not ((index >= 0) & (index < images)).all():
        raise ValueError(f"`index` must hold, for {rows} rows, the position of an image, 0 to {images - 1}.")
    return index
