"""What is explained: from a network's output to one score for each image.

A target is *fixed* on the clean output before anything else happens: the predicted class, the predicted mask. From then
on it means the same for every perturbed copy of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from medviz.tensors import as_tensor
from medviz.validators import as_python, of_type

Score = Callable[[Tensor, Tensor], Tensor]


@attrs.frozen(eq=False)
class FixedTarget:
    """A target that no longer depends on the output: what explainers receive.

    Args:
        label: as it was asked for, for people: "predicted", "class 2", …
        score: from an output `(M, …)` and the image that each row belongs to, `(M,)`, to scores `(M,)`.
        classes: the class of each image `(B,)`, on the CPU; None where the target is not one logit.
        sign: −1 where the score is the negative of that logit.
        is_class: False where that logit is a quantity, and no class.
    """

    label: str
    score: Score
    classes: Tensor | None = None
    sign: int = 1
    is_class: bool = True

    def take(self, index: Tensor, images: int) -> FixedTarget:
        """Return the target for some of the images that it was fixed for."""
        if self.classes is not None and len(self.classes) != images:
            raise ValueError(f"`target` {self.label!r} was fixed for {len(self.classes)} images; got {images}.")
        classes = None if self.classes is None else self.classes[index]
        return attrs.evolve(self, score=lambda out, rows: self.score(out, index.to(rows.device)[rows]), classes=classes)


@runtime_checkable
class Target(Protocol):
    """Anything with `label` and `fix` is a target; subclassing is not needed."""

    @property
    def label(self) -> str:
        """What is explained, for people and file names; known before the network runs."""

    def fix(self, output: Tensor) -> FixedTarget:
        """Fix the target on the clean output `(B, N)` or `(B, N, *S)`.

        Raises:
            ValueError: the target does not suit the output.
        """


TargetLike = Target | FixedTarget | int | Tensor | Callable[[Tensor], Tensor] | None | Sequence[Any]


def as_target(target: Any) -> Target | FixedTarget:
    """Return the target that a user's `target` means: None, an int, a tensor `(B,)`, a callable or a target.

    Raises:
        TypeError: something else.
    """
    if isinstance(target, type) and hasattr(target, "fix"):
        raise TypeError(f"`target` is the class {target.__name__}; write {target.__name__}(…).")
    if isinstance(target, FixedTarget | Target):
        return target
    if target is None:
        return PredictedTarget()
    if isinstance(target, bool | str | int | Tensor) or hasattr(target, "__array__"):
        return ClassTarget(target)
    if callable(target):
        return CallableTarget(target)
    raise TypeError(
        f"`target` is a {type(target).__name__}; expected None, an int, a tensor (B,), a callable from the output to "
        "(B,), or a target such as medviz.SegmentationTarget. A list means several targets."
    )


def as_targets(target: Any) -> list[Target | FixedTarget]:
    """Return the targets that are meant: several where `target` is a list or tuple, else one.

    Raises:
        ValueError: an empty list.
    """
    if not isinstance(target, list | tuple):
        return [as_target(target)]
    if not target:
        raise ValueError("`target` is an empty list; None explains the predicted class.")
    return [as_target(one) for one in target]


def fix(target: Any, output: Tensor) -> FixedTarget:
    """Return `target`, fixed on the clean output."""
    target = as_target(target)
    return target if isinstance(target, FixedTarget) else target.fix(output)


def take(target: Target | FixedTarget, index: Tensor, images: int) -> Target | FixedTarget:
    """Return `target` for the images `index` of all `images`; one that holds something for each image has `take`."""
    taker = getattr(target, "take", None)
    return target if taker is None else taker(index, images)


@attrs.frozen(eq=False)
class PredictedTarget:
    """The class that is predicted for each clean image; for a single logit `(B, 1)`, the logit, whatever its sign."""

    label: str = attrs.field(default="predicted", init=False)

    def fix(self, output: Tensor) -> FixedTarget:
        """Take the argmax over the classes of each image."""
        _need_logits(output, "target=None")
        return _one_logit(self.label, output.argmax(1), output)


def named(classes: Sequence[int]) -> str:
    """Return how classes are called: "class 2", or "classes 0 2 1" where there is one for each of several images."""
    return f"class{'es' * (len(classes) > 1)} {' '.join(map(str, classes))}"


def _as_classes(index: Any) -> int | Tensor:
    index = as_python(index)
    if isinstance(index, int) and not isinstance(index, bool):
        return index
    if not isinstance(index, Tensor) and not hasattr(index, "__array__"):
        raise TypeError(f"`target` {index!r} is a {type(index).__name__}; a class is named by its index, an int.")
    classes = as_tensor(index)
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool or classes.ndim > 1:
        raise TypeError(f"`target` classes must be integers (B,); got {classes.dtype} {tuple(classes.shape)}.")
    return classes.detach().cpu().long()


@attrs.frozen(eq=False)
class ClassTarget:
    """One class for all images (an int), or one for each (a tensor `(B,)`)."""

    index: int | Tensor = attrs.field(converter=_as_classes)

    @property
    def label(self) -> str:
        """Such as "class 2", or "classes 0 2 1"."""
        return named(as_tensor(self.index).reshape(-1).tolist())

    def take(self, index: Tensor, images: int) -> ClassTarget:
        """Return the target for some of the images."""
        classes = as_tensor(self.index)
        if not classes.ndim:
            return self
        if len(classes) != images:
            raise ValueError(
                f"`target` names {len(classes)} classes for {images} images; a tensor holds one for each image, a list "
                "means several targets."
            )
        return ClassTarget(classes[index])

    def fix(self, output: Tensor) -> FixedTarget:
        """Check that there is a class for each image and that each exists."""
        _need_logits(output, "a class")
        every = torch.arange(len(output), device="cpu")
        classes = as_tensor(self.take(every, len(output)).index)
        return _one_logit(self.label, classes.expand(len(output)), output)


@attrs.frozen(eq=False)
class BinaryTarget:
    """The logit of a network with one output: for the positive answer, or its negative for the negative one."""

    positive: bool = attrs.field(default=True, validator=of_type(bool))

    @property
    def label(self) -> str:
        """Either "positive" or "negative"."""
        return "positive" if self.positive else "negative"

    def fix(self, output: Tensor) -> FixedTarget:
        """Take the one logit."""
        if output.ndim != 2 or output.shape[1] != 1:
            raise ValueError(f"BinaryTarget needs an output (B, 1); this network's is {tuple(output.shape)}.")
        only = torch.zeros(len(output), dtype=torch.long, device="cpu")
        return _one_logit(self.label, only, output, 1 if self.positive else -1)


@attrs.frozen(eq=False)
class RegressionTarget:
    """The value number `index` of a network that predicts quantities, such as an age."""

    index: int = attrs.field(default=0, converter=as_python, validator=of_type(int))

    @property
    def label(self) -> str:
        """Such as "value 0"."""
        return f"value {self.index}"

    def fix(self, output: Tensor) -> FixedTarget:
        """Take one output value."""
        _need_logits(output, "RegressionTarget")
        column = torch.tensor(self.index, device="cpu").expand(len(output))
        return attrs.evolve(_one_logit(self.label, column, output), is_class=False)


@attrs.frozen(eq=False)
class CallableTarget:
    """Any differentiable function of the output, from `(M, …)` to `(M,)`; it must accept any number of rows."""

    function: Callable[[Tensor], Tensor]

    @property
    def label(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", type(self.function).__name__).strip("<>")

    def fix(self, output: Tensor) -> FixedTarget:
        """Check the function's result on the clean output."""

        def score(out: Tensor, index: Tensor) -> Tensor:
            result = self.function(out)
            if not isinstance(result, Tensor) or result.shape != (len(out),):
                got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
                raise ValueError(
                    f"the target function {self.label!r} returned {got} for an output {tuple(out.shape)}; "
                    f"expected one score for each row, ({len(out)},)."
                )
            return result

        score(output, torch.arange(len(output), device=output.device))
        return FixedTarget(self.label, score)


def _one_logit(label: str, classes: Tensor, output: Tensor, sign: int = 1) -> FixedTarget:
    """Build the target that reads one logit of each image, from (B,) classes."""
    classes = check_classes(classes.cpu(), output)

    def score(out: Tensor, index: Tensor) -> Tensor:
        column = classes.to(out.device)[index.to(out.device)]
        return sign * out.gather(1, column[:, None])[:, 0]

    return FixedTarget(label, score, classes, sign)


def check_classes(classes: Tensor, output: Tensor) -> Tensor:
    """Return `classes`.

    Raises:
        ValueError: one of them is not among the output's.
    """
    number = output.shape[1]
    for c in classes.tolist():
        if number == 1 and c != 0:
            raise ValueError(
                f"`target` {c} is out of range: the network has one output, 0. Take None for the positive answer, and "
                "medviz.BinaryTarget(positive=False) for the negative one."
            )
        if not 0 <= c < number:
            raise ValueError(f"`target` {c} is out of range: the network has {number} outputs, 0 to {number - 1}.")
    return classes


def _need_logits(output: Tensor, what: str) -> None:
    if output.ndim > 2:
        raise ValueError(
            f"{what} has no meaning for a segmentation output {tuple(output.shape)}; say which channel, and where: "
            "medviz.SegmentationTarget(channel, mask=None), in a shell --target segmentation:CHANNEL."
        )
