"""Where a network is to run, by name, with an error that says what is wrong with it."""

from __future__ import annotations

import torch

from medviz.errors import first_line


def as_device(device: torch.device | str) -> torch.device:
    """Return the device that a name such as "cuda:1" stands for, whether it is there or not.

    Raises:
        ValueError: PyTorch knows no such name.
    """
    reason = None
    try:
        found = torch.device(device)
        if not isinstance(device, str) or str(found) == device:  # "cuda:256" becomes "cuda:0"
            return torch.device("cpu") if found.type == "cpu" else found  # no tensor says "cpu:0"
    except (RuntimeError, TypeError) as err:
        reason = err
    raise ValueError(f"`device` {device!r} is none that PyTorch knows, such as cpu, cuda, cuda:1 or mps.") from reason


def usable(device: str) -> torch.device:
    """Return the device of this name; for "auto" a GPU of CUDA, or the CPU where there is none.

    "auto" takes no other accelerator: they lack some operations of 3-D networks.

    Raises:
        ValueError: PyTorch knows no such name, or cannot use the device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = as_device(device)
    try:
        torch.zeros((), device=found).item()
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as err:
        reason = first_line(err).partition(". ")[0].rstrip(".")  # what follows is for PyTorch's developers
        if any(said in reason for said in ("INTERNAL ASSERT", "Could not run", "meta tensors")):
            reason = "this build of PyTorch keeps no tensors there"
        raise ValueError(f"`device` {device!r} cannot be used here: {reason}; use cpu.") from err
    return found
