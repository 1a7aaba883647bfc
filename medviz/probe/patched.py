"""Let incremental inference prove itself on a few windows before it is trusted with all of them."""

from __future__ import annotations

import logging
import time
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
    whole passes, and where it is slower.
    """
    if len(rows) < _FEWEST or runner.arguments.args or runner.arguments.kwargs:
        return None
    try:
        with runner.casting():
            engine = Incremental(runner.model, rows.clean)
    except Exception as err:
        _log.info("whole passes, for the model cannot be traced: %s", str(err).partition("\n")[0])
        return None

    def run(part: slice) -> Tensor:
        with runner.casting():
            return select(engine.run(rows.patches(part), rows.corners[part]), runner.choose)

    def plain(part: slice) -> Tensor:
        return runner.run(rows[part], rows.index[part])

    reason = _refuted(run, plain, len(rows))
    if reason:
        _log.info("whole passes, for %s", reason)
        return None
    return run


def _refuted(run: Callable[[slice], Tensor], plain: Callable[[slice], Tensor], rows: int) -> str:
    """Return what speaks against `run`, or an empty string."""
    middle = max(0, rows // 2 - _PROOF // 2)
    part = slice(middle, middle + _PROOF)
    try:
        made, taken = _timed(run, part)
    except Exception as err:
        return f"incremental inference fails on this model: {type(err).__name__}: {str(err).partition(chr(10))[0]}"
    expected, plainly = _timed(plain, part)
    bound = _TOLERANCE.get(expected.dtype, _HALF) * float(expected.abs().max())
    error = float((made - expected).abs().max()) if made.shape == expected.shape else float("inf")
    if not error <= bound:
        return f"incremental inference differs by {error:.1e}, more than {bound:.1e}"
    if taken > plainly:
        return f"incremental inference takes {taken / plainly:.1f} times as long"
    return ""


def _timed(run: Callable[[slice], Tensor], part: slice) -> tuple[Tensor, float]:
    """Return the result and the time of a second call, for the first one may choose its algorithms."""
    run(part).cpu()
    start = time.perf_counter()
    result = run(part).cpu()  # on a GPU this waits for it
    return result, time.perf_counter() - start
