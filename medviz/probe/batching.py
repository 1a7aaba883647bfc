"""How many rows go through the model at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

_log = logging.getLogger("medviz")
_MOST = 64
_SHARE = 0.25  # of the free memory
_NO_MEMORY = ("can't allocate memory", "not enough memory")
_LIVE = 4  # outputs of the size of the largest that are alive at once: a block's input, its branches, its sum

BatchSize = int | Literal["auto"]


def check_batch_size(size: BatchSize) -> BatchSize:
    """Return `size`.

    Raises:
        ValueError: neither "auto" nor a positive int.
    """
    if size != "auto" and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"`batch_size` must be 'auto' or a positive int; got {size!r}.")
    return size


def in_batches(total: int, size: int, run: Callable[[slice], Tensor]) -> Iterator[Tensor]:
    """Yield what `run` returns for consecutive rows, at most `size` at once, halved where memory does not suffice.

    Only an allocator's error can be caught: where the system ends a process that takes too much, nothing can.
    """
    start = 0
    while start < total:
        rows = slice(start, min(start + size, total))
        result = _try(run, rows)
        if result is None:
            size = max(1, (rows.stop - rows.start) // 2)
            _log.info("out of memory with %d rows at once; going on with %d", rows.stop - rows.start, size)
            continue
        yield result
        start = rows.stop


def _try(run: Callable[[slice], Tensor], rows: slice) -> Tensor | None:
    """Return None where memory did not suffice; outside of the handler the failed pass is no longer alive."""
    try:
        return run(rows)
    except RuntimeError as err:
        if rows.stop - rows.start == 1 or not _out_of_memory(err):
            raise
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    return None


def _out_of_memory(err: RuntimeError) -> bool:
    return isinstance(err, torch.OutOfMemoryError) or any(text in str(err) for text in _NO_MEMORY)


def automatic(alive: int, device: torch.device) -> int:
    """Return how many rows fit a quarter of the free memory, where the tensors of one take `alive` bytes at once."""
    return max(1, min(_MOST, int(_SHARE * free_memory(device)) // max(1, alive)))


def alive(outputs: Sequence[int], graph: bool) -> int:
    """Return how much of the layers' `outputs` is alive at once: with a graph all, without one a few of the largest."""
    return sum(outputs) if graph else _LIVE * max(outputs)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free: on a CPU the smaller of the system's and the control group's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [_available(), _group_free("memory.max", "memory.current")]
    known = [value for value in free if value is not None]
    return min(known, default=1 << 30)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _group_free(limit: str, usage: str) -> int | None:
    try:
        path = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2].lstrip("/")
        folder = Path("/sys/fs/cgroup", path)
        return max(0, int((folder / limit).read_text()) - int((folder / usage).read_text()))
    except (OSError, ValueError):  # no such file system, or "max": no limit
        return None
