"""Colours by look-up table: one array operation for a whole volume, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medviz.errors import suggest

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

_QUALITATIVE = 32  # matplotlib's lists of unrelated colours have up to 20 entries, its gradients 256 or more
_SHADES = 64


def get_cmap(cmap: str | Colormap) -> Colormap:
    """Return matplotlib's colour map of that name; a colour map stays what it is.

    Raises:
        ValueError: no such colour map; near misses are named.
        TypeError: neither a name nor a colour map.
    """
    import matplotlib
    from matplotlib.colors import Colormap

    if isinstance(cmap, Colormap):
        return cmap
    if not isinstance(cmap, str):
        raise TypeError(f"`cmap` is the name of a matplotlib colour map; got {cmap!r}.")
    if cmap not in matplotlib.colormaps:
        raise ValueError(f"`cmap` {cmap!r} is not a colour map of matplotlib{suggest(cmap, matplotlib.colormaps)}")
    return matplotlib.colormaps[cmap]


def colour_table(cmap: str | Colormap) -> Tensor:
    """Return every entry of a colour map, `(N, 3)` float32 in [0, 1]; N is 256 for nearly all of them."""
    colours = get_cmap(cmap)
    reds_greens_blues = np.ascontiguousarray(colours(np.arange(colours.N))[:, :3].T, np.float32)
    return torch.from_numpy(reds_greens_blues).T  # in memory colour by colour, the order that they are looked up in


def colour(values: Tensor, table: Tensor) -> Tensor:
    """Return the colours `(3, *S)` of `values` `(*S)` in [0, 1]; what lies outside gets the first or last entry."""
    count = len(table)
    index = values.mul(count).clamp_(0, count - 1).int().flatten()
    return table.to(values.device).T.index_select(1, index).view(3, *values.shape)


def colour_labels(labels: Tensor, table: Tensor) -> Tensor:
    """Return the colours `(3, *S)` of integer `labels` `(*S)`.

    The colour depends on the label's number alone, and no two labels share one while the map has distinct colours
    left (256 for most); then they come again in darker shades. Label 1 has the last entry of a gradient; those that
    follow are spread over it by halving (2: the middle, 3 and 4: the quarters, …), so that neighbours differ. A list
    of unrelated colours is taken in its own order.
    """
    palette = _palette(table).to(labels.device)
    position = labels.long() - 1
    turn = position.div(len(palette), rounding_mode="floor").remainder(_SHADES)
    shade = 1 - 0.6 * _halving(_SHADES).to(labels.device)[turn]
    return (palette[position.remainder(len(palette))].movedim(-1, 0) * shade).float()


def _palette(table: Tensor) -> Tensor:
    """The distinct entries of a table, far apart ones first."""
    _, first = np.unique(table.numpy(), axis=0, return_index=True)
    distinct = table[np.sort(first)]
    if len(distinct) <= _QUALITATIVE:
        return distinct
    return distinct.flip(0)[_halving(len(distinct)).argsort().argsort()]


def _halving(count: int) -> Tensor:
    """The first `count` terms of van der Corput's sequence in base 2: 0, 1/2, 1/4, 3/4, 1/8, …"""
    bits = max(1, (count - 1).bit_length())
    return torch.tensor([int(f"{i:0{bits}b}"[::-1], 2) / 2**bits for i in range(count)], device="cpu")


def is_integer(array: Any) -> bool:
    """Return whether a tensor holds integers or truth values: labels, not a heat map."""
    return not (array.is_floating_point() or array.is_complex())
