"""Noisy copies of images, in bounded batches, repeatable and the same for every image of a batch."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from medviz.probe import Probe
from medviz.tensors import wide
from medviz.validators import SEED


def seed_field() -> int | None:
    """Return the attrs field of a seed: None draws a fresh one, which the provenance records."""
    return attrs.field(default=None, validator=attrs.validators.optional(SEED), kw_only=True)


def drawn(seed: int | None) -> int:
    """Return `seed`, or a fresh one where it is None."""
    return secrets.randbits(32) if seed is None else seed


def generator(seed: int | None) -> torch.Generator:
    """Return a generator of its own on the CPU, so that every device gets the same numbers."""
    return torch.Generator().manual_seed(drawn(seed))


def copies(probe: Probe, count: int, graph: bool) -> Iterator[int]:
    """Yield how many copies of the whole batch come next, so that `count` are made in passes of bounded size."""
    most = max(1, probe.rows_at_once(graph) // len(probe.inputs))
    with probe.bar(count * len(probe.inputs) if count > most else 0) as bar:
        while count > 0:
            yield min(most, count)
            bar.update(min(most, count) * len(probe.inputs))
            count -= most


def image_range(images: Tensor) -> Tensor:
    """Return the largest less the smallest value of each image `(B, 1, …)`."""
    flat = wide(images).flatten(1)
    return (flat.amax(1) - flat.amin(1)).reshape(-1, *[1] * (images.ndim - 1))


def noisy(probe: Probe, count: int, spread: float, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noisy copies `(count · B, C, *S)` of the images, and the image that each belongs to.

    Args:
        probe: holds the images.
        count: copies of each image.
        spread: the standard deviation of the noise, as a fraction of each image's range.
        source: each copy draws one field `(C, *S)` and uses it for every image, so that a batch equals single images.
    """
    images = wide(probe.inputs)
    # one draw for each field: torch draws a block of several in another order, so the map would depend on `count`
    fields = [torch.randn(images.shape[1:], generator=source, dtype=torch.float32, device="cpu") for _ in range(count)]
    noise = torch.stack(fields)[:, None].to(images)
    rows = images + noise * spread * image_range(images)
    return rows.flatten(0, 1), torch.arange(len(images), device=images.device).repeat(count)
