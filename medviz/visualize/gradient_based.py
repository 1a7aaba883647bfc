"""Gradients with respect to the image, as documented."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from medviz.explainers.guidedbackprop import GuidedBackprop
from medviz.explainers.guidedbackpropsmooth import GuidedBackpropSmooth
from medviz.explainers.smoothgrad import SmoothGrad as SmoothGradExplainer
from medviz.explainers.smoothing import SmoothExplainer
from medviz.explainers.vanillagrad import VanillaGrad as VanillaGradExplainer
from medviz.hookspecs import Explainer
from medviz.image import like
from medviz.visualize.model_with_hooks import ModelWithHooks

__all__ = ["GuidedBackpropGrad", "GuidedBackpropSmoothGrad", "SmoothGrad", "VanillaGrad"]


class VanillaGrad:
    """The gradient of a class score with respect to each voxel of each channel.

    Source: Simonyan et al. 2013, "Deep Inside Convolutional Networks", https://arxiv.org/abs/1312.6034; the explainer
    `vanillagrad`. `self.model` is the model, and may be set.

    Args:
        model: the model, or a `ModelWithHooks` around it.
    """

    verbose = False

    def __init__(self, model: nn.Module | ModelWithHooks) -> None:
        self._model: ModelWithHooks
        self._model = model if isinstance(model, ModelWithHooks) else ModelWithHooks(model, (), register_backward=True)

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        return self._model.model

    @model.setter
    def model(self, m: nn.Module | ModelWithHooks) -> None:
        if isinstance(m, ModelWithHooks):
            self._model = m
        else:
            self._model.model = m

    def _method(self) -> Explainer:
        return VanillaGradExplainer()

    def get_grad(self, x: Tensor, index: Any, retain_graph: bool = True, **kwargs: Any) -> Tensor:
        """Return what calling this returns; `retain_graph` has no effect: no graph is left to be kept."""
        return like(self._model.explain(self._method(), x, index, kwargs, self.verbose), x)

    def __call__(self, x: Tensor, index: Any = None, **kwargs: Any) -> Tensor:
        """Return the values `(B, C, *S)`, on the device of `x`; neither `x` nor the model is changed.

        Args:
            x: images `(B, C, *S)`.
            index: the class: an int, or one for each image `(B,)`, or any target; None: the argmax of each clean image.
            kwargs: what the model takes beside the image.
        """
        return self.get_grad(x, index, **kwargs)


class SmoothGrad(VanillaGrad):
    """The gradients of noisy copies of the image, averaged.

    Source: Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", https://arxiv.org/abs/1706.03825; the
    explainer `smoothgrad`. The noise does not come from torch's global generator.

    Args:
        model: the model.
        stdev_spread: standard deviation of the noise, as a fraction of each image's range of values.
        n_samples: noisy copies of each image.
        magnitude: True: the root of the mean square of the gradients; False: their mean.
        verbose: show a bar where stderr is a terminal.
        seed: of the noise; None: a fresh one in each call.
    """

    _statistics: type[SmoothExplainer] = SmoothGradExplainer

    def __init__(
        self,
        model: nn.Module | ModelWithHooks,
        stdev_spread: float = 0.15,
        n_samples: int = 25,
        magnitude: bool = True,
        verbose: bool = True,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(model)
        self.stdev_spread = stdev_spread
        self.n_samples = n_samples
        self.magnitude = magnitude
        self.verbose = verbose
        self.seed = seed

    def _method(self) -> Explainer:
        statistic: Literal["magnitude", "mean"] = "magnitude" if self.magnitude else "mean"
        return self._statistics(self.stdev_spread, self.n_samples, statistic, seed=self.seed)


class GuidedBackpropGrad(VanillaGrad):
    """The gradient, of which rectifiers let through only what is positive on both sides.

    Source: Springenberg et al. 2014, "Striving for Simplicity: The All Convolutional Net",
    https://arxiv.org/abs/1412.6806; the explainer `guidedbackprop`.
    """

    def _method(self) -> Explainer:
        return GuidedBackprop()


class GuidedBackpropSmoothGrad(SmoothGrad):
    """`GuidedBackpropGrad` of noisy copies of the image, averaged; the explainer `guidedbackpropsmooth`."""

    _statistics = GuidedBackpropSmooth
