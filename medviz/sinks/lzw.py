"""The pixels of a GIF by Pillow's encoder, on several cores where a movie is long enough."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import numpy as np

BITS = 8
_MOST_WORKERS = 8
# no helper of that name or form in this Pillow; no room for a file; no more threads: then one after another
_IN_THE_WAY = (AttributeError, TypeError, OSError, RuntimeError)
_WORTH = 1 << 18  # pixels for each worker: fewer are encoded before it has begun


def compressed(regions: Sequence[np.ndarray]) -> list[bytes | memoryview]:
    """Return the data blocks of each region of palette indices, `(h, w)` uint8, without the empty one that ends them.

    The sizes and contents are those of `Image.tobytes`, whatever the number of cores.
    """
    workers = min(_MOST_WORKERS, _cores(), sum(region.size for region in regions) // _WORTH)
    if workers > 1:
        bounds = np.linspace(0, len(regions), workers + 1).round().astype(int)
        parts = [regions[start:stop] for start, stop in itertools.pairwise(bounds)]
        with contextlib.suppress(*_IN_THE_WAY), ThreadPoolExecutor(workers) as pool:
            return [block for blocks in pool.map(_by_file, parts) for block in blocks]
    return [_picture(region).tobytes("gif", "L", BITS) for region in regions]


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _by_file(regions: Sequence[np.ndarray]) -> list[memoryview]:
    """Return the same, through a file: only then does Pillow let other threads run meanwhile."""
    from PIL import ImageFile

    save: Any = ImageFile._save  # what every format of Pillow writes its pixels with; it has no public name
    ends = [0]
    with _scratch() as file:
        for region in regions:
            save(_picture(region), file, [("gif", (0, 0, *region.shape[::-1]), 0, "L")])
            ends.append(file.tell())
        file.write(b";")  # Pillow does not see that a write was cut short, but then there is no room for one byte more
        file.seek(0)
        data = memoryview(file.read())
    return [data[start:stop] for start, stop in itertools.pairwise(ends)]


def _picture(region: np.ndarray) -> Any:
    from PIL import Image

    return Image.frombuffer("L", region.shape[::-1], np.ascontiguousarray(region), "raw", "L", 0, 1)


def _scratch() -> IO[bytes]:
    """Return an unnamed file, in memory where the system has those."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("medviz"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
