"""The result: one map for each image, raw, on the image's own grid, with where it came from."""

from __future__ import annotations

import json
import operator
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import attrs
import numpy as np
import torch
from torch import Tensor

from medviz.files import atomic
from medviz.image import as_affine, spacing_of
from medviz.targets import named
from medviz.tensors import as_tensor, numpy_of, wide

_FORMAT = 1
_SHOWN = 4  # images of a batch in a notebook
_ARRAYS = ("values", "image", "raw", "affine")
_OF_EACH_IMAGE = ("values", "image", "classes", "scores", "raw", "affine", "index")
# what NumPy and zipfile raise, each for another kind of damage
_DAMAGE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(zipfile.BadZipFile, zlib.error),
)


def _maps(values: Any) -> Tensor:
    """Return maps as a tensor of float32 or float64."""
    values = as_tensor(values)
    if values.is_complex():
        raise TypeError(f"a map holds real numbers; got {values.dtype}: take its magnitude or its real part first.")
    return wide(values)


@attrs.frozen(eq=False, repr=False)
class Attribution:
    """What a method says of B images; high means important.

    Args:
        values: raw, unscaled `(B, K, *S)` on the images' grid, float32 (float64 for a float64 image), on the CPU. K is
            1, or the number of channels for maps of each channel.
        image: the images `(B, C, *S)` as they were given, on the CPU.
        signed: False: values are ≥ 0. True: negative values speak against the target.
        target: what was explained, as it was asked for: "predicted", "class 2", …
        classes: the class of each image, or None where the target is not a class, or the network has a single output.
        scores: the target's score of each image, raw network output.
        raw: the values on the method's own grid `(B, K, *s)`, before they were resized.
        affine: (B, 4, 4), from voxel indices to RAS+ millimetres, or None.
        index: the position of each image in the batch that was explained.
        provenance: method, parameters, package, version, layers, seed, how the model was run, versions: plain data.

    Raises:
        TypeError: complex values.
        ValueError: what is given does not fit together.
    """

    values: Tensor = attrs.field(converter=_maps)
    image: Tensor = attrs.field(converter=as_tensor)
    signed: bool = False
    target: str = ""
    classes: tuple[int, ...] | None = None
    scores: tuple[float, ...] | None = None
    raw: Tensor | None = attrs.field(default=None, converter=attrs.converters.optional(_maps))
    affine: np.ndarray | None = None
    index: tuple[int, ...] = ()
    provenance: dict[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if self.values.ndim < 3:
            raise ValueError(f"`values` has the shape {tuple(self.values.shape)}; expected (B, K, *S).")
        if self.values.ndim != self.image.ndim or self.values.shape[2:] != self.image.shape[2:]:
            raise ValueError(
                f"`values` {tuple(self.values.shape)} and `image` {tuple(self.image.shape)} do not share one grid."
            )
        if len(self.values) != len(self.image):
            raise ValueError(f"{len(self.values)} maps for {len(self.image)} images.")
        if self.raw is not None and (len(self.raw), self.raw.ndim) != (len(self), self.values.ndim):
            raise ValueError(
                f"`raw` {tuple(self.raw.shape)} and `values` {tuple(self.values.shape)} are not the same maps on two "
                "grids: B or the number of axes differs."
            )
        for name in ("classes", "scores", "index"):
            held = getattr(self, name)
            if held is not None and len(held) not in (0, len(self)):
                raise ValueError(f"`{name}` holds {len(held)} values for {len(self)} images; expected one for each.")
        object.__setattr__(self, "affine", as_affine(self.affine, (len(self), 4, 4)))
        object.__setattr__(self, "index", self.index or tuple(range(len(self))))

    def __repr__(self) -> str:
        method, target = self.method or "no method", self.target or "no target"
        return f"<Attribution: {method}, {target}, {tuple(self.values.shape)}{', affine' * (self.affine is not None)}>"

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: SupportsIndex) -> Attribution:
        """Return the attribution of one image; B stays, as 1."""
        try:
            place = range(len(self))[operator.index(i)]
        except (TypeError, IndexError):
            raise IndexError(f"there is no image {i!r} among {len(self)}.") from None
        one = slice(place, place + 1)
        held = {name: getattr(self, name) for name in _OF_EACH_IMAGE}
        parts = {name: value[one] for name, value in held.items() if value is not None}
        if self.classes and self.target == named(self.classes):
            parts["target"] = named(parts["classes"])
        return attrs.evolve(self, **parts)

    @property
    def method(self) -> str:
        """The name of the explainer, or an empty string."""
        return str(self.provenance.get("method", ""))

    @property
    def ndim(self) -> int:
        """The number of spatial axes."""
        return self.values.ndim - 2

    @property
    def spacing(self) -> tuple[tuple[float, ...], ...] | None:
        """The voxel size in mm along each spatial axis, for each image; None without an affine."""
        return None if self.affine is None else tuple(spacing_of(a, self.ndim) for a in self.affine)

    def normalized(
        self,
        scale: Literal["max", "percentile"] = "max",
        per: Literal["image", "batch"] = "image",
        vmax: float | None = None,
    ) -> Tensor:
        """Return the values divided so that they lie in [0, 1], or in [-1, 1] where they are signed.

        It only divides: zero stays zero, the order of values stays, a map of zeros stays a map of zeros.

        Args:
            scale: what becomes 1: the largest magnitude ("max"), or the 99th percentile of the magnitudes that are
                not zero ("percentile"; what lies above is clipped).
            per: one divisor for each image, or one for the whole batch, so that images can be compared.
            vmax: the magnitude that becomes 1, instead of `scale` and `per`; what lies above is clipped.

        Returns:
            `(B, K, *S)`.
        """
        if scale not in ("max", "percentile") or per not in ("image", "batch"):
            raise ValueError(f"`scale` is 'max' or 'percentile' and `per` 'image' or 'batch'; got {scale!r}, {per!r}.")
        if vmax is not None and not 0 < vmax < float("inf"):
            raise ValueError(f"`vmax` must be positive and finite; got {vmax!r}.")
        rows = self.values.reshape(len(self) if per == "image" else 1, -1).abs()
        if vmax is not None:
            top = torch.full((len(rows),), vmax, dtype=rows.dtype, device="cpu")
        elif scale == "max":
            top = rows.amax(1)
        else:
            top = torch.stack([_percentile(row[row > 0]) for row in rows])
        top = torch.where(top > 0, top, 1).reshape(-1, *[1] * (self.values.ndim - 1))
        return (self.values / top).clamp(-1 if self.signed else 0, 1)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write everything into a compressed `.npz` without pickled objects; `Attribution.load` reads it back."""
        held = {name: value for name in _ARRAYS if (value := getattr(self, name)) is not None}
        arrays: dict[str, Any] = {n: numpy_of(v) if isinstance(v, Tensor) else v for n, v in held.items()}
        meta = {
            "format": _FORMAT,
            **{n: getattr(self, n) for n in ("signed", "target", "classes", "scores", "index", "provenance")},
        }
        if short := [name for name, value in held.items() if value.dtype == torch.bfloat16]:
            meta["bfloat16"] = short
        path = Path(path).expanduser()
        with atomic(path, overwrite=overwrite) as part, open(part, "wb") as file:
            np.savez_compressed(file, meta=np.array(json.dumps(meta)), **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Attribution:
        """Read what `save` wrote.

        Raises:
            OSError: there is no such file, or it cannot be opened.
            ValueError: the file is not one that `save` wrote.
        """
        try:
            with open(Path(path).expanduser(), "rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS if name in file.files}
                meta = json.loads(str(file["meta"]))
            if (number := meta.pop("format")) == _FORMAT:
                for name in ("classes", "scores", "index"):
                    meta[name] = None if meta[name] is None else tuple(meta[name])
                tensors: dict[str, Any] = {
                    name: torch.from_numpy(array) for name, array in arrays.items() if name != "affine"
                }
                for name in meta.pop("bfloat16", ()):
                    tensors[name] = tensors[name].bfloat16()
                return cls(**tensors, affine=arrays.get("affine"), **meta)
        except _DAMAGE as err:
            if isinstance(err, OSError) and err.errno is not None:  # not the content, but the place
                raise
            raise ValueError(f"{str(path)!r} is not a saved attribution (.npz), or is damaged.") from err
        raise ValueError(f"{str(path)!r} was saved by another version of medviz: format {number}, not {_FORMAT}.")

    def _repr_png_(self) -> bytes:
        from medviz.rendering import Rendering, default_renderer

        renderer = default_renderer()
        drawn: Any = [renderer(self[i]) for i in range(min(len(self), _SHOWN))]
        size = np.max([one.frames.shape[1:3] for one in drawn], axis=0)
        room = [
            [(0, 0), *((0, most - n) for most, n in zip(size, one.frames.shape[1:3], strict=True)), (0, 0)]
            for one in drawn
        ]
        frames = [np.pad(one.frames, around) for one, around in zip(drawn, room, strict=True)]
        return Rendering(np.concatenate(frames))._repr_png_()


def _percentile(magnitudes: Tensor) -> Tensor:
    """The 99th percentile, 0 of nothing. `torch.quantile` refuses more than 16 million values; `kthvalue` does not."""
    if not len(magnitudes):
        return magnitudes.new_zeros(())
    return magnitudes.kthvalue(max(1, round(0.99 * len(magnitudes)))).values
