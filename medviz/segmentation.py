"""The target of a segmentation network: a channel, somewhere."""

from __future__ import annotations

import copy
import logging
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from medviz.targets import FixedTarget, Target, check_classes
from medviz.tensors import as_tensor, plain
from medviz.validators import as_python, of_type

_log = logging.getLogger("medviz")
# what PyTorch computes everything with; it knows other numbers in part, such as unsigned integers of 16 bits
_KNOWN = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64)


def _as_mask(mask: Any) -> Any:
    if mask is None or (isinstance(mask, str) and mask in ("predicted", "positive")):
        return mask
    if isinstance(mask, str) or not (isinstance(mask, Tensor) or hasattr(mask, "__array__")):
        raise TypeError(f"`mask` is None, 'predicted', 'positive' or a tensor; got {mask!r}.")
    weights = plain(as_tensor(mask)).detach()
    if weights.is_nested or weights.layout != torch.strided or weights.is_complex() or weights.is_meta:
        raise TypeError(f"`mask` is {weights.dtype}, {weights.layout}, on {weights.device}; expected real weights.")
    known = weights if weights.dtype in _KNOWN else weights.float()
    if not torch.isfinite(known).all() or (known < 0).any():
        raise ValueError("`mask` holds weights that are negative, NaN or infinite.")
    return weights


@attrs.frozen(eq=False)
class SegmentationTarget:
    """The mean logit of one channel of a segmentation output `(B, N, *S)` over a mask.

    Args:
        channel: the class that is explained.
        mask: None: everywhere. "predicted": where the clean output gives `channel` (argmax over the channels; with a
            single channel, a logit above 0). "positive": where the channel's own logit is above 0, for networks whose
            channels are answers of their own, as with a sigmoid for each. A tensor that broadcasts to `(B, *S)` or
            `(B, 1, *S)`: its weights, ≥ 0.
    """

    channel: int = attrs.field(converter=as_python, validator=of_type(int))
    mask: Tensor | Literal["predicted", "positive"] | None = attrs.field(default=None, converter=_as_mask)

    @property
    def label(self) -> str:
        """Such as "segmentation 1", or "segmentation 1 predicted"."""
        return f"segmentation {self.channel}" + (f" {self.mask}" if isinstance(self.mask, str) else "")

    def take(self, index: Tensor, images: int) -> Target:
        """Return the target for some of the images; refuse a mask that is empty for all of them."""
        if isinstance(self.mask, Tensor) and not self.mask.any():
            raise ValueError("`mask` is empty for all images; nothing to explain.")
        return _Part(self, index, images)

    def fix(self, output: Tensor) -> FixedTarget:
        """Fix the mask, and refuse an empty one."""
        if output.ndim < 4:
            raise ValueError(f"SegmentationTarget needs an output (B, N, *S); this network's is {tuple(output.shape)}.")
        check_classes(torch.tensor([self.channel], device="cpu"), output)
        mask = self._mask(output)
        total = mask.flatten(1).sum(1)
        if not (total > 0).all():
            raise EmptyMaskError(self.channel, [image for image, t in enumerate(total.tolist()) if not t > 0])

        def score(out: Tensor, index: Tensor) -> Tensor:
            weight = mask.to(out.device)[index.to(out.device)]
            return (out[:, self.channel] * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)

        return FixedTarget(self.label, score)

    def _mask(self, output: Tensor) -> Tensor:  # (B, *S)
        shape = (len(output), *output.shape[2:])
        if self.mask is None:
            return output.new_ones(shape)
        if isinstance(self.mask, str):
            own = output[:, self.channel]
            by_sign = self.mask == "positive" or output.shape[1] == 1
            if by_sign and bool(((own >= 0) & (own <= 1)).all()):
                raise ValueError(
                    f"channel {self.channel} lies between 0 and 1 everywhere, as probabilities do, and {self.mask!r} "
                    "means a logit above 0; explain the logits with `output`, or give the mask as a tensor."
                )
            mask = own > 0 if by_sign else output.argmax(1) == self.channel
            _log.info("the mask of channel %d holds %d of %d voxels", self.channel, int(mask.sum()), mask.numel())
            return mask.to(output.dtype)
        mask = self.mask.to(output.device, output.dtype, copy=True)  # may have been made in inference mode
        mask = mask[:, 0] if mask.ndim == output.ndim and mask.shape[1] == 1 else mask
        try:
            return mask.expand(shape)
        except RuntimeError as err:
            raise ValueError(f"`mask` {tuple(self.mask.shape)} does not fit the output's grid {shape}.") from err


class EmptyMaskError(ValueError):
    """There is nothing to explain for some images, counted from 0."""

    def __init__(self, channel: int, images: list[int]) -> None:
        super().__init__(channel, images)
        self.channel, self.images = channel, images

    def __str__(self) -> str:
        return f"the mask of channel {self.channel} is empty for the images {self.images}; nothing to explain."


@attrs.frozen(eq=False)
class _Part:
    """A segmentation target for some of the images. Only the output tells whether its mask has a row for each image."""

    whole: SegmentationTarget
    index: Tensor
    images: int

    @property
    def label(self) -> str:
        return self.whole.label

    def take(self, index: Tensor, images: int) -> Target:
        return _Part(self.whole, self.index[index], self.images)

    def fix(self, output: Tensor) -> FixedTarget:
        target, mask = self.whole, self.whole.mask
        if isinstance(mask, Tensor) and mask.ndim >= output.ndim - 1 and len(mask) > 1:
            if len(mask) != self.images:
                raise ValueError(f"`mask` {tuple(mask.shape)} does not fit {self.images} images.")
            target = copy.copy(target)  # of whatever class
            object.__setattr__(target, "mask", mask[self.index.to(mask.device)])
        try:
            return target.fix(output)
        except EmptyMaskError as err:  # the user knows the images of the whole batch
            raise EmptyMaskError(err.channel, [int(self.index[image]) for image in err.images]) from None
