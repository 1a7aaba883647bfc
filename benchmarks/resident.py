"""How much memory one call takes beyond what was taken before it."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""glibc gives freed memory back at once; what it keeps otherwise differs from run to run by more than a call takes."""


def extra(run: Callable[[], Any], device: str = "cpu") -> float:
    """Return the extra memory of one call in MB of 10⁶ bytes, its result included.

    On the CPU: the peak of the resident memory less what was resident before. On an accelerator: the same of what its
    allocator has handed out.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = run()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        resettable = _reset_peak()
        before = _status("VmRSS")
        kept = run()
        peak = _status("VmHWM") if resettable else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del kept
    return (peak - before) / 1e6


def _status(key: str) -> int:
    """Return a value of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _reset_peak() -> bool:
    """Forget the peak; False where that is not permitted, as in some containers: then it is the process's own."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True
