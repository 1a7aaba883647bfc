"""One right occluder, reader and wrapper, and for each check one that is wrong in just that."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import torch
from torch import Tensor

import medviz
from medviz import Attribution, Occluder, Reader, Wrapper, hookimpl


@attrs.frozen(eq=False)
class RightOccluder(Occluder):
    """Zeros."""

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        return torch.zeros_like(patches)


class AlwaysSingle(RightOccluder):
    """check_shape."""

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        return torch.zeros(patches.shape)


class Standardised(RightOccluder):
    """check_finite."""

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        return (patches - patches.mean()) / patches.std()


class InPlace(RightOccluder):
    """check_only_the_patch."""

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        return patches.zero_()


class Glass(RightOccluder):
    """check_hides."""

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        return patches.clone()


class FlatOnly(RightOccluder):
    """check_hides: in 3-D it does nothing."""

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        return torch.zeros_like(patches) if patches.ndim == 4 else patches.clone()


class OneVoxel(RightOccluder):
    """check_hides."""

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        hidden = patches.clone()
        hidden.flatten(1)[:, 0] += 1
        return hidden


class DrawnWeights(RightOccluder):
    """check_repeatable: the weights."""

    @hookimpl
    def blend_weight(self, mask_size: tuple[int, ...]) -> Tensor:
        return torch.rand(mask_size)


class MeanOfAll(RightOccluder):
    """check_batch."""

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        return patches.mean().expand_as(patches).clone()


class Dice(RightOccluder):
    """check_repeatable."""

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        return torch.rand_like(patches)


class SeedlessOccluder(RightOccluder):
    """check_stochastic."""

    stochastic = True


class NegativeWeight(RightOccluder):
    """check_weight."""

    @hookimpl
    def blend_weight(self, mask_size: tuple[int, ...]) -> Tensor:
        return torch.ones(mask_size) * 0.5 - 1


@attrs.frozen(eq=False)
class RightWrapper(Wrapper):
    """Goes around everything and changes nothing."""

    @hookimpl(wrapper=True)
    def explain(self) -> Any:
        return (yield)

    @hookimpl(wrapper=True)
    def occlude(self) -> Any:
        return (yield)

    @hookimpl(wrapper=True)
    def blend_weight(self) -> Any:
        return (yield)

    @hookimpl(wrapper=True)
    def render(self, attribution: Attribution) -> Any:
        return (yield)

    @hookimpl(wrapper=True)
    def write(self) -> Any:
        return (yield)

    @hookimpl(wrapper=True)
    def read(self) -> Any:
        return (yield)


class Loses(RightWrapper):
    """check_result: forgets to return."""

    @hookimpl(wrapper=True)
    def render(self) -> Any:
        yield


class LosesWeights(RightWrapper):
    """check_result: around an optional hook, where nothing is an answer too."""

    @hookimpl(wrapper=True)
    def blend_weight(self) -> Any:
        yield


class YieldsTwice(RightWrapper):
    """check_result."""

    @hookimpl(wrapper=True)
    def render(self, attribution: Attribution) -> Any:
        yield
        return (yield)


class Hushes(RightWrapper):
    """check_errors_pass."""

    @hookimpl(wrapper=True)
    def write(self) -> Any:
        try:
            return (yield)
        except RuntimeError:
            return "somewhere"


@attrs.frozen(eq=False)
class RightReader(Reader):
    """Arrays."""

    suffixes: ClassVar[tuple[str, ...]] = (".npy",)

    @hookimpl
    def read(self, path: Path) -> medviz.Image:
        with path.open("rb") as file:
            return medviz.Image(self.turned(np.load(file, allow_pickle=False)), path=path)

    def turned(self, array: np.ndarray) -> np.ndarray:
        return array


class UpperCase(RightReader):
    """check_suffixes."""

    suffixes = (".NPY",)


class Transposed(RightReader):
    """check_geometry: other values."""

    def turned(self, array: np.ndarray) -> np.ndarray:
        return array.swapaxes(1, 2)


class IdentityAffine(RightReader):
    """check_geometry: an affine that the file does not hold."""

    @hookimpl
    def read(self, path: Path) -> medviz.Image:
        return medviz.Image(super().read(path).data, np.eye(4), path)


class NoAffine(medviz.get_reader("medviz-xai/nifti").__class__):  # type: ignore[misc]
    """check_geometry: a scan without its place."""

    @hookimpl
    def read(self, path: Path) -> medviz.Image:
        return medviz.Image(super().read(path).data, None, path)


class Repairs(RightReader):
    """check_damaged_file."""

    @hookimpl
    def read(self, path: Path) -> medviz.Image:
        try:
            return super().read(path)
        except (ValueError, EOFError):
            return medviz.Image(torch.zeros(1, 2, 2), path=path)


class MakesUp(RightReader):
    """check_missing_file."""

    def __call__(self, path: Any, **options: Any) -> medviz.Image:
        if not Path(path).exists():
            return medviz.Image(torch.zeros(1, 2, 2))
        return super().__call__(path, **options)


OCCLUDERS: dict[str, list[Occluder]] = {
    "check_shape": [AlwaysSingle()],
    "check_finite": [Standardised()],
    "check_only_the_patch": [InPlace()],
    "check_hides": [Glass(), FlatOnly(), OneVoxel()],
    "check_batch": [MeanOfAll()],
    "check_repeatable": [Dice(), DrawnWeights()],
    "check_stochastic": [SeedlessOccluder()],
    "check_weight": [NegativeWeight()],
}
WRAPPERS: dict[str, list[Wrapper]] = {
    "check_result": [Loses(), LosesWeights(), YieldsTwice()],
    "check_errors_pass": [Hushes()],
}
READERS: dict[str, list[Reader]] = {
    "check_suffixes": [UpperCase()],
    "check_geometry": [Transposed(), IdentityAffine(), NoAffine()],
    "check_damaged_file": [Repairs()],
    "check_missing_file": [MakesUp()],
}
