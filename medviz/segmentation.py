"""The target of a segmentation network: a channel, somewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from medviz.targets import FixedTarget, Target, check_classes
from medviz.tensors import as_tensor, plain
from medviz.validators import of_type

_log = logging.getLogger("medviz")


def _as_mask(mask: Any) -> Any:
    if mask is None or (isinstance(mask, str) and mask in ("predicted", "positive")):
        return mask
    if isinstance(mask, str) or not (isinstance(mask, Tensor) or hasattr(mask, "__array__")):
        raise TypeError(f"`mask` is None, 'predicted', 'positive' or a tensor; got {mask!r}.")
    weights = plain(as_tensor(mask)).detach()
    if not torch.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("`mask` holds weights that are negative, NaN or infinite.")
    if not weights.any():
        raise ValueError("`mask` is empty: there is nothing to explain.")
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

    channel: int = attrs.field(validator=of_type(int))
    mask: Tensor | Literal["predicted", "positive"] | None = attrs.field(default=None, converter=_as_mask)

    @property
    def label(self) -> str:
        """Such as "segmentation 1", or "segmentation 1 predicted"."""
        return f"segmentation {self.channel}" + (f" {self.mask}" if isinstance(self.mask, str) else "")

    def take(self, index: Tensor, images: int) -> Target:
        """Return the target for some of the images."""
        return _Part(self, index, images)

    def fix(self, output: Tensor) -> FixedTarget:
        """Fix the mask, and refuse an empty one."""
        return self._fix(output, self.mask, range(len(output)))

    def _fix(self, output: Tensor, given: Tensor | str | None, images: Sequence[int]) -> FixedTarget:
        """Fix a mask for the output of these images."""
        if output.ndim < 4:
            raise ValueError(f"SegmentationTarget needs an output (B, N, *S); this network's is {tuple(output.shape)}.")
        check_classes(torch.tensor([self.channel], device="cpu"), output)
        mask = self._mask(output, given)
        total = mask.flatten(1).sum(1)
        if not (total > 0).all():
            empty = [image for image, t in zip(images, total.tolist(), strict=True) if not t > 0]
            raise ValueError(f"the mask of channel {self.channel} is empty for the images {empty}; nothing to explain.")

        def score(out: Tensor, index: Tensor) -> Tensor:
            weight = mask.to(out.device)[index.to(out.device)]
            return (out[:, self.channel] * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)

        return FixedTarget(self.label, score)

    def _mask(self, output: Tensor, given: Tensor | str | None) -> Tensor:  # (B, *S)
        shape = (len(output), *output.shape[2:])
        if given is None:
            return output.new_ones(shape)
        if isinstance(given, str):
            own = output[:, self.channel]
            by_sign = given == "positive" or output.shape[1] == 1
            if by_sign and bool(((own >= 0) & (own <= 1)).all()):
                raise ValueError(
                    f"channel {self.channel} lies between 0 and 1 everywhere, as probabilities do, and {given!r} "
                    "means a logit above 0; explain the logits with `output`, or give the mask as a tensor."
                )
            mask = own > 0 if by_sign else output.argmax(1) == self.channel
            _log.info("the mask of channel %d holds %d of %d voxels", self.channel, int(mask.sum()), mask.numel())
            return mask.to(output.dtype)
        mask = given.to(output.device, output.dtype, copy=True)  # may have been made in inference mode
        mask = mask[:, 0] if mask.ndim == output.ndim and mask.shape[1] == 1 else mask
        try:
            return mask.expand(shape)
        except RuntimeError as err:
            raise ValueError(f"`mask` {tuple(given.shape)} does not fit the output's grid {shape}.") from err


@attrs.frozen(eq=False)
class _Part:
    """A segmentation target for some of the images: only the output tells whether its mask has a row for each."""

    whole: SegmentationTarget
    index: Tensor
    images: int

    @property
    def label(self) -> str:
        return self.whole.label

    def fix(self, output: Tensor) -> FixedTarget:
        mask = self.whole.mask
        if isinstance(mask, Tensor) and mask.ndim >= output.ndim - 1 and len(mask) > 1:
            if len(mask) != self.images:
                raise ValueError(f"`mask` {tuple(mask.shape)} does not fit {self.images} images.")
            mask = mask[self.index.to(mask.device)]
        return self.whole._fix(output, mask, self.index.tolist())
