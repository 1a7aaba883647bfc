"""What the parameters of plugins may be, with errors that name the parameter."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import attrs

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def number(
    *, above: float = -math.inf, least: float = -math.inf, below: float = math.inf, most: float = math.inf
) -> Validator:
    """Return a validator of finite numbers: > `above`, ≥ `least`, < `below` and ≤ `most`."""
    limits = [(">", above), ("≥", least), ("<", below), ("≤", most)]
    text = " and ".join(f"{sign} {limit:g}" for sign, limit in limits if math.isfinite(limit))

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        good = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
        if not good or not (above < value < below and least <= value <= most):
            raise ValueError(f"`{attribute.name}` is a finite number{' ' if text else ''}{text}; got {value!r}.")

    return check


def whole(least: int, below: int | None = None) -> Validator:
    """Return a validator of ints ≥ `least` and < `below`."""
    text = f"≥ {least}" + (f" and < {below}" if below is not None else "")

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        good = isinstance(value, Integral) and not isinstance(value, bool)
        if not good or value < least or (below is not None and value >= below):
            raise ValueError(f"`{attribute.name}` is an int {text}; got {value!r}.")

    return check


def of_type(kind: type) -> Validator:
    """Return a validator of bool, int or str."""
    expected = {bool: "True or False", int: "an int", str: "a string"}[kind]

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"`{attribute.name}` is {expected}; got {value!r}.")

    return check


def one_of(*allowed: str) -> Validator:
    """Return a validator for a field that takes one of a few words."""

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in allowed:
            raise ValueError(f"`{attribute.name}` is {' or '.join(map(repr, allowed))}; got {value!r}.")

    return check


def as_python(value: Any) -> Any:
    """Return NumPy's numbers as Python's, also inside of lists and tuples; anything else stays what it is."""
    if type(value) in (list, tuple):
        made = type(value)(map(as_python, value))
        return value if all(map(operator.is_, made, value)) else made
    numpy = sys.modules.get("numpy")  # where nobody has imported it, there is no number of it
    numbers = () if numpy is None else (numpy.bool_, numpy.integer, numpy.floating)
    return value.item() if isinstance(value, numbers) and value.dtype.kind != "m" else value  # a duration is none


SEED = whole(0, 1 << 32)  # torch's generator on the CPU looks at 32 bits
