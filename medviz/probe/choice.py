"""Which layer is explained where none is named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, pooling

from medviz.probe.layers import channel_axis, has_parameters, works_along_last

_FIXED_GRIDS = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
# modules that work on maps
_ON_GRIDS: tuple[Any, ...] = (
    *(conv._ConvNd, batchnorm._NormBase, nn.Upsample),
    *(getattr(pooling, f"_{kind}Nd") for kind in ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool")),
)
# a norm or activation behind the layer that makes the logits leaves them logits
_OF_EACH_CHANNEL = (batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU)


@attrs.define(eq=False)
class Seen:
    """One call of a module. What only the choice asks for is worked out then: a pass calls hundreds of modules."""

    name: str
    module: nn.Module
    shape: torch.Size | None
    spatial: bool
    handed_on: bool = False  # it returns what another one has returned
    leads: bool = True  # to the output that is meant

    @property
    def elements(self) -> int:
        return math.prod(self.shape or ())

    @property
    def cells(self) -> int:
        return math.prod((self.shape or ())[2:])

    @property
    def parametrised(self) -> bool:
        return has_parameters(self.module)

    @property
    def channels_last(self) -> bool:
        return self.shape is not None and self.spatial and works_along_last(self.module, self.shape[-1])


class Choice:
    """The automatic choice among the calls of a pass.

    Args:
        calls: of all layers, in their order.
        model: what ran.
        batch, ndim: how many images ran through it, and of how many axes.
    """

    def __init__(self, calls: Sequence[Seen], model: nn.Module, batch: int, ndim: int) -> None:
        self._calls, self._model = calls, model
        self._batch, self._ndim = batch, ndim

    def choose(self, output: Tensor) -> str:
        """Return the name of the layer that the automatic choice takes for this output.

        `(B, N)`: the last layer with a spatial extent. `(B, N, *S)`: the last one on the coarsest grid before the last
        layer that has parameters, norms left aside, which is never the logits themselves. Of a layer that is called
        several times the last call counts, for which its name stands.

        Raises:
            ValueError: no layer suits, or the model goes on with tokens.
        """
        try:
            return self._choose([seen for seen in self._calls if seen.leads], output)
        except _NoLayerError:
            if all(seen.leads for seen in self._calls):
                raise
            return self._choose(self._calls, output)  # what is cut off from the graph may still be what is explained

    def _choose(self, among: Sequence[Seen], output: Tensor) -> str:
        last, of_all = ({seen.name: seen for seen in some} for some in (among, self._calls))
        calls = [seen for seen in among if last[seen.name] is seen]
        # one that is called once more for another output is kept for its parameters only: its name stands for that call
        calls = [seen if of_all[seen.name] is seen else attrs.evolve(seen, spatial=False) for seen in calls]
        if output.ndim > 2:
            return self._coarsest(calls)
        spatial = [i for i, seen in enumerate(calls) if seen.spatial]
        self._refuse_tokens(calls[spatial[-1] + 1 if spatial else 0 :])
        mixed = spatial and any(seen.channels_last for seen in calls)
        axis = self._channel_axis(calls[spatial[-1]]) if mixed else 1
        if axis == -1:
            raise ValueError(
                "`layer` cannot be chosen for a model that works on (B, *s, C), channels last; name one, with "
                'reshape="channels_last".'
            )
        if axis is None:
            unclear = calls[spatial[-1]]
            raise ValueError(
                f"`layer` cannot be chosen: nothing tells whether the channels of {unclear.name!r}, "
                f"{plain_shape(unclear.shape)}, come first or last. Name a layer, with reshape='channels_last' or "
                "'channels_first'."
            )
        if not spatial:
            raise _NoLayerError("no layer of the model returns a spatial extent (B, K, *s); nothing can be mapped.")
        return self._on_the_image(calls[spatial[-1]])

    def _refuse_tokens(self, calls: Sequence[Seen]) -> None:
        tokens = [seen for seen in calls if self._is_tokens(seen)]
        if tokens:
            raise ValueError(
                "`layer` cannot be chosen for a model that works on tokens (B, N, C); name one whose tokens the score "
                "still depends on: before the last attention, such as the first norm of the last block. The model's "
                f"token layers end with {[seen.name for seen in tokens][-4:]}."
            )

    def _channel_axis(self, seen: Seen) -> int | None:
        return None if seen.shape is None else channel_axis(seen.module, seen.shape, list(self._model.modules()))

    def _coarsest(self, calls: Sequence[Seen]) -> str:
        parametrised = [i for i, seen in enumerate(calls) if seen.parametrised]
        mixing = [i for i in parametrised if not isinstance(calls[i].module, _OF_EACH_CHANNEL)]
        end = (mixing or parametrised or [0])[-1]
        embedding = self._embedding(calls[:end])
        before = [seen for seen in calls[len(embedding) : end] if seen.spatial]
        if not before:
            self._refuse_tokens(calls[len(embedding) : end] if embedding else [])
            raise _NoLayerError("no spatial layer comes before the model's last layer; name one with `layer`.")
        made_by = {seen.cells: seen.module for seen in reversed(before)}  # each grid, by the first layer that has it
        # a pooling to a fixed grid is a branch that the others go past, as in a pyramid of them
        grids = [cells for cells, module in made_by.items() if not isinstance(module, _FIXED_GRIDS)] or list(made_by)
        return self._on_the_image([seen for seen in before if seen.cells == min(grids)][-1])

    def _on_the_image(self, chosen: Seen) -> str:
        """Return the name of the chosen layer, if what it returns is known to be a map.

        Raises:
            ValueError: the model works on tokens too, and no convolution, pooling or the like has made maps of that
                size: the axes may be those of heads and tokens.
        """
        made = (seen.shape for seen in self._calls if isinstance(seen.module, _ON_GRIDS))
        grids = {shape[2:] for shape in made if shape is not None and len(shape) == self._ndim}
        if (chosen.shape or ())[2:] in grids or not any(map(self._is_tokens, self._calls)):
            return chosen.name
        raise ValueError(
            f"`layer` cannot be chosen: the model works on tokens, and nothing tells that the axes of {chosen.name!r}, "
            f"{plain_shape(chosen.shape)}, are those of the image and not those of heads and tokens; name a layer."
        )

    def _embedding(self, calls: Sequence[Seen]) -> Sequence[Seen]:
        """The first calls, where they make tokens of patches of the image, which say nothing of what a network found.

        Where the tokens come back to that grid without a layer, it would be the coarsest.
        """
        first = next((i for i, seen in enumerate(calls) if self._is_tokens(seen)), 0)
        return calls[:first] if sum(seen.parametrised for seen in calls[:first]) == 1 else []

    def _is_tokens(self, seen: Seen) -> bool:
        return seen.shape is not None and len(seen.shape) == 3 and seen.shape[0] == self._batch and seen.shape[1] > 1


class _NoLayerError(ValueError):
    """There is none to choose."""


def plain_shape(shape: torch.Size | None) -> tuple[int, ...] | None:
    """Return a shape as a tuple of ints."""
    return None if shape is None else tuple(shape)
