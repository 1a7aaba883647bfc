"""How many rows go through the model at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medviz.probe.failures import is_out_of_memory
from medviz.probe.mixing import has_norms_over_rows, mixes_rows
from medviz.probe.rolling import RollingCut
from medviz.probe.runner import Runner
from medviz.validators import as_python

_log = logging.getLogger("medviz")
_MOST = 64  # rows at once
_MOST_ON_CPU = 8  # more of them leave the cache, and take up to twice as long each
_LEAST_ON_CPU = 2  # PyTorch runs some convolutions of a single row five times as slowly as those of two
_HEAP = 2**25  # bytes: the C library fetches anything larger from the system anew each time, page by page
_SHARE = 0.25  # of the free memory
_LIVE = 4  # outputs of the size of the largest that are alive at once: a block's input, its branches, its sum

BatchSize = int | Literal["auto"]


def check_batch_size(size: BatchSize) -> BatchSize:
    """Return `size` as a Python int, or "auto".

    Raises:
        ValueError: neither "auto" nor a positive int.
    """
    size = as_python(size)
    if size != "auto" and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"`batch_size` must be 'auto' or a positive int; got {size!r}.")
    return size


def together(images: int, size: BatchSize, model: nn.Module) -> list[Tensor]:
    """Return the positions of the images that share a clean pass: all, unless `size` or batch-norm keeps them apart."""
    index = torch.arange(images, device="cpu")
    if images > 1 and has_norms_over_rows(model):
        return apart([index])
    return [*torch.split(index, size if isinstance(size, int) else images)]


def apart(positions: Sequence[Tensor]) -> list[Tensor]:
    """Return the positions of images each by itself."""
    return [*torch.split(torch.cat([*positions]), 1)]


@attrs.define(eq=False)
class Batches:
    """Sends rows through a model, a bounded number at once.

    Args:
        runner: the model.
        images: the clean ones, `(B, C, *S)`, the first of which is measured with.
        size: the most rows at once, or "auto": what a quarter of the free memory holds.
        progress: show a bar, where stderr is a terminal.

    Attributes:
        mixed: whether rows change each other's output, and are run one by one; None: nobody needed to know it.
    """

    runner: Runner
    images: Tensor
    size: BatchSize
    progress: bool
    _outputs: list[int] = attrs.field(factory=list, init=False)
    mixed: bool | None = attrs.field(default=None, init=False)

    def each(
        self, rows: int, run: Callable[[slice], Tensor], graph: bool, row_bytes: int | None = None
    ) -> Iterator[Tensor]:
        """Yield what `run` returns for consecutive slices of `rows` rows.

        Args:
            rows: how many there are.
            run: makes the pass.
            graph: all activations stay.
            row_bytes: the size of the largest tensor of a row, where it is not that of the model's largest output.

        Raises:
            ValueError: there are none.
        """
        if not rows:
            raise ValueError("`inputs` has no rows.")
        if len(self.images) > 1:
            self._are_mixed()  # their clean pass was one
        size = self.rows_at_once(graph, row_bytes) if rows > 1 else 1
        yield from self.with_bar(rows, size, in_batches(rows, size, run))

    def with_bar(self, rows: int, size: int, results: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the results of `rows` rows, under a bar where they need several passes of `size`."""
        with self.bar(rows if rows > size else 0) as bar:
            for result in results:
                bar.update(len(result))
                yield result

    def bar(self, rows: int) -> tqdm[Any]:
        """Return a bar for so many rows; silent where nobody asked for it, for none, and without a terminal."""
        return tqdm(total=rows, disable=None if self.progress and rows else True, unit="row", leave=False)

    def rows_at_once(self, graph: bool, row_bytes: int | None = None) -> int:
        """Return how many rows one pass takes: arguments as for `each`."""
        most = self._that_fit(graph, row_bytes)
        return 1 if most > 1 and self._are_mixed() else most

    def _that_fit(self, graph: bool, row_bytes: int | None) -> int:
        device = self.images.device
        if isinstance(self.size, int):
            return self.size if row_bytes is None else min(self.size, quickest(row_bytes, device, graph))
        if row_bytes is None:
            self._outputs = self._outputs or self._measure()
        return automatic(self._outputs if row_bytes is None else [row_bytes], device, graph)

    def _are_mixed(self) -> bool:
        if self.mixed is None:
            self.mixed = mixes_rows(self.runner, self.images)
        return self.mixed

    def _measure(self) -> list[int]:
        """The size of what each layer returns for one image, in bytes."""
        self.runner.begin()
        one = self.images[:1]
        rolling = RollingCut(self.runner.model, one, starts=None)
        with rolling.hooks():
            self.runner.run(one, torch.zeros(1, dtype=torch.long, device=one.device))
        return [seen.elements * one.element_size() for seen in rolling.seen] or [16 * one.nbytes]


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
        if rows.stop - rows.start == 1 or not is_out_of_memory(err):
            raise
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    return None


def automatic(outputs: Sequence[int], device: torch.device, graph: bool) -> int:
    """Return how many rows are run at once where the layers' outputs for one are so large: they fit the free memory.

    Args:
        outputs: the size of each in bytes. With a `graph` all are alive at once, without one a few of the largest.
        device: what they are on.
        graph: all activations stay.
    """
    alive = sum(outputs) if graph else _LIVE * max(outputs)
    return max(1, min(quickest(max(outputs), device, graph), int(_SHARE * free_memory(device)) // max(1, alive)))


def quickest(largest: int, device: torch.device, graph: bool) -> int:
    """Return with how many rows at once each takes least time, where the largest tensor of one takes so many bytes."""
    if device.type != "cpu":
        return _MOST
    return _LEAST_ON_CPU if graph else max(_LEAST_ON_CPU, min(_MOST_ON_CPU, _HEAP // max(1, largest)))


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
