"""Let incremental inference prove itself on a few windows before it is trusted with all of them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from medviz.errors import first_line
from medviz.incremental.boxes import Box
from medviz.incremental.copying import cut
from medviz.incremental.engine import Incremental
from medviz.probe.failures import is_out_of_memory
from medviz.probe.guard import untouched
from medviz.probe.models import modules
from medviz.probe.outputs import select
from medviz.probe.runner import Runner
from medviz.tensors import of_each_output, wide

_log = logging.getLogger("medviz")
_FEWEST = 16  # windows, below which the clean activations and the proof do not pay
_LOOKED_AT = 32  # windows, about, among which the proof finds one that changes much
_MEASURED = 8  # windows whose error is measured, about, where boxes stop growing
_WORTH = 0.95  # of the work of whole passes: above it, the memory that boxes take costs more than they save
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of the largest output
_BY_CHANCE = 1e3  # how much smaller an output may be than most, and still be held against them


class Patched(Protocol):
    """Copies of one clean image, each with another content inside of one window."""

    @property
    def clean(self) -> Tensor:
        """The image, `(1, C, *S)`."""

    @property
    def corners(self) -> Tensor:
        """The first voxel of each window, `(M, nd)`."""

    @property
    def index(self) -> Tensor:
        """The image of the batch that each row belongs to, `(M,)`."""

    def patches(self, rows: slice) -> Tensor:
        """Return what stands in some of the windows, `(m, C, *mask)`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@attrs.define(eq=False)
class PatchedPasses:
    """Incremental inference for the images of one probe, where it has proved itself.

    Args:
        runner: the model.
    """

    runner: Runner
    _held: tuple[Any, Incremental] | None = attrs.field(default=None, init=False)  # one image's activations at a time
    _proved: dict[Any, int] = attrs.field(factory=dict, init=False)  # the size of a row's largest tensor
    _refused: set[Any] = attrs.field(factory=set, init=False)

    def prepared(self, rows: Patched, growth: float = 1.0) -> Prepared | None:
        """Return what runs some of the rows incrementally; None where whole passes are better.

        It is refused, with a logged reason, where the model cannot be traced, where its result is not the same as that
        of whole passes, and where it would save little work. Nothing is timed here.

        Args:
            rows: the copies.
            growth: of boxes, as `Incremental`; below 1 the error is measured on a few windows, and logged.
        """
        kind = self.kind(rows, growth)
        image = (int(rows.index[0]), growth)
        known = self._held is not None and self._held[0] == image and (image, kind) in self._proved
        if kind in self._refused or not (known or len(rows) >= _FEWEST):
            return None
        try:
            engine = self._engine(rows, image, growth)
            if not known:
                self._prove(engine, rows, growth)
                self._proved[image, kind] = engine.row_bytes
        except _RefusedError as reason:
            _log.info("whole passes, for %s", reason)
            self._refused.add(kind)
            self.release()
            return None
        return Prepared(functools.partial(self._rows, engine, rows, kind), self._proved[image, kind])

    def release(self) -> None:
        """Let go of the clean activations."""
        self._held = None

    def kind(self, rows: Patched, growth: float) -> Any:
        """Return what rows have in common for which incremental inference is better, or whole passes."""
        return rows.patches(slice(0, 1)).shape, growth

    def _engine(self, rows: Patched, image: Any, growth: float) -> Incremental:
        """The clean activations of an image, made once.

        Raises:
            _RefusedError: the model cannot be traced, or not as it is called here.
        """
        if self._held is not None and self._held[0] == image:
            return self._held[1]
        model, arguments = self.runner.model, self.runner.arguments
        if arguments.args or arguments.kwargs:
            raise _RefusedError("the model takes more than the image")
        if any(module._forward_hooks or module._forward_pre_hooks for module in modules(model)):
            raise _RefusedError("the model has hooks")
        self._held = None  # so that two images' activations are never alive at once
        try:
            # a network that keeps something on `self` keeps a tracer's stand-in there, and would go on with it
            with untouched(modules(model)), self.runner.casting():
                engine = Incremental(model, rows.clean.clone(), growth)
        except Exception as err:
            raise _RefusedError(f"the model cannot be traced: {first_line(err)}") from err
        self._held = (image, engine)
        return engine

    def _run(self, engine: Incremental, patches: Tensor, corners: Tensor) -> Tensor:
        with self.runner.casting():
            return select(engine.run(patches, corners), self.runner.choose)

    def _rows(self, engine: Incremental, rows: Patched, kind: Any, part: slice) -> Tensor:
        """Return the outputs of some of the rows; by whole passes, once what was proved has failed all the same."""
        patches, corners = rows.patches(part), rows.corners[part]
        if kind not in self._refused:
            try:
                return self._run(engine, patches, corners)
            except Exception as err:
                if is_out_of_memory(err):
                    raise
                self._refused.add(kind)
                _log.warning("whole passes from here on, for incremental inference fails: %s", first_line(err))
        return self._pass(Box(rows.clean, patches, corners).whole(), rows.index[part])

    def _pass(self, images: Tensor, index: Tensor) -> Tensor:
        """A whole pass."""
        self.runner.begin()
        return self.runner.run(images, index)

    def _prove(self, engine: Incremental, rows: Patched, growth: float) -> None:
        """Hold a few windows against whole passes.

        Raises:
            _RefusedError: what speaks against incremental inference; the same in every run.
        """
        patches, corners = _tried(rows) if growth == 1 else _spread(rows, _MEASURED)
        try:
            made = self._run(engine, patches, corners)
        except Exception as err:
            raise _RefusedError(f"incremental inference fails here: {type(err).__name__}: {first_line(err)}") from err
        work = engine.share + engine.overhead
        if work > _WORTH:
            raise _RefusedError(f"incremental inference does {work:.0%} of the work of whole passes")
        expected = self._whole(rows, patches, corners)
        if made.shape != expected.shape:
            raise _RefusedError(f"incremental inference gives {tuple(made.shape)} and not {tuple(expected.shape)}")
        if growth == 1:
            if (expected == expected[:1]).all():
                raise _RefusedError("the windows that are tried change nothing, which proves nothing")
            _compare(made, expected, self.runner.tolerance(expected, _TOLERANCE))
        else:
            change = expected - self._pass(rows.clean, rows.index[:1])
            part = of_each_output(made - expected) / of_each_output(change).clamp_min(1e-30)
            _log.info("`growth` %g changes what windows do to an output by up to %.1e of it", growth, float(part.max()))

    def _whole(self, rows: Patched, patches: Tensor, corners: Tensor) -> Tensor:
        """Return the outputs of whole copies, run one by one: `batch_size` may allow no more.

        Raises:
            _RefusedError: memory does not suffice, beside the clean activations.
        """
        try:
            copies = Box(rows.clean, patches, corners).whole()
            return torch.cat([self._pass(copy[None], rows.index[:1]) for copy in copies])
        except RuntimeError as err:
            if is_out_of_memory(err):
                raise _RefusedError("memory does not suffice for the proof of incremental inference") from err
            raise


@attrs.frozen(eq=False)
class Prepared:
    """Incremental passes over copies of one image.

    Args:
        run: from some of the rows to their outputs `(m, N, …)`.
        row_bytes: the size of the largest tensor that one of them takes on its way.
    """

    run: Callable[[slice], Tensor]
    row_bytes: int


class _RefusedError(Exception):
    """Why whole passes are better."""


def _spread(rows: Patched, count: int) -> tuple[Tensor, Tensor]:
    """Return the patches and corners of about so many of the rows, from the first on."""
    some = slice(0, None, max(1, len(rows) // count))
    return rows.patches(some), rows.corners[some]  # once, for an occluder may draw others next time


def _tried(rows: Patched) -> tuple[Tensor, Tensor]:
    """Return the patches and corners of the first row, of the last, and of one in the middle that changes much.

    At the border of the image other things happen than inside, and a window over a black background changes nothing.
    """
    patches, corners = _spread(rows, _LOOKED_AT)
    change = (patches - cut(rows.clean, corners.numpy(force=True), patches.shape[2:])).abs().flatten(1).amax(1).cpu()
    from_middle = (corners / rows.corners.amax(0).clamp_min(1) - 0.5).abs().amax(1)  # at most 1/2
    middle = int((from_middle + (change < change.amax() / 2)).argmin())
    last = slice(len(rows) - 1, None)
    patches, corners = (torch.cat([some[:1], some[middle : middle + 1]]) for some in (patches, corners))
    return torch.cat([patches, rows.patches(last)]), torch.cat([corners, rows.corners[last]])


def _compare(made: Tensor, expected: Tensor, tolerance: float) -> None:
    # each output by itself: one that is huge must not hide what happens to the others; but of many, some are near zero
    # by chance in all that is tried, where only rounding is left
    largest, error = (wide(of_each_output(value)) for value in (expected, made - expected))
    usual = largest.maximum((_BY_CHANCE * largest).clamp_max(largest.median()))
    if not (error <= tolerance * usual).all():
        raise _RefusedError(f"incremental inference differs by {float(error.max()):.1e}")
