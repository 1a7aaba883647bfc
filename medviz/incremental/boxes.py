"""The part of a feature map that a patch has changed, and the clean map around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from torch import Tensor

from medviz.incremental.copying import cut_changed, put
from medviz.incremental.geometry import Size, Starts, inside
from medviz.incremental.layout import repeated


def _as_starts(starts: Any) -> Starts:
    return starts.numpy(force=True) if isinstance(starts, Tensor) else np.asarray(starts)


@attrs.frozen(eq=False)
class Box:
    """M copies of a clean map, each changed inside of one box; all boxes have one size.

    Args:
        clean: the map, `(1, C, *S)`; on the meta device where nobody will look at it.
        block: what stands in the boxes, `(M, C, *L)`.
        reach: the first voxel along each axis that each patch can have changed, `(M, nd)`; it may lie outside of the
            map, into which the boxes are moved.
    """

    clean: Tensor
    block: Tensor
    reach: Starts = attrs.field(converter=_as_starts)

    @property
    def size(self) -> Size:
        """The size of the boxes, `*L`."""
        return tuple(self.block.shape[2:])

    @property
    def shape(self) -> Size:
        """The size of the whole map, `*S`."""
        return tuple(self.clean.shape[2:])

    @property
    def starts(self) -> Starts:
        """The first voxel of each box along each axis, `(M, nd)`."""
        return inside(self.reach, self.size, self.shape)

    def whole(self) -> Tensor:
        """Return the M whole maps, `(M, C, *S)`."""
        maps = repeated(self.clean, len(self.block))
        put(maps, self.block, self.starts)
        return maps

    def outline(self) -> Tensor:
        """Return a tensor of the size, type and device of the M whole maps, without their values and memory."""
        return self.block.new_empty(()).expand(len(self.block), *self.clean.shape[1:])

    def gather(self, starts: Starts, size: Sequence[int], outside: float = 0.0) -> Tensor:
        """Return other boxes of the changed maps, `(M, C, *size)`: arguments as for `copying.cut`."""
        return cut_changed(self.clean, self.block, self.starts, starts, size, outside)


@attrs.frozen(eq=False)
class Same:
    """M copies of one value that no patch changes, such as a position embedding that is expanded to the batch.

    Args:
        clean: the value, `(1, …)`.
        rows: M.
        expanded: the network's own M copies lie in one memory, so that they can be viewed as nothing else.
    """

    clean: Tensor
    rows: int
    expanded: bool = False

    def whole(self) -> Tensor:
        """Return the M copies, `(M, …)`, as the network has them."""
        return self.outline() if self.expanded else self.outline().contiguous()

    def outline(self) -> Tensor:
        """Return the M copies without memory for each."""
        return self.clean.expand(self.rows, *self.clean.shape[1:])
