"""An image with its place in the world, and the batches that explainers work on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import numpy as np
import torch
from torch import Tensor

from medviz.finite import check_finite
from medviz.tensors import as_tensor, plain

_log = logging.getLogger("medviz")

# the signs that lead from a space to RAS
_SPACES = {"RAS": (1.0, 1, 1, 1), "LPS": (-1.0, -1, 1, 1), "LAS": (-1.0, 1, 1, 1), "RPS": (1.0, -1, 1, 1)}


def _as_data(data: Any) -> Tensor:
    tensor = plain(as_tensor(data)).detach().to(torch.float32)
    if tensor.ndim not in (3, 4) or not tensor.numel():
        raise ValueError(f"`data` has shape {tuple(tensor.shape)}; expected (C, H, W) or (C, D, H, W), not empty.")
    return tensor.contiguous()


def as_affine(affine: Any, shape: tuple[int, ...] = (4, 4)) -> np.ndarray | None:
    """Return `affine` as a float64 array of `shape`, or None.

    Raises:
        ValueError: another shape, a value that is not finite, a matrix without an inverse, or a last row that is not
            (0, 0, 0, 1).
    """
    if affine is None:
        return None
    try:
        array = np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"`affine` is an array of numbers {shape}; got {affine!r}.") from None
    good = array.shape == shape and np.isfinite(array).all() and np.linalg.det(array[..., :3, :3]).all()
    if not good or (array[..., 3, :] != (0, 0, 0, 1)).any():
        raise ValueError(
            f"`affine` must be finite, {shape}, with an inverse and the last row 0, 0, 0, 1; got {array.tolist()}."
        )
    return array


@attrs.frozen(eq=False, repr=False, init=False)
class Image:
    """One image, `(C, *S)`, as it lies in its file.

    Args:
        data: values `(C, *S)`, turned into float32.
        affine: (4, 4), from voxel indices to RAS+ millimetres; None: that of a MetaTensor, else not known. A 2-D image
            has its third axis at 0.
        path: the file that it was read from.
    """

    data: Tensor = attrs.field(converter=_as_data)
    affine: np.ndarray | None = attrs.field(default=None, converter=as_affine)
    path: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))

    def __init__(self, data: Any, affine: Any = None, path: str | Path | None = None) -> None:
        carried = _affine_of(data[None]) if affine is None and isinstance(data, Tensor) else None
        self.__attrs_init__(data, affine if carried is None else carried[0], path)

    def __repr__(self) -> str:
        path = "" if self.path is None else f" {self.path}"
        return f"<Image:{path} {tuple(self.data.shape)}{', affine' * (self.affine is not None)}>"

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """The voxel size in mm along each spatial axis, or None where there is no affine."""
        return None if self.affine is None else spacing_of(self.affine, self.data.ndim - 1)


def spacing_of(affine: np.ndarray, ndim: int) -> tuple[float, ...]:
    """Return the length in mm of a step along each of the first `ndim` voxel axes of `affine` (4, 4)."""
    return tuple(float(length) for length in np.linalg.norm(affine[:3, :ndim], axis=0))


def as_batch(image: Any, affine: Any = None) -> tuple[Tensor, np.ndarray | None]:
    """Return the batch `(B, C, *S)` and the affines (B, 4, 4), or None, of what a user calls an image.

    Args:
        image: a tensor or array `(B, C, *S)`, a MetaTensor (with the affine of its file), an `Image`, or several
            of one shape.
        affine: (4, 4) for all or (B, 4, 4); replaces that of the image.

    Raises:
        TypeError: not an image, or integers.
        ValueError: an empty batch, another number of axes, values that are not finite, or images of several shapes or
            on several devices.
    """
    if isinstance(image, Image):
        image = [image]
    if isinstance(image, Sequence) and image and all(isinstance(item, Image) for item in image):
        shapes = {tuple(item.data.shape) for item in image}
        if len(shapes) > 1:
            raise ValueError(f"the images of a batch must have one shape; got {sorted(shapes)}.")
        if len(devices := {str(item.data.device) for item in image}) > 1:
            raise ValueError(f"the images of a batch must be on one device; got {sorted(devices)}.")
        if affine is None and any(item.affine is not None for item in image):
            affine = _stacked([item.affine for item in image])
        batch = torch.stack([item.data for item in image])
    elif isinstance(image, Tensor | np.ndarray):
        affine = _affine_of(image) if affine is None else affine
        batch = plain(as_tensor(image)).detach()
    else:
        raise TypeError(f"`image` is a {type(image).__name__}; expected a tensor (B, C, *S) or medviz.Image.")
    check_batch(batch)
    if np.ndim(affine) == 2:
        affine = [as_affine(affine)] * len(batch)
    return batch, as_affine(affine, (len(batch), 4, 4))


def like(values: Tensor, image: Any, first: Sequence[int] = ()) -> Tensor:
    """Return `values` on the device of `image`, and as a MetaTensor with its affine where `image` is one.

    Args:
        values: what was computed of `image` on its own grid or on a part of it.
        image: a tensor or array.
        first: the voxel of `image` that is the first of `values`, one index for each spatial axis; (): the same grid.
    """
    if not isinstance(image, Tensor):
        return values
    values = values.to(image.device)
    if not hasattr(image, "copy_meta_from"):
        return values
    made: Any = type(image)(values)
    made.copy_meta_from(image)
    shift = torch.eye(made.affine.shape[-1], device="cpu").to(made.affine)
    shift[: len(first), -1] = torch.tensor(first, device="cpu").to(shift)
    made.affine = made.affine @ shift
    return cast(Tensor, made)


def _affine_of(image: Any) -> np.ndarray | None:
    """Return the affines to RAS+ that a MetaTensor carries, (B, 4, 4), or None where it knows no place.

    Raises:
        ValueError: it knows the place of some of its images only.
    """
    carried = getattr(image, "affine", None)
    if carried is None:
        return None
    images, meta, affines = len(image), getattr(image, "meta", {}), np.asarray(carried, dtype=np.float64)
    if affines.shape[-2:] != (4, 4):
        _log.warning("the MetaTensor's affine is %s and not (4, 4): no affine; give `affine`.", affines.shape[-2:])
        return None
    done = getattr(image, "applied_operations", None) or []
    noted = any(isinstance(one, Mapping) for many in done for one in (many if isinstance(many, list) else [many]))
    moved = noted or not np.array_equal(np.ravel(meta.get("original_affine", ())), np.ravel(affines))
    if why := _why_affine_does_not_fit(tuple(image.shape[2:]), meta.get("spatial_shape"), images, moved):
        _log.warning("the MetaTensor %s: no affine; give `affine`.", why)
        return None
    from_file = not meta.keys().isdisjoint({"filename_or_obj", "original_affine"})
    if affines.ndim == 2 and (images == 1 or not from_file):
        affines = np.stack([affines] * images)
    if affines.shape[:-2] != (images,):
        _log.warning(
            "the MetaTensor holds %d images and the affine of %s: no affine; give `affine`, or collate with "
            "monai.data.list_data_collate, which keeps one for each.",
            images,
            "one file" if affines.ndim == 2 else len(affines),
        )
        return None
    codes = zip(*(_each(meta.get(name, 1), images) for name in ("qform_code", "sform_code")), strict=True)
    spaces = _each(meta.get("space", "RAS"), images)
    operations = done if len(done) == images and all(isinstance(one, list) for one in done) else [done] * images
    known = "original_affine" in meta
    placed = []
    for affine, both, space, operation in zip(affines, codes, spaces, operations, strict=True):
        told = any(code not in (None, 0) for code in both) if known else not _is_made_up(affine, operation)
        placed.append(_to_ras(affine, space) if told else None)
    return _stacked(placed) if any(affine is not None for affine in placed) else None


def _why_affine_does_not_fit(shape: tuple[int, ...], sizes: Any, images: int, transformed: bool) -> str:
    """Return why the affine of the metadata is not that of these images; "" if it may be.

    MONAI's transforms note what they do, and change the affine; plain operations of PyTorch do neither.
    """
    known = np.ravel(() if sizes is None else sizes)
    if len(known) not in (3, 3 * images):
        return ""
    volumes = known.reshape(-1, 3)
    if len(shape) == 2:  # as `scan[:, 25]`
        slices = bool((volumes > 1).all(1).any())
        return "looks like a slice of a volume, whose affine does not say of which plane" if slices else ""
    if transformed or (volumes == shape).all():
        return ""
    return f"has {shape} voxels and was read with {tuple(volumes[0].tolist())}, and notes no transform of MONAI's"


def _each(value: Any, images: int) -> list[Any]:
    """Return an entry of the metadata for each image: collated, it is a list or an array of them."""
    values = np.ravel(value).tolist() or [None]
    return values if len(values) == images else values[:1] * images


def _to_ras(affine: np.ndarray, space: Any) -> np.ndarray | None:
    """Return an affine (4, 4) to RAS+; None where the space that it leads to, as the metadata call it, is not known."""
    words = str(space).upper().split("-")
    signs = _SPACES.get(words[0] if len(words) == 1 else "".join(word[:1] for word in words))
    if signs is None:
        _log.warning(
            "the MetaTensor's space %r is not known: no affine; give `affine`, to RAS+ millimetres.", str(space)
        )
        return None
    turned: np.ndarray = np.diag(signs) @ affine
    return turned


def _is_made_up(affine: np.ndarray, operations: Iterable[Any]) -> bool:
    """Return whether an affine of unknown origin is MONAI's stand-in, or has come from it.

    MONAI gives the identity to every MetaTensor that is made without an affine, and changes it in every transform.
    """
    first = next((one for one in operations if isinstance(one, Mapping)), None)
    origin: Any = affine if first is None else _origin(first)
    if origin is None:
        _log.warning("the MetaTensor was transformed, and does not say from which affine: no affine; give `affine`.")
        return True
    return np.array_equal(origin, np.eye(4))


def _origin(operation: Mapping[str, Any]) -> Any:
    """Return the affine that MONAI notes before some of its transforms, or None."""
    noted = operation.get("extra_info") or {}
    found = next((noted[name] for name in ("src_affine", "original_affine") if noted.get(name) is not None), None)
    return None if found is None else np.asarray(found, dtype=np.float64)


def _stacked(affines: list[np.ndarray | None]) -> np.ndarray:
    known = [affine for affine in affines if affine is not None]
    if len(known) < len(affines):
        raise ValueError(
            f"{len(affines) - len(known)} of {len(affines)} images have no affine; explain them on their own, or give "
            "`affine`."
        )
    return np.stack(known)


def check_batch(batch: Any) -> None:
    """Raise where `batch` is not what networks can be explained on.

    Raises:
        TypeError: no tensor, or integers.
        ValueError: an empty batch, another number of axes, or values that are not finite.
    """
    if not isinstance(batch, Tensor):
        raise TypeError(f"`image` is a {type(batch).__name__}; expected a tensor (B, C, *S).")
    if not batch.is_floating_point():
        raise TypeError(f"`image` holds {batch.dtype}; networks need floating point: image.float().")
    if batch.ndim not in (4, 5):
        raise ValueError(
            f"`image` has shape {tuple(batch.shape)}; expected (B, C, H, W) or (B, C, D, H, W). "
            "Add a missing batch axis with image[None]."
        )
    if not batch.numel():
        raise ValueError(f"`image` is empty, its shape is {tuple(batch.shape)}.")
    check_finite(batch, "`image`")
