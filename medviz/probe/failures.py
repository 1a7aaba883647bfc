"""What the error of a pass means to the user: PyTorch's own message names a kernel and not what to do."""

from __future__ import annotations

import re
import traceback

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from medviz.model_arguments import ModelArguments

_NO_MEMORY = ("can't allocate memory", "not enough memory")
_CHANNELS = re.compile(r"expected input\[(?P<shape>[\d, ]+)\] to have (?P<wanted>\d+) channels")


def is_out_of_memory(err: Exception) -> bool:
    """Return whether an error says that memory did not suffice."""
    return isinstance(err, torch.OutOfMemoryError) or any(text in str(err) for text in _NO_MEMORY)


def clearer(err: Exception, model: nn.Module, images: Tensor, arguments: ModelArguments) -> Exception | None:
    """Return an error that says what to do about `err`, or None where nothing better is known.

    Args:
        err: raised by `model` when it was given `images`.
        model: the network.
        images: `(M, C, *S)`.
        arguments: what else it was given.
    """
    if isinstance(err, TypeError):
        if f"{type(model).__name__}.forward() missing" not in str(err):
            return None
        return TypeError(f"{err}; hand over what the model takes beside the image with `model_args` or `model_kwargs`.")
    if "Inference tensors cannot be saved for backward" in str(err):
        return ValueError(
            "the model was built under torch.inference_mode(), so that no gradient can pass it; build and load it "
            "outside, or use a method that needs no gradient."
        )
    if is_out_of_memory(err):
        return None
    unsuited = _unsuited_axes(err, model, images) or _unsuited_channels(err, images)
    unsuited = unsuited or (None if _is_ours(err) else arguments.unmarked())
    return None if unsuited is None else ValueError(f"{unsuited} The model's own error: {err}")


def _unsuited_axes(err: Exception, model: nn.Module, images: Tensor) -> str | None:
    """Say that all convolutions of a model have so many spatial axes, and the images another number."""
    axes = {len(module.kernel_size) for module in model.modules() if isinstance(module, _ConvNd)}
    given = images.ndim - 2
    if axes not in ({2}, {3}) or given in axes or _is_ours(err):
        return None
    says = (
        f"the model's convolutions are {max(axes)}-D, and `image` {tuple(images.shape)} is a batch of {given}-D images."
    )
    if given == 3:
        return f"{says} Explain a slice, such as image[:, :, {images.shape[2] // 2}]."
    return f"{says} Add a missing batch axis with image[None], or a missing channel axis with image[:, None]."


def _is_ours(err: Exception) -> bool:
    """Return whether medviz has raised an error, in a hook for instance."""
    frames = list(traceback.walk_tb(err.__traceback__))
    return bool(frames) and str(frames[-1][0].f_globals.get("__name__")).partition(".")[0] == "medviz"


def _unsuited_channels(err: Exception, images: Tensor) -> str | None:
    """Say that a convolution wants another number of channels than the images have, where it got them as they are."""
    found = _CHANNELS.search(str(err))
    shape = list(images.shape)
    if found is None or found["shape"] != str(shape)[1:-1]:
        return None
    wanted = int(found["wanted"])
    says = (
        f"the model takes images of {wanted} channel{'s' * (wanted != 1)}, and `image` {tuple(shape)} has {shape[1]}."
    )
    return f"{says} Put the channels first with image.movedim(-1, 1)." if shape[-1] == wanted else says
