"""The many passes of perturbation methods by `torch.compile`, where that works and gives the same."""

from __future__ import annotations

import logging
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from medviz.errors import first_line
from medviz.probe.runner import Runner

_log = logging.getLogger("medviz")
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of the largest output

Compiled = bool | str


def check_compiled(compiled: Compiled) -> Compiled:
    """Return `compiled`.

    Raises:
        ValueError: neither a bool nor a mode of `torch.compile`.
    """
    if not isinstance(compiled, bool | str) or not _is_mode(compiled):
        raise ValueError(f"`compiled` is True, False or a mode of torch.compile such as 'default'; got {compiled!r}.")
    return compiled


def _is_mode(compiled: Compiled) -> bool:
    if isinstance(compiled, bool):
        return True
    try:
        torch.compile(nn.Identity(), mode=compiled)  # compiles nothing before it is called
    except RuntimeError as err:
        return "mode" not in str(err)  # else it cannot compile here at all, of which the passes tell
    return compiled != ""


@attrs.define(eq=False)
class CompiledPasses:
    """Runs rows through a compiled copy of the call, of one shape: fewer rows are filled up, the copies left out again.

    The first pass is made both ways. Where compiling fails, or gives something else, the model runs as it is, and the
    log says why.

    Args:
        runner: the model; it is not changed.
        compiled: True, or the mode.
    """

    runner: Runner
    compiled: Compiled
    _fast: Runner | None = attrs.field(default=None, init=False)
    _refused: bool = attrs.field(default=False, init=False)
    _rows: int = attrs.field(default=0, init=False)

    def run(self, images: Tensor, index: Tensor) -> Tensor:
        """Return the output `(M, N, …)` for `(M, C, *S)`, as `Runner.run`."""
        if self._refused:
            return self.runner.run(images, index)
        if self._fast is not None:
            return self._run(self._fast, images, index)
        plain = self.runner.run(images, index)
        reason = self._prove(images, index, plain)
        if reason:
            self._refused = True
            _log.warning("not compiled: %s", reason)
        return plain

    def _prove(self, images: Tensor, index: Tensor, plain: Tensor) -> str:
        """Compile, and return what speaks against it, or an empty string."""
        mode = self.compiled if isinstance(self.compiled, str) else None
        try:
            model: Any = torch.compile(self.runner.model, mode=mode, dynamic=False)
            fast = attrs.evolve(self.runner, model=model)
            made = self._run(fast, images, index)
        except torch.OutOfMemoryError:
            raise
        except Exception as err:
            return f"{type(err).__name__}: {first_line(err)}"
        largest, error = plain.abs().max(), (made - plain).abs().max()
        if not error <= self.runner.tolerance(plain, _TOLERANCE) * largest:
            return f"the compiled model's output differs by {float(error):.1e}"
        self._fast = fast
        return ""

    def _run(self, fast: Runner, images: Tensor, index: Tensor) -> Tensor:
        self._rows = max(self._rows, len(images))
        missing = self._rows - len(images)
        if missing:
            images = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
            index = torch.cat([index, index[-1:].expand(missing)])
        try:
            with torch.compiler.set_stance("default"):
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                output = fast.run(images, index)
        except torch.OutOfMemoryError:
            self._rows = 0  # the next attempt has fewer
            raise
        return output[: self._rows - missing]
