"""Let incremental inference prove itself on a few windows before it is trusted with all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from medviz.incremental.engine import Incremental
from medviz.probe.outputs import select
from medviz.probe.runner import Runner

_log = logging.getLogger("medviz")
_FEWEST = 16  # windows, below which the clean activations and the proof do not pay
_PROOF = 3  # windows that are run in both ways
_WORTH = 0.7  # of the work of whole passes: above it, cutting and gathering cost more than they save
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of the largest output; the rest: half precision
_HALF = 2e-2


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


def prepared(runner: Runner, rows: Patched) -> Callable[[slice], Tensor] | None:
    """Return what runs some of the rows incrementally, to outputs `(m, N, …)`; None where whole passes are better.

    It is refused, with a logged reason, where the model cannot be traced, where its result is not the same as that of
    whole passes, and where it would save little work. Nothing is timed: the choice is the same in every run.
    """
    if len(rows) < _FEWEST or runner.arguments.args or runner.arguments.kwargs:
        return None
    if any(module._forward_hooks or module._forward_pre_hooks for module in runner.model.modules()):
        _log.info("whole passes, for the model has hooks")
        return None
    try:
        with runner.casting():
            engine = Incremental(runner.model, rows.clean.clone())
    except Exception as err:
        _log.info("whole passes, for the model cannot be traced: %s", _first_line(err))
        return None

    def run(part: slice) -> Tensor:
        with runner.casting():
            return select(engine.run(rows.patches(part), rows.corners[part]), runner.choose)

    def plain(part: slice) -> Tensor:
        return runner.run(rows[part], rows.index[part])

    try:
        made = run(_some(len(rows)))
    except Exception as err:
        _log.info("whole passes, for incremental inference fails here: %s: %s", type(err).__name__, _first_line(err))
        return None
    reason = _refuted(made, plain(_some(len(rows))), engine.share)
    if reason:
        _log.info("whole passes, for incremental inference %s", reason)
        return None
    return run


def _some(rows: int) -> slice:
    """Return a few windows from the middle, where they reach furthest."""
    middle = max(0, rows // 2 - _PROOF // 2)
    return slice(middle, middle + _PROOF)


def _refuted(made: Tensor, expected: Tensor, share: float) -> str:
    """Return what speaks against incremental inference, or an empty string; the same in every run."""
    if made.shape != expected.shape:
        return f"gives {tuple(made.shape)} and not {tuple(expected.shape)}"
    # each output by itself: one that is huge must not hide what happens to the others
    largest, error = (_of_each_output(value) for value in (expected, made - expected))
    if not (error <= _TOLERANCE.get(expected.dtype, _HALF) * largest).all():
        return f"differs by {float(error.max()):.1e}"
    if share > _WORTH:
        return f"does {share:.0%} of the work of whole passes"
    return ""


def _of_each_output(values: Tensor) -> Tensor:
    """The largest magnitude of each output `(N,)`."""
    return values.abs().movedim(1, 0).flatten(1).amax(1)


def _first_line(err: Exception) -> str:
    return str(err).partition("\n")[0]
