"""What a model wants beside the image: the same for every row, or a part of it for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor


@attrs.frozen(eq=False)
class PerImage:
    """A model argument of which every image has its own row; made by `per_image`."""

    rows: Tensor


def per_image(rows: Tensor) -> PerImage:
    """Mark a model argument `(B, …)` of which row i belongs to image i, so that perturbed copies get the right row.

    Unmarked arguments are handed to the model as they are, however many rows it is given.
    """
    if not isinstance(rows, Tensor) or rows.ndim == 0:
        raise TypeError(f"per_image() takes a tensor (B, …); got {type(rows).__name__}.")
    return PerImage(rows)


@attrs.frozen(eq=False)
class ModelArguments:
    """The positional and keyword arguments after the image."""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = attrs.field(factory=dict)

    def check(self, images: int) -> None:
        """Raise a `ValueError` where an argument marked `per_image` does not have a row for each image."""
        for name, value in [*enumerate(self.args), *self.kwargs.items()]:
            if isinstance(value, PerImage) and len(value.rows) != images:
                raise ValueError(f"the model argument {name!r} has {len(value.rows)} rows for {images} images.")

    def at(self, index: Tensor, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments for the rows that belong to the images `index` (M,), copied: a model may change them."""
        rows = index.cpu()

        def one(value: Any) -> Any:
            if isinstance(value, PerImage):
                return value.rows.detach()[rows.to(value.rows.device)].to(device)
            return value.detach().to(device, copy=True) if isinstance(value, Tensor) else value

        return [one(value) for value in self.args], {name: one(value) for name, value in self.kwargs.items()}

    def take(self, index: Tensor) -> ModelArguments:
        """Return the arguments of some of the images."""

        def one(value: Any) -> Any:
            return PerImage(value.rows[index.to(value.rows.device)]) if isinstance(value, PerImage) else value

        return ModelArguments([one(v) for v in self.args], {name: one(v) for name, v in self.kwargs.items()})
