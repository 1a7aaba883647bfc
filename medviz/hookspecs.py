"""The contract: what a plugin of each kind receives, what it returns, and what it may declare about itself.

This is the one file that the author of a plugin must read. A plugin is a class that

1. subclasses the spec of its kind (`Explainer`, `Occluder`, `Renderer`, `Sink`, `Reader` or `Wrapper`),
2. marks its hook with `@medviz.hookimpl` and names the arguments that it wants, without defaults (pluggy hands over
   only those, so that a spec can grow without breaking a plugin),
3. is listed in the `pyproject.toml` of its package under the entry-point group of its kind.

Plugins hold configuration only (`@attrs.frozen(eq=False)` fits well): no tensors, no hooks on a model, no state.
Every parameter has a default, except the `path` of a sink that writes a file. Plugins call each other through the
instance, `self.occluder(patches, image, corners, wrappers=probe.wrappers)` or `self.inner.on(probe, target)`, never
through the hook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from medviz.attribution import Attribution
    from medviz.image import Image
    from medviz.probe import Probe
    from medviz.rendering import Rendering
    from medviz.results import ResultKey
    from medviz.targets import FixedTarget, TargetLike

hookimpl = pluggy.HookimplMarker("medviz")
_hookspec = pluggy.HookspecMarker("medviz")(firstresult=True)

Wrappers = Sequence["str | Wrapper"]


class Plugin:
    """What every kind has in common.

    Attributes:
        kind: the entry-point group, without the `medviz.` in front.
        Hooks: the hook specs of the kind, with every argument that an implementation may name.
    """

    kind: ClassVar[str]
    Hooks: ClassVar[type]


class Explainer(Plugin):
    """Turn a network, a batch of images and a target into one map for each image.

    Attributes:
        signed: False: values are ≥ 0 and high means important. True: negative values speak against the target.
        stochastic: draws random numbers, from a `seed` field of its own and never from the global generators.
        needs_layer: reads the layers named by its field `layer` (a name, several, or None: chosen automatically).
        needs_gradient: asks for `probe.gradient`, so that the forward pass has to record the graph above the layer.
        needs_gap: only valid where global average pooling and one linear layer follow the layer.
        uses_target: two targets give two different maps.
        zero_for_constant: a network whose score does not depend on the image gets a map of zeros.
        scale_free: a score that is multiplied by a positive number has the same map, for the method divides by the
            score or does not look at it.
        ndim: the numbers of spatial axes that it works for.
    """

    kind: ClassVar[str] = "explainers"
    signed: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    needs_layer: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = False
    needs_gap: ClassVar[bool] = False
    uses_target: ClassVar[bool] = True
    zero_for_constant: ClassVar[bool] = True
    scale_free: ClassVar[bool] = False
    ndim: ClassVar[tuple[int, ...]] = (2, 3)

    class Hooks:
        @_hookspec
        def explain(self, plugin: Explainer, probe: Probe, target: FixedTarget) -> Tensor:  # type: ignore[empty-body]
            """Explain `target` for every image of `probe.inputs`.

            Args:
                plugin: the explainer itself, for wrappers.
                probe: the network and the batch `(B, C, *S)`; the only way to run the network.
                target: what is explained, already fixed on the clean output; `probe.scores(target)` is `(B,)`.

            Returns:
                Raw, unscaled values `(B, K, *s)`, floating, finite: K is 1, or C for a map of each channel. The grid
                `*s` may be any: the pipeline resizes it linearly to the image's. High means important.

            Raises:
                ValueError: the network, the layer or the target does not suit the method.
            """

    def check(self, shape: Sequence[int]) -> None:
        """Raise a `ValueError` where the method does not suit images `(B, C, *S)`; called before any network runs.

        A subclass that can tell more, from its parameters, calls this one first.
        """
        if len(shape) - 2 not in self.ndim:
            raise ValueError(f"{type(self).__name__} works for {self.ndim} spatial axes, not {len(shape) - 2}.")

    def on(self, probe: Probe, target: FixedTarget) -> Tensor:
        """Return the raw map `(B, K, *s)` of images that another method explains: for methods made of others.

        The inner method's layers are asked for after the forward pass, which costs one more, unless the outer one has
        them in its own field `layer`; see `needs_layer` and `needs_gradient`.
        """
        from medviz.relay import run_explainer

        self.check(probe.inputs.shape)
        return run_explainer(self, probe, target, probe.wrappers)

    def __call__(
        self, model: nn.Module, image: Any, target: TargetLike = None, **options: Any
    ) -> Attribution | list[Attribution]:
        """Explain `model` on `image` `(B, C, *S)`; `options` are the keyword arguments of `medviz.explain`.

        Returns:
            One `Attribution` of B images, or a list with one for each target where `target` is a list.
        """
        from medviz.pipeline import explain

        return explain(model, image, self, target, **options)


class Occluder(Plugin):
    """Decide what stands in the place of a hidden part of an image."""

    kind: ClassVar[str] = "occluders"
    stochastic: ClassVar[bool] = False

    class Hooks:
        @_hookspec
        def occlude(self, plugin: Occluder, patches: Tensor, image: Tensor, corners: Tensor) -> Tensor:  # type: ignore[empty-body]
            """Return what the windows of one image look like when they are hidden.

            Args:
                plugin: the occluder itself, for wrappers.
                patches: the windows' clean content `(M, C, *mask)`; not to be changed in place.
                image: the clean image that they were cut from, `(C, *S)`.
                corners: the first voxel of each window, `(M, nd)` integers.

            Returns:
                The hidden windows `(M, C, *mask)`, finite, dtype and device of `patches`.
            """

        @_hookspec
        def blend_weight(self, plugin: Occluder, mask_size: tuple[int, ...]) -> Tensor | None:
            """Return how much each voxel of a window counts where windows overlap; not implemented: all the same.

            Args:
                plugin: the occluder itself, for wrappers.
                mask_size: the window's size in voxels, one for each spatial axis.

            Returns:
                Weights `(*mask_size)`, non-negative, not all zero; or None: ones.
            """

    def __call__(self, patches: Tensor, image: Tensor, corners: Tensor, *, wrappers: Wrappers = ()) -> Tensor:
        """Return the hidden windows `(M, C, *mask)`; see `Hooks.occlude`."""
        from medviz.relay import occlude

        return occlude(self, patches, image, corners, wrappers=wrappers)

    def weight(self, mask_size: tuple[int, ...], *, wrappers: Wrappers = ()) -> Tensor:
        """Return the weights `(*mask_size)` of a window's voxels; see `Hooks.blend_weight`."""
        from medviz.relay import blend_weight

        return blend_weight(self, mask_size, wrappers=wrappers)


class Renderer(Plugin):
    """Draw one attribution."""

    kind: ClassVar[str] = "renderers"

    class Hooks:
        @_hookspec
        def render(self, plugin: Renderer, attribution: Attribution) -> Rendering:  # type: ignore[empty-body]
            """Draw the attribution of one image.

            Args:
                plugin: the renderer itself, for wrappers.
                attribution: one image (B = 1), its map, affine and provenance. Only renderers reorient and resample.

            Returns:
                Frames `(T, H, W, 3)` uint8, with a title, a frame rate, and the matplotlib figure if there is one.
            """

    def __call__(self, attribution: Attribution, *, wrappers: Wrappers = ()) -> Rendering | list[Rendering]:
        """Draw `attribution`: one `Rendering`, or a list with one for each image where there are several."""
        from medviz.relay import render

        return render(self, attribution, wrappers=wrappers)


class Sink(Plugin):
    """Put a picture or a map where somebody works with it.

    A sink whose hook names `rendering` may hold a field `renderer`, that draws what it is given undrawn.
    """

    kind: ClassVar[str] = "sinks"

    def check(self, keys: Sequence[ResultKey]) -> None:
        """Raise, where a sink can tell, if results could not be written; called before any network runs.

        Args:
            keys: of the results that it will be given, what tells each from the others.
        """

    class Hooks:
        @_hookspec
        def write(  # type: ignore[empty-body]
            self, plugin: Sink, rendering: Rendering | None, attribution: Attribution | None, tag: str | None, step: int
        ) -> Path | str:
            """Write the picture or the values of one image.

            Args:
                plugin: the sink itself, for wrappers.
                rendering: the picture; handed over to every hook that names it.
                attribution: the map of one image (B = 1), raw values; handed over to every hook that names it.
                tag: the user's name for it; None: the sink makes one of the explainer and the target.
                step: the training step.

            Returns:
                Where it was written to.

            Raises:
                FileExistsError: the file exists and the sink's `overwrite` is not set.
            """

    def __call__(
        self,
        x: Rendering | Attribution | Sequence[Rendering | Attribution],
        *,
        tag: str | None = None,
        step: int = 0,
        wrappers: Wrappers = (),
    ) -> Any:
        """Write `x`, one image at a time; return what the hook returned, in a list where `x` is more than one image."""
        from medviz.relay import write

        return write(self, x, tag=tag, step=step, wrappers=wrappers)


class Reader(Plugin):
    """Read one image, with its place in the world.

    Attributes:
        suffixes: the endings of the file names that it reads, lower case, with their dots: `(".nii", ".nii.gz")`.
    """

    kind: ClassVar[str] = "readers"
    suffixes: ClassVar[tuple[str, ...]] = ()

    class Hooks:
        @_hookspec
        def read(self, plugin: Reader, path: Path) -> Image:  # type: ignore[empty-body]
            """Read `path`.

            Args:
                plugin: the reader itself, for wrappers.
                path: an existing file.

            Returns:
                Data `(C, *S)` float32 in the file's own axis order, and the affine (4, 4) from voxel indices to
                RAS+ millimetres, or None where the file holds none.
            """

    def __call__(self, path: str | Path, *, wrappers: Wrappers = ()) -> Image:
        """Read the image at `path`."""
        from medviz.relay import read_with

        return read_with(self, path, wrappers=wrappers)


class Wrapper(Plugin):
    """Go around any hook of any other plugin: measure, cache, refuse, remove what must not leave the house.

    Each method is named after the hook that it goes around and marked `@medviz.hookimpl(wrapper=True)`; it names the
    arguments that it wants (`plugin` is the plugin being called), yields once, and returns the result. Wrappers are
    off unless named: `medviz.explain(…, wrappers=["timing"])`. The first named is the outermost.
    """

    kind: ClassVar[str] = "wrappers"

    class Hooks:
        """None of its own."""


KINDS: dict[str, type[Plugin]] = {spec.kind: spec for spec in (Explainer, Occluder, Renderer, Sink, Reader, Wrapper)}
