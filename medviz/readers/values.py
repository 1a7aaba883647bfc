"""What every reader of numbers does with them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

_log = logging.getLogger("medviz")


def check_nan(plugin: Any, field: Any, value: Any) -> None:
    """Validate a `nan` field: None, or the finite number that replaces what is not a number.

    Raises:
        TypeError: not a number.
        ValueError: not finite.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{field.name}` is {value!r}; expected None or the number that replaces NaN.")
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise ValueError(f"`{field.name}` is {value!r}; expected a finite number that float32 can hold.")


def as_float32(array: np.ndarray, nan: float | None) -> np.ndarray:
    """Return a copy of `array` as native, finite float32.

    Args:
        array: real numbers of any width and byte order.
        nan: what replaces NaN and infinite values; None: they are an error.

    Raises:
        ValueError: values that are not real numbers, or not finite as float32.
    """
    if array.dtype.kind not in "biuf":
        raise ValueError(f"it holds {array.dtype}; expected real numbers.")
    with np.errstate(over="ignore"):
        data = np.array(array, dtype=np.float32, order="C")
    bad = ~np.isfinite(data)
    if count := int(bad.sum()):
        if nan is None:
            raise ValueError(
                f"{count} of its {data.size} values are NaN, infinite or too large for float32; "
                "read it with nan=0 to replace them."
            )
        _log.info("%d of %d values are not finite; they were replaced by %g.", count, data.size, nan)
        data[bad] = nan
    return data
