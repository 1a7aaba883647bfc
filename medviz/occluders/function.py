"""What a function makes of it."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from torch import Tensor

from medviz.hookspecs import Occluder, hookimpl
from medviz.tensors import is_ordinary


@attrs.frozen(eq=False)
class FunctionOccluder(Occluder):
    """Put in the place of what is hidden what a plain function of `(patches, image, corners)` returns.

    Args:
        function: takes and returns what `Occluder.Hooks.occlude` does; it may work in place, on copies, and in another
            precision.
    """

    function: Callable[[Tensor, Tensor, Tensor], Tensor] = attrs.field(validator=attrs.validators.is_callable())

    @hookimpl
    def occlude(self, patches: Tensor, image: Tensor, corners: Tensor) -> Tensor:
        made = self.function(patches.clone(), image.clone(), corners.clone())
        return made.to(patches) if is_ordinary(made) else made
