"""Hypothesis strategies: images, networks, targets, volumes and maps, for properties of your own.

@given(medviz.testing.strategies.cases())
def test_zero_image(case):
    model, images, target = case
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medviz.attribution import Attribution
from medviz.image import Image
from medviz.targets import BinaryTarget, CallableTarget, ClassTarget, PredictedTarget, Target
from medviz.tensors import as_tensor
from medviz.testing import models as toys

try:
    from hypothesis import strategies as st
except ImportError as err:
    raise ImportError("medviz.testing.strategies needs hypothesis: python -m pip install hypothesis") from err

_SEEDS = st.integers(0, 2**31 - 1)


@st.composite
def images(
    draw: st.DrawFn,
    ndim: int | None = None,
    channels: int | None = None,
    batch: int | None = None,
    sizes: tuple[int, int] = (4, 9),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw a batch of images `(B, C, *S)`, finite: normal noise of any scale, now and then a constant.

    Args:
        draw: given by hypothesis.
        ndim: 2 or 3 spatial axes; None: either.
        channels: None: 1 to 3.
        batch: None: 1 to 3.
        sizes: the smallest and the largest extent of an axis, in voxels; odd ones and unequal ones come too.
        dtype: of the values.
    """
    axes = draw(st.sampled_from((2, 3))) if ndim is None else ndim
    shape = [
        draw(st.integers(1, 3)) if batch is None else batch,
        draw(st.integers(1, 3)) if channels is None else channels,
        *draw(st.lists(st.integers(*sizes), min_size=axes, max_size=axes)),
    ]
    generator = torch.Generator().manual_seed(draw(_SEEDS))
    scale, offset = draw(st.sampled_from((0.0, 0.1, 1.0, 100.0))), draw(st.sampled_from((0.0, 0.5, -3.0)))
    return (torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") * scale + offset).to(dtype)


@st.composite
def models(draw: st.DrawFn, ndim: int = 2, channels: int = 1, classes: int | None = None) -> nn.Module:
    """Draw a small network in eval mode, from `(B, C, *S)` of any size from 4 on to logits `(B, N)`.

    Args:
        draw: given by hypothesis.
        ndim: 2 or 3 spatial axes.
        channels: of the image.
        classes: logits; None: 1 to 4.
    """
    number = draw(st.integers(1, 4)) if classes is None else classes
    return toys.Classifier(ndim, channels, number, seed=draw(_SEEDS))


def targets(classes: int, batch: int | None = None) -> st.SearchStrategy[Target]:
    """Return a strategy of targets for logits `(B, classes)`: the predicted class, a class, a class for each image …

    Args:
        classes: logits; 1 adds both answers of a `BinaryTarget`.
        batch: images; None: no target that names a class for each image.
    """
    index = st.integers(0, classes - 1)
    kinds: list[st.SearchStrategy[Any]] = [
        st.builds(PredictedTarget),
        st.builds(ClassTarget, index),
        index.map(lambda i: CallableTarget(lambda out: out[:, i])),
    ]
    if batch is not None:
        kinds.append(st.lists(index, min_size=batch, max_size=batch).map(lambda i: ClassTarget(as_tensor(i))))
    if classes == 1:
        kinds.append(st.builds(BinaryTarget, st.booleans()))
    return st.one_of(kinds)


@st.composite
def cases(draw: st.DrawFn, ndim: int | None = None) -> tuple[nn.Module, Tensor, Target]:
    """Draw a network, images and a target that suit each other.

    Args:
        draw: given by hypothesis.
        ndim: 2 or 3 spatial axes; None: either.
    """
    axes = draw(st.sampled_from((2, 3))) if ndim is None else ndim
    channels, classes = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    drawn = draw(images(axes, channels))
    return draw(models(axes, channels, classes)), drawn, draw(targets(classes, len(drawn)))


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Draw an affine (4, 4) from voxel indices to RAS+ millimetres: any axis order, flips, spacing, small rotation."""
    order = draw(st.permutations(range(3)))
    signs = draw(st.lists(st.sampled_from((-1.0, 1.0)), min_size=3, max_size=3))
    spacing = draw(st.lists(st.sampled_from((0.5, 0.8, 1.0, 2.0, 5.0)), min_size=3, max_size=3))
    angle = draw(st.sampled_from((0.0, 0.1, -0.3)))
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.eye(3)[:, order] * np.multiply(signs, spacing)
    affine[:3, 3] = draw(st.lists(st.integers(-100, 100), min_size=3, max_size=3))
    return affine


@st.composite
def volumes(draw: st.DrawFn, channels: int | None = None, sizes: tuple[int, int] = (3, 8)) -> Image:
    """Draw a `medviz.Image` of three axes, with an affine.

    Args:
        draw: given by hypothesis.
        channels: None: 1 to 3.
        sizes: the smallest and the largest extent of an axis, in voxels.
    """
    data = draw(images(ndim=3, channels=channels, batch=1, sizes=sizes))
    return Image(data[0], draw(affines()))


@st.composite
def attributions(draw: st.DrawFn, ndim: int | None = None, signed: bool | None = None, batch: int = 1) -> Attribution:
    """Draw an attribution, as a renderer or a sink gets it: one map for each image, with an affine or without.

    Args:
        draw: given by hypothesis.
        ndim: 2 or 3 spatial axes; None: either.
        signed: whether there are negative values; None: either.
        batch: images.
    """
    image = draw(images(ndim=ndim, batch=batch))
    both = draw(st.booleans()) if signed is None else signed
    noise = torch.randn(image[:, :1].shape, generator=torch.Generator().manual_seed(draw(_SEEDS)), device="cpu")
    values = noise * draw(st.sampled_from((0.0, 1e-3, 1.0, 1e3)))
    affine = draw(st.none() | affines())
    return Attribution(
        values=values if both else values.abs(),
        image=image,
        signed=both,
        target="class 1",
        classes=(1,) * batch,
        scores=(0.5,) * batch,
        affine=None if affine is None else np.stack([affine] * batch),
        provenance={"method": "made-up", "explainer": "made-up"},
    )
