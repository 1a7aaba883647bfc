"""One right explainer, and for each check one that is wrong in just that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from medviz import Explainer, LayerExplainer, hookimpl


@attrs.frozen(eq=False)
class Right(Explainer):
    """The gradient."""

    signed: ClassVar[bool] = True

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target)


class Misspelt(Explainer):
    """check_contract."""

    @hookimpl
    def explane(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target)


@attrs.frozen
class Equal(Explainer):
    """check_contract: attrs compares the values."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target)


@attrs.frozen(eq=False)
class NoDefault(Right):
    """check_parameters."""

    scale: float = attrs.field(kw_only=True)


class FiveMaps(Right):
    """check_shape."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target)[:, :1].repeat(1, 5, *[1] * (probe.inputs.ndim - 2))


class Scaled(Right):
    """check_finite: divides by a deviation that can be 0."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        axes = tuple(range(1, probe.inputs.ndim))
        return probe.input_gradient(target) / probe.inputs.std(axes, keepdim=True)


class Undeclared(Right):
    """check_sign."""

    signed = False


class NeverNegative(Right):
    """check_sign: declares two signs."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target).abs()


@attrs.frozen(eq=False)
class OtherLayer(LayerExplainer):
    """check_layer: reads the automatic one, whatever is named."""

    needs_gradient: ClassVar[bool] = True

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.gradient(None, target).abs().mean(1, keepdim=True)


class Underflows(Right):
    """check_float16: works in the network's precision."""

    signed = False

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target).to(probe.inputs.dtype)
        return gradient * gradient


class Renames(Explainer):
    """check_parameters: keeps its parameter under another name."""

    def __init__(self, scale: float = 2.0) -> None:
        self.factor = scale

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return self.factor * probe.input_gradient(target).abs()


@attrs.frozen(eq=False)
class Unwritable(Right):
    """check_parameters: a tensor is not written in a way that can be read back."""

    kernel: Any = attrs.field(factory=lambda: torch.ones(3))


class SwappedBack(Right):
    """check_planted_signal: swapped and turned, so that two corners stay where they are."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target)
        return gradient.transpose(2, 3).flip(2, 3) if gradient.ndim == 5 else gradient


class LastChannel(Right):
    """check_channels: of the others it knows nothing."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target)[:, -1:]


class NoLayer(Right):
    """check_declarations."""

    needs_layer = True


class Single(Right):
    """check_device_and_dtype."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target).float()


class Numpy(Right):
    """check_bfloat16: NumPy has no such numbers."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        sign = torch.from_numpy(probe.inputs.numpy() > -1e9)
        return probe.input_gradient(target) * sign


class Vandal(Right):
    """check_model_untouched: writes to the parameters."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target)
        for name in probe.module_names():
            for parameter in probe.parameters_of(name).values():
                parameter.mul_(1.5)
        return gradient


class Swallows(Right):
    """check_model_untouched: turns an error of the model into a map."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        try:
            return probe.input_gradient(target)
        except RuntimeError:
            return torch.zeros_like(probe.inputs)


class DoublesTheImage(Right):
    """check_input_untouched."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target)
        probe.inputs.mul_(2)
        return gradient


class Remembers(Right):
    """check_no_state."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target)
        object.__setattr__(self, "last", float(probe.inputs.sum()))
        return gradient


@attrs.frozen(eq=False)
class RemembersInASlot(Right):
    """check_no_state: attrs keeps fields in slots."""

    last: float = attrs.field(default=0.0, init=False)

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target)
        object.__setattr__(self, "last", float(probe.inputs.sum()))
        return gradient


class RemembersAlittle(Right):
    """check_no_state: a few numbers in the middle of many."""

    def __init__(self) -> None:
        object.__setattr__(self, "mean", torch.zeros(64, 64))

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target)
        self.mean[20, 20:30] = gradient.sum()  # type: ignore[attr-defined]
        return gradient


class RemembersTheFirst(Right):
    """check_no_state: the first call decides for all."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        if "first" not in vars(self):
            object.__setattr__(self, "first", [probe.input_gradient(target).clone()])
        return probe.input_gradient(target)


class RemembersInABox(Right):
    """check_no_state: in another object."""

    def __init__(self) -> None:
        object.__setattr__(self, "box", SimpleNamespace(last=None))

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        self.box.last = probe.input_gradient(target)  # type: ignore[attr-defined]
        return probe.input_gradient(target)


class KeepsTheModel(Right):
    """check_no_state: from the first call on, and so alive."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        with probe.model() as model:
            object.__setattr__(self, "model", model)
        return probe.input_gradient(target)


class Obliging(Right):
    """check_bad_input: makes a map of anything."""

    def __call__(self, model: Any, image: Any, target: Any = None, **options: Any) -> Any:
        try:
            return super().__call__(model, image, target, **options)
        except TypeError:
            return super().__call__(model, image.float(), target, **options)


class FlatOnly(Right):
    """check_ndim: says that it works in 2-D, and makes a map of a volume nevertheless."""

    ndim = (2,)

    def __call__(self, model: Any, image: Any, target: Any = None, **options: Any) -> Any:
        return Right()(model, image, target, **options) if image.ndim == 5 else super().__call__(model, image, target)


class OverTheBatch(Right):
    """check_batch."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target)
        return gradient / gradient.abs().amax().clamp(min=1e-30)


class ByPlace(Right):
    """check_permutation."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target)
        return gradient * torch.arange(1, len(gradient) + 1).reshape(-1, *[1] * (gradient.ndim - 1))


class Global(Right):
    """check_repeatable: draws from the global generator."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target) * (1 + 0.1 * torch.rand(probe.inputs.shape[1:]))


@attrs.frozen(eq=False)
class NotRandom(Right):
    """check_stochastic: no chance in it."""

    stochastic: ClassVar[bool] = True
    seed: int | None = None


class NoSeed(Right):
    """check_stochastic: no seed."""

    stochastic = True


@attrs.frozen(eq=False)
class OtherSeed(Right):
    """check_stochastic: what is recorded is not what was used."""

    stochastic: ClassVar[bool] = True
    seed: int | None = None
    salt: list[int] = attrs.field(factory=lambda: [0], repr=False)

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        self.salt[0] += 1
        source = torch.Generator().manual_seed((self.seed or 0) + self.salt[0])
        return probe.input_gradient(target) * (1 + 0.1 * torch.rand(probe.inputs.shape[1:], generator=source))


class FirstTarget(Right):
    """check_shared_pass: keeps the first target's map for the others."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.remember("map", lambda: probe.input_gradient(target))


class AnyTarget(Right):
    """check_target."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(lambda out: out.sum(1))


class HasTarget(Right):
    """check_target: declares that it has none."""

    uses_target = False


class ClassesOnly(Right):
    """check_callable_target."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target.classes)


class WithImage(Right):
    """check_constant_model."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target) + 0.01 * probe.inputs


class Mirrored(Right):
    """check_planted_signal."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target).flip(-1)


class Swapped(Right):
    """check_planted_signal: the first two axes of a volume are swapped."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target)
        return gradient.transpose(2, 3) if gradient.ndim == 5 else gradient


class TurnedOver(Right):
    """check_planted_signal: swapped and flipped, which leaves two corners where they are."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target).transpose(-1, -2).flip(-1, -2)


class NormalGradient(Right):
    """check_scale: divided by the maximum of each image."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target)
        axes = tuple(range(1, gradient.ndim))
        return gradient / gradient.abs().amax(axes, keepdim=True).clamp(min=1e-30)


class MinMax(Right):
    """check_scale: from 0 to 1 in each image."""

    signed = False

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target).abs()
        axes = tuple(range(1, gradient.ndim))
        low, high = gradient.amin(axes, keepdim=True), gradient.amax(axes, keepdim=True)
        return (gradient - low) / (high - low).clamp(min=1e-30)


class HasScale(Right):
    """check_scale: declares that it has none."""

    scale_free = True


class NextVoxel(Right):
    """check_planted_voxel: shifted by one along the last axis."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target).roll(1, -1)


class NextSlice(Right):
    """check_planted_voxel: shifted by one along the first axis, back, and cut off there."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target)
        return torch.cat([gradient[:, :, 1:], torch.zeros_like(gradient[:, :, :1])], 2)


class NextBlock(Right):
    """check_planted_voxel: blocks of three voxels, that begin one too late."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        gradient = probe.input_gradient(target)
        block = torch.arange(gradient.shape[-1]) // 3
        means = torch.stack([gradient[..., block == number].sum(-1) for number in block.unique()], -1)
        return means[..., block].roll(1, -1)


class TurnedRound(Right):
    """check_direction."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return -probe.input_gradient(target)


class OtherChannel(Right):
    """check_channels."""

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        return probe.input_gradient(target).flip(1)


class Edges(Right):
    """check_randomised_model: shows the image, whatever the network has learned."""

    uses_target = False

    @hookimpl
    def explain(self, probe: Any) -> Tensor:
        return probe.inputs


class Empty(Right):
    """check_randomised_model: shows nothing."""

    @hookimpl
    def explain(self, probe: Any) -> Tensor:
        return torch.zeros_like(probe.inputs)


class List(Right):
    """check_shape: another kind of result."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return [super().__call__(*args, **options)]


EXPLAINERS: dict[str, list[Explainer]] = {
    "check_contract": [Misspelt(), Equal()],
    "check_parameters": [NoDefault(scale=1.0), Renames(), Unwritable()],
    "check_shape": [FiveMaps(), List()],
    "check_finite": [Scaled()],
    "check_sign": [Undeclared(), NeverNegative()],
    "check_layer": [OtherLayer()],
    "check_declarations": [NoLayer()],
    "check_device_and_dtype": [Single()],
    "check_bfloat16": [Numpy()],
    "check_float16": [Underflows()],
    "check_model_untouched": [Vandal(), Swallows()],
    "check_input_untouched": [DoublesTheImage()],
    "check_no_state": [
        Remembers(),
        RemembersInASlot(),
        RemembersAlittle(),
        RemembersTheFirst(),
        RemembersInABox(),
        KeepsTheModel(),
    ],
    "check_bad_input": [Obliging()],
    "check_ndim": [FlatOnly()],
    "check_batch": [OverTheBatch()],
    "check_permutation": [ByPlace()],
    "check_repeatable": [Global()],
    "check_stochastic": [NotRandom(), NoSeed(), OtherSeed()],
    "check_shared_pass": [FirstTarget()],
    "check_target": [AnyTarget(), HasTarget()],
    "check_callable_target": [ClassesOnly()],
    "check_constant_model": [WithImage()],
    "check_scale": [NormalGradient(), MinMax(), HasScale()],
    "check_planted_signal": [Mirrored(), Swapped(), TurnedOver(), SwappedBack()],
    "check_planted_voxel": [NextVoxel(), NextSlice(), NextBlock()],
    "check_direction": [TurnedRound()],
    "check_channels": [OtherChannel(), LastChannel()],
    "check_randomised_model": [Edges(), Empty()],
}
