"""Take the quicker of two ways to the same results, where only a clock can tell which one that is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator

import attrs
import torch
from torch import Tensor

from medviz.probe.batching import in_batches
from medviz.probe.failures import is_out_of_memory

_log = logging.getLogger("medviz")
_LEAST = 2.0  # seconds of whole passes, below which making the other way ready does not pay

Way = Callable[[slice], Tensor]


def is_timed(device: torch.device) -> bool:
    """Return whether a clock decides between whole and incremental passes on a device.

    On a CPU the work that is saved says it. An accelerator runs small pieces in the same time as large ones, so that it
    depends on the model, the device and the rows in one pass. Who asks PyTorch for deterministic algorithms wants the
    same in every run.
    """
    return device.type != "cpu" and not torch.are_deterministic_algorithms_enabled()


@attrs.define(eq=False)
class _Pace:
    """How long one way takes.

    Attributes:
        full: how many rows a slice has that counts.
        row: seconds for each row in the last of those slices; None: fewer than two were run, of which the first does
            not count, for it looks for algorithms and loads them.
        total: seconds of all slices.
    """

    full: int = attrs.field(default=0, init=False)
    row: float | None = attrs.field(default=None, init=False)
    total: float = attrs.field(default=0.0, init=False)
    _warm: bool = attrs.field(default=False, init=False)

    def timed(self, way: Way, some: slice, full: int) -> list[Tensor]:
        """Run some rows, in parts where memory does not hold them; `full` is how many there are unless few are left."""
        if full != self.full:
            self.full, self.row, self._warm = full, None, False
        begun = time.perf_counter()
        results = list(after(some.start, way, some.stop, full))
        took = time.perf_counter() - begun
        self.total += took
        if some.stop - some.start == full and len(results) == 1:
            self.row = took / full if self._warm else None
            self._warm = True
        return results


@attrs.define(eq=False)
class Quicker:
    """Finds out which way is quicker for rows of one kind, whole passes or incremental ones, while both give results.

    Attributes:
        incremental: which one it is; None: that is not known yet.
    """

    incremental: bool | None = attrs.field(default=None, init=False)
    _whole: _Pace = attrs.field(factory=_Pace, init=False)
    _other: _Pace = attrs.field(factory=_Pace, init=False)
    _ready: float = attrs.field(default=0.0, init=False)  # seconds that it takes to make the other way ready
    _said: bool = attrs.field(default=False, init=False)

    def first(
        self, rows: int, full: int, whole: Way, prepare: Callable[[], Way | None]
    ) -> Generator[Tensor, None, int]:
        """Yield the results of the first rows, slice by slice, until it is known or none are left; return how many.

        Slices are run whole until the other way is worth trying: once those that were run and those that are left take
        long enough together. Of both ways slices of one length are compared.

        Args:
            rows: how many there are.
            full: how many one pass takes.
            whole: runs some of them, and waits for the device.
            prepare: makes the other way ready, which gives the same; None: there is none.
        """
        done, full, other = 0, min(full, rows), None
        while done < rows and self.incremental is None:
            if other is None and self._is_worth_trying(rows - done, full):
                begun = time.perf_counter()
                other = prepare()
                self._ready = max(self._ready, time.perf_counter() - begun)
                if other is None:
                    return done
            some = slice(done, min(done + full, rows))
            results = [] if other is None else self._try(other, some, full)
            if not results:
                results = self._whole.timed(whole, some, full)
                full = min(full, len(results[0]))
            yield from results
            done = some.stop
            self._decide(rows)
        if self.incremental is None and other is None and not self._said:
            self._said = True
            _log.info("whole passes, for they take %.1f s", self._whole.total)
        return done

    def _is_worth_trying(self, left: int, full: int) -> bool:
        known = self._whole.row is not None and self._whole.full == full
        return known and self._whole.total + (self._whole.row or 0.0) * left > _LEAST

    def _try(self, other: Way, some: slice, full: int) -> list[Tensor]:
        """Run some rows in the other way; an empty list: memory does not suffice for it."""
        try:
            return self._other.timed(other, some, full)
        except RuntimeError as err:
            if not is_out_of_memory(err):
                raise
            _log.info("whole passes from here on: memory does not suffice for incremental ones")
            self.incremental = False
            return []

    def _decide(self, rows: int) -> None:
        if self._other.row is None or self._whole.row is None or self._other.full != self._whole.full:
            return
        times = (self._other.row + self._ready / rows) / self._whole.row
        self.incremental = times < 1
        if not self.incremental:
            _log.info("whole passes from here on: incremental ones take %.1f times as long here", times)


def after(done: int, way: Way, rows: int, size: int) -> Iterator[Tensor]:
    """Yield what `way` makes of the rows after the first `done`, at most `size` at once."""
    return in_batches(rows - done, size, lambda some: way(slice(done + some.start, done + some.stop)))
