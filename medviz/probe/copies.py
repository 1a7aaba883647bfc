"""Copies that cost nothing until somebody writes."""

from __future__ import annotations

from torch import Tensor


def copy_on_write(tensor: Tensor) -> Tensor:
    """Return a copy that shares the memory of `tensor` until one of the two is written to, in whatever way.

    A model may work in place on what it is given, and seldom does; so the copy that protects the other seldom has to
    be made. PyTorch keeps watch over the memory itself: a write through `.data`, numpy or an extension counts too.
    Copied at once is what repeats its values or is a part of another tensor, and memory that is not PyTorch's own.
    """
    try:
        if tensor.untyped_storage().nbytes() == tensor.nbytes:
            return tensor._lazy_clone()
    except (AttributeError, RuntimeError):  # it is no public function, and takes no foreign memory
        pass
    return tensor.clone()
