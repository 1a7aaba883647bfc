"""The one place where a model is called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from medviz.model_arguments import ModelArguments
from medviz.probe import models, outputs
from medviz.probe.copies import copy_on_write
from medviz.probe.failures import clearer
from medviz.probe.gradients import gradients
from medviz.targets import FixedTarget
from medviz.tensors import wide

_HALF = 2e-2  # of the largest output


@attrs.frozen(eq=False)
class Runner:
    """A model with everything that is the same in each of its calls.

    Args:
        model: the bare network, eval mode and frozen.
        device: where images go.
        dtype: the precision that they are cast to.
        arguments: what the model takes beside the image.
        choose: which part of its output is meant.
        autocast: what the model's operations are cast to, or None.
        begin: called before each pass, where no hooks of the pass are in place yet.
    """

    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    arguments: ModelArguments
    choose: Callable[[Any], Tensor] | str | int | None = None
    autocast: torch.dtype | None = None
    begin: Callable[..., None] = lambda again=False: None

    def run(
        self,
        images: Tensor,
        index: Tensor,
        copy: bool = True,
        around: contextlib.AbstractContextManager[object] | None = None,
    ) -> Tensor:
        """Return the output `(M, N, …)` for `(M, C, *S)`; row i gets the model arguments of image `index[i]`.

        Args:
            images: the rows; a copy of them goes in, for a model may work in place on its input.
            index: `(M,)`.
            copy: False: the rows themselves go in.
            around: what the call of the model, and the choice of a part of its output, are inside of.

        Raises:
            ValueError: the output has not one row for each image, or is no floating tensor.
        """
        moved = images.to(self.device, self.dtype)
        images = copy_on_write(moved) if copy and moved is images else moved
        args, kwargs = self.arguments.at(index, self.device)
        with self.casting(), around or contextlib.nullcontext():
            output = outputs.select(self._call(images, *args, **kwargs), self.choose)
        if not output.requires_grad:
            output = output.clone()  # the next pass of an engine or a CUDA graph may write over what this one returns
        if len(output) != len(images):
            raise ValueError(
                f"the model's output {tuple(output.shape)} does not have a row for each of {len(images)} images; "
                "choose another part of it with `output`, or mark model arguments with medviz.per_image()."
            )
        return output

    def gradient(self, images: Tensor, index: Tensor, target: FixedTarget) -> Tensor:
        """Return the gradient of each row's score with respect to the row, `(M, C, *S)`, float32 or float64.

        Args:
            images, index: as `run`.
            target: what the score is of.

        Raises:
            ValueError: as `run`; or the score does not depend on the rows.
        """
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            output = self.run(copy_on_write(leaf), index, copy=False)
            scores = target.score(wide(output), index)
            found = gradients(scores, [leaf], self.is_half(output)) if scores.requires_grad else [None]
        if found[0] is None:
            raise ValueError(f"the score {target.label!r} does not depend on the image.")
        return found[0]

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.model(*args, **kwargs)
        except (TypeError, ValueError, RuntimeError) as err:
            reason = clearer(err, self.model, args[0], self.arguments)
            if reason is None:
                raise
            raise reason from err

    def casting(self) -> contextlib.AbstractContextManager[object]:
        """Cast the model's operations as `autocast` says, during the block."""
        return models.casting(self.device, self.autocast)

    def tolerance(self, output: Tensor, each: Mapping[torch.dtype, float]) -> float:
        """Return how much of its largest value an output may differ by: the least precise step on its way decides.

        Args:
            output: as `run` returns it.
            each: how much for each precision, but half precision.
        """
        steps = (output.dtype, self.dtype, self.autocast)
        return max(each.get(dtype, _HALF) for dtype in steps if dtype is not None)

    def is_half(self, *tensors: Tensor) -> bool:
        """Return whether float16 values are on the way to or from `tensors`."""
        return torch.float16 in (self.dtype, self.autocast, *(t.dtype for t in tensors))
