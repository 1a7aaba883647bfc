"""Take the quicker of two ways to the same results, where only a clock can tell which one that is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

_log = logging.getLogger("medviz")
_LEAST = 2.0  # seconds that are left, below which making the other way ready does not pay

Way = Callable[[slice], Tensor]


def is_timed(device: torch.device) -> bool:
    """Return whether a clock decides between whole and incremental passes on a device.

    On a CPU the work that is saved says it. An accelerator runs small pieces in the same time as large ones, so that it
    depends on the model, the device and the rows in one pass. Who asks PyTorch for deterministic algorithms wants the
    same in every run.
    """
    return device.type != "cpu" and not torch.are_deterministic_algorithms_enabled()


@attrs.define(eq=False)
class Quicker:
    """Runs rows, whole or incrementally, and goes on with the quicker way: from slices to results.

    The first two slices are run whole. Where much is left, the next two are run incrementally. Of each two the second
    is timed: the first looks for algorithms, and loads them. No result is thrown away.

    Args:
        rows: how many there are.
        whole: runs some of them.
        prepare: makes the other way ready, which gives the same; None: there is none.

    Attributes:
        incremental: which way is quicker; None: nothing was compared.
    """

    rows: int
    whole: Way
    prepare: Callable[[], Way | None]
    incremental: bool | None = attrs.field(default=None, init=False)
    _way: Way = attrs.field(default=attrs.Factory(lambda self: self.whole, takes_self=True), init=False)
    _settled: bool = attrs.field(default=False, init=False)
    _warm: bool = attrs.field(default=False, init=False)  # this way has run once
    _pace: float | None = attrs.field(default=None, init=False)  # of whole passes, in seconds for each row

    def __call__(self, some: slice) -> Tensor:
        """Return the results of some of the rows; whoever makes them waits for the device."""
        if self._settled:
            return self._way(some)
        begun = time.perf_counter()
        result = self._way(some)
        pace = (time.perf_counter() - begun) / len(result)
        if not self._warm:
            self._warm = True
        elif self._pace is None:
            self._go_on(pace, self.rows - some.stop)
        else:
            self._compare(pace, self._pace)
        return result

    def _go_on(self, pace: float, left: int) -> None:
        """Try the other way, or settle for whole passes."""
        if pace * left > _LEAST:
            other = self.prepare()
        else:
            other = None
            _log.info("whole passes, for the rest takes %.1f s", pace * left)
        self._pace, self._warm, self._settled = pace, False, other is None
        self._way = other or self.whole

    def _compare(self, incremental: float, whole: float) -> None:
        self._settled, self.incremental = True, incremental < whole
        if not self.incremental:
            _log.info("whole passes from here on: incremental ones take %.1f times as long here", incremental / whole)
            self._way = self.whole
