"""What a model wants beside the image: the same for every row, or a part of it for each image."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
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
    """The positional and keyword arguments after the image, for so many images.

    What lies in lists, tuples and dicts is treated like what does not.

    Args:
        args: the positional ones.
        kwargs: the others.
        images: how many images there are.
        whole: how many there are in the whole batch, of which these are a part.
    """

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    images: int = 1
    whole: int = 1

    def of(self, images: int) -> ModelArguments:
        """Return them for so many images.

        Raises:
            ValueError: an argument marked `per_image` does not have a row for each.
        """

        def one(name: Any, value: Any) -> Any:
            if isinstance(value, PerImage) and len(value.rows) != images:
                raise ValueError(f"the model argument {name!r} has {len(value.rows)} rows for {images} images.")
            return value

        return attrs.evolve(self._each(one), images=images, whole=max(self.whole, images))

    def unmarked(self) -> str | None:
        """Say which argument has a row for each image of the whole batch, where these are a part of it."""
        found: list[Any] = []

        def one(name: Any, value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim and len(value) == self.whole:
                found.append(name)
            return value

        if self.whole > self.images:
            self._each(one)
        if not found:
            return None
        return (
            f"the model argument {found[0]!r} has {self.whole} rows, and {self.images} of {self.whole} images are in "
            "this pass; if each image has a row of its own, mark it: medviz.per_image(…)."
        )

    def at(self, index: Tensor, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments for the rows that belong to the images `index` (M,), copied: a model may change them.

        Raises:
            ValueError: an argument that is not marked has a row for each image, and these rows are other copies of
                them: the model would take the wrong rows together without a word.
        """
        if not self.args and not self.kwargs:
            return [], {}  # nothing to wait for a GPU for
        rows = index.cpu()
        in_order = rows.tolist() == list(range(self.images))

        def one(name: Any, value: Any) -> Any:
            if isinstance(value, PerImage):
                return value.rows.detach()[rows.to(value.rows.device)].to(device)
            if not isinstance(value, Tensor):
                return value
            if not in_order and value.ndim and 1 < self.images == len(value) == len(rows):
                raise ValueError(
                    f"the model argument {name!r} has as many rows as there are images, {self.images}, and perturbed "
                    "copies of them would get the wrong ones; mark it: medviz.per_image(…). If it is the same for all "
                    f"images, say so by another `batch_size` than {self.images}."
                )
            return value.detach().to(device, copy=True)

        made = self._each(one)
        return list(made.args), dict(made.kwargs)

    def take(self, index: Tensor) -> ModelArguments:
        """Return the arguments of some of the images."""

        def one(name: Any, value: Any) -> Any:
            return PerImage(value.rows[index.to(value.rows.device)]) if isinstance(value, PerImage) else value

        return attrs.evolve(self._each(one), images=len(index))

    def _each(self, one: Callable[[Any, Any], Any]) -> ModelArguments:
        """Return them with `one(name, value)` in the place of each value."""
        args = [_mapped(functools.partial(one, i), value) for i, value in enumerate(self.args)]
        kwargs = {name: _mapped(functools.partial(one, name), value) for name, value in self.kwargs.items()}
        return attrs.evolve(self, args=args, kwargs=kwargs)


def _mapped(one: Callable[[Any], Any], value: Any) -> Any:
    """Return `value` with all that it holds replaced by what `one` makes of it, in new lists, tuples and dicts."""
    if type(value) is dict:
        return {key: _mapped(one, item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(one, item) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(one, item) for item in value))
    return one(value)
