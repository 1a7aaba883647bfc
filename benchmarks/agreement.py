"""What does not give the same result is not timed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class DisagreementError(ValueError):
    """Two ways of doing the same do not give the same, so that their times cannot be compared."""


def error(made: Tensor, expected: Tensor) -> float:
    """Return max|a - b| / max|b|.

    Raises:
        DisagreementError: other shapes, values that are not finite, or nothing but zeros, which proves nothing.
    """
    if made.shape != expected.shape:
        raise DisagreementError(f"the shapes differ: {tuple(made.shape)} and {tuple(expected.shape)}.")
    made, expected = made.detach().cpu().double(), expected.detach().cpu().double()
    if not (torch.isfinite(made).all() and torch.isfinite(expected).all()):
        raise DisagreementError("there are values that are not finite.")
    largest = float(expected.abs().max())
    if largest == 0:
        raise DisagreementError("the expected result is zero everywhere, which proves nothing; choose another case.")
    return float((made - expected).abs().max()) / largest


def agree(results: Mapping[str, Tensor], tolerance: float, scaled: bool = False) -> float:
    """Return the largest error of the first result against each of the others.

    Args:
        results: by name; the first is medviz's.
        tolerance: of the error, as a fraction of the largest value.
        scaled: divide each by its largest value before, where peers differ in a constant factor.

    Raises:
        DisagreementError: the error is larger, or cannot be taken; the message names who differs.
    """
    (first, mine), *others = results.items()
    worst = 0.0
    for name, theirs in others:
        try:
            pair = (_scaled(mine), _scaled(theirs)) if scaled else (mine, theirs)
            found = error(*pair)
        except DisagreementError as err:
            raise DisagreementError(f"{first} and {name}: {err}") from err
        if found > tolerance:
            raise DisagreementError(
                f"{first} and {name} differ by {found:.1e} of the largest value, more than {tolerance:.0e}."
            )
        worst = max(worst, found)
    return worst


def said(found: float) -> str:
    """Return an error as it stands in the table."""
    return f"agree to {found:.0e}" if found else "agree to the last bit"


def _scaled(values: Tensor) -> Tensor:
    largest = values.abs().max()
    return values / largest if largest > 0 else values
