"""Attributions with known answers, for the tests of the renderers."""

import importlib.metadata

import numpy as np
import torch

from medviz.attribution import Attribution

torch.set_num_threads(1)  # the pictures are tiny: threads would only wait for each other


def attribution(values, image=None, affine=None, **fields):
    """One image: `values` (K, *S), `image` (C, *S) (noise by default), `affine` (4, 4)."""
    values = torch.as_tensor(np.asarray(values, dtype=np.float32))
    image = torch.rand(1, *values.shape[1:], generator=torch.Generator().manual_seed(0)) if image is None else image
    fields = {"target": "class 1", "classes": (1,), "scores": (2.5,), "provenance": {"method": "gradcam"}, **fields}
    return Attribution(
        values=values[None],
        image=torch.as_tensor(np.asarray(image, dtype=np.float32))[None],
        affine=None if affine is None else np.asarray(affine, dtype=float)[None],
        **fields,
    )


def scan_path(name):
    """A real scan that nibabel ships."""
    (found,) = (f for f in importlib.metadata.files("nibabel") if f.parts[-3:] == ("tests", "data", name))
    return found.locate()


def gaussian_at(shape, affine, place_mm, sigma_mm):
    """A map with its peak at a place in RAS+ millimetres."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    millimetres = index @ affine[:3, :3].T + affine[:3, 3]
    return np.exp(-((millimetres - place_mm) ** 2).sum(-1) / (2 * sigma_mm**2))
