"""NumPy arrays."""

from __future__ import annotations

import tokenize
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
import torch

from medviz.hookspecs import Reader, hookimpl
from medviz.image import Image
from medviz.readers.values import as_float32, check_nan
from medviz.validators import one_of


@attrs.frozen(eq=False)
class Npy(Reader):
    """Read one `.npy` array of real numbers; pickled objects are never loaded. There is no affine.

    Args:
        channels: what the first axis is. "first": channels, `(C, H, W)` or `(C, D, H, W)`; "none": there are no
            channels, `(H, W)` or `(D, H, W)`, and an axis of length 1 is added. A 2-D array is `(H, W)` under both.
        nan: replaces NaN and infinite values; None: they are an error.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".npy",)

    channels: str = attrs.field(default="first", validator=one_of("first", "none"))
    nan: float | None = attrs.field(default=None, kw_only=True, validator=check_nan)

    @hookimpl
    def read(self, path: Path) -> Image:
        """Read one array.

        Raises:
            ValueError: not a whole `.npy` file of real numbers, or a number of axes that `channels` does not allow.
        """
        try:
            return Image(torch.from_numpy(self._data(path)), path=path)
        except MemoryError as err:
            raise ValueError(f"{str(path)!r} does not fit into memory: {err or 'it is full'}.") from err
        except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as err:
            raise ValueError(f"{str(path)!r} cannot be read as one .npy array of real numbers: {err}") from err

    def _data(self, path: Path) -> np.ndarray:  # (C, *S)
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        allowed = (2, 3) if self.channels == "none" else (2, 3, 4)
        if array.ndim not in allowed or not array.size:
            raise ValueError(
                f"its shape is {array.shape}; channels={self.channels!r} takes {' or '.join(map(str, allowed))} axes, "
                "not empty."
            )
        data = as_float32(array, self.nan)
        return data[None] if data.ndim == 2 or self.channels == "none" else data
