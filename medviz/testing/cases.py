"""What the checks give to plugins: small images and maps, instances that are ready for the toy networks."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from medviz.attribution import Attribution
from medviz.contract import MANAGER
from medviz.hookspecs import Explainer, Plugin, Renderer, hookimpl
from medviz.rendering import Rendering
from medviz.testing.outcome import TRACE, ConformanceError, NotApplicable, describe_error, name_of

SIZES = {2: (13, 10), 3: (7, 9, 6)}
"""Odd, even and unequal extents of the images that explainers get."""


def images(ndim: int = 2, channels: int = 2, batch: int = 2, seed: int = 0, size: tuple[int, ...] = ()) -> Tensor:
    """Return images `(batch, channels, *S)` of normal noise around 1, the same for the same seed."""
    shape = (batch, channels, *(size or SIZES[ndim]))
    return 1 + torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu")


def has(instance: Plugin, name: str) -> bool:
    """Return whether the plugin has a parameter called `name`."""
    cls: Any = type(instance)
    return any(f.alias == name for f in attrs.fields(cls)) if attrs.has(cls) else name in vars(instance)


def changed(instance: Any, **parameters: Any) -> Any:
    """Return a copy of the plugin with other values for those of the `parameters` that it has."""
    wanted = {name: value for name, value in parameters.items() if has(instance, name)}
    if attrs.has(type(instance)):
        return attrs.evolve(instance, **wanted)
    made = copy.copy(instance)
    vars(made).pop(MANAGER, None)
    vars(made).update(wanted)
    return made


def ready(instance: Explainer, seed: int | None = 0) -> Explainer:
    """Return the explainer with the layer of the toy networks (the automatic one) and with `seed` if it draws numbers.

    A layer that the author names belongs to the author's network.
    """
    made: Explainer = changed(instance, layer=None)
    if made.stochastic and (seed is None or getattr(made, "seed", None) is None):
        made = changed(made, seed=seed)
    return made


def axes(instance: Explainer, wanted: int = 2) -> int:
    """Return `wanted` if the explainer works for as many spatial axes, else the number that it declares.

    Raises:
        NotApplicable: neither 2 nor 3.
    """
    for ndim in (wanted, 2, 3):
        if ndim in instance.ndim:
            return ndim
    raise NotApplicable(f"the toy networks have 2 or 3 spatial axes; {name_of(instance)} declares {instance.ndim}.")


def run(instance: Explainer, model: nn.Module, batch: Any, target: Any = 0, **options: Any) -> Attribution:
    """Explain, and turn whatever error comes into a `ConformanceError` that says what was asked.

    Raises:
        ConformanceError: the call failed.
    """
    did = f"{name_of(instance)} explained {type(model).__name__} on {batch.dtype} images {tuple(batch.shape)}"
    try:
        result: Any = instance(model, batch, target, **options)
    except Exception as err:
        raise ConformanceError(
            f"{did}, target {_named(target)}: expected a map; got {describe_error(err)}. {TRACE}"
        ) from err
    if not isinstance(result, Attribution):
        raise ConformanceError(
            f"{did}: expected a medviz.Attribution; got {type(result).__name__}. Leave `__call__` as the base class "
            "has it, and implement the hook `explain`."
        )
    return result


def _named(target: Any) -> str:
    return str(getattr(target, "__name__", repr(target)))


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest difference as a fraction of the largest magnitude of `b`; of zeros, the difference itself."""
    top = float(b.abs().max())
    return float((a.double() - b.double()).abs().max()) / (top or 1.0)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and `random` in the block; put them back afterwards."""
    import random

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def attribution(
    ndim: int = 2,
    signed: bool = False,
    batch: int = 1,
    affine: Any = None,
    values: Tensor | None = None,
    seed: int = 0,
) -> Attribution:
    """Return an attribution as renderers and sinks get it, with a blob as the map, or with `values` `(B, K, *S)`."""
    size = (16, 20) if ndim == 2 else (8, 10, 12)
    image = images(ndim, 1, batch, seed, size if values is None else tuple(values.shape[2:])).float()
    if values is None:
        grids = torch.meshgrid(*[torch.linspace(-1, 1, extent, device="cpu") for extent in size], indexing="ij")
        blob = torch.exp(-torch.stack([(grid - 0.3) ** 2 for grid in grids]).sum(0) / 0.1)
        values = torch.stack([blob * (i + 1) for i in range(batch)])[:, None]
        if signed:
            values = values - 0.7 * values.flip(2)
    return Attribution(
        values=values,
        image=image,
        signed=signed,
        target="class 1",
        classes=(1,) * len(values),
        scores=tuple(0.5 + i for i in range(len(values))),
        affine=None if affine is None else np.stack([np.asarray(affine, dtype=float)] * len(values)),
        provenance={"method": "made-up", "explainer": "made-up"},
    )


@attrs.frozen(eq=False)
class Grey(Renderer):
    """Draw a map in grey, a volume as a movie along its first axis; quick, for sinks that want a picture."""

    @hookimpl
    def render(self, attribution: Attribution) -> Rendering:
        """Draw negative values dark and positive ones bright."""
        grey = (attribution.normalized()[0, 0] * 127 + 128).byte()
        frames = (grey[None] if grey.ndim == 2 else grey)[..., None].expand(-1, -1, -1, 3)
        return Rendering(frames.numpy(), title="made-up", attribution=attribution)


GREY = Grey()
