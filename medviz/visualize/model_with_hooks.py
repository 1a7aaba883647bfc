"""The documented wrapper around a model, through which every documented call reaches the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import attrs
import torch
from torch import Tensor, nn

from medviz.attribution import Attribution
from medviz.hookspecs import Explainer
from medviz.model_arguments import ModelArguments
from medviz.pipeline import explain
from medviz.probe import Probe
from medviz.probe.layers import module_of
from medviz.probe.models import unwrap
from medviz.targets import FixedTarget
from medviz.tensors import as_tensor

LayerId = str | Callable[[nn.Module], nn.Module]


class ModelWithHooks:
    """A model and the names of the layers that are looked at.

    Calling it runs the model in eval mode, forward and backward, and leaves it as it was: hooks are on the model
    during the call only. What is returned and kept has no graph. The maps of `CAM` and `GradCAM` keep nothing here.

    Attributes:
        model: the model as it was given.
        target_layers: the names of the layers.
        activations: what the layers returned in the last call, by name.
        gradients: the gradients of the score with respect to that, by name.
        score: the score of each image, `(B,)`.
        class_idx: the class that was explained last: as it was given, or the argmax `(B,)`.

    Args:
        nn_module: the model to be wrapped.
        target_layer_names: the names of the layers; also a callable, such as `lambda m: m.layer4`.
        register_forward: whether to return what the layers returned.
        register_backward: whether to return the gradients at the layers.

    Raises:
        TypeError: `nn_module` is no module.
        ValueError: a layer that is not in the model.
    """

    def __init__(
        self,
        nn_module: nn.Module,
        target_layer_names: LayerId | Sequence[LayerId],
        register_forward: bool = False,
        register_backward: bool = False,
    ) -> None:
        unwrap(nn_module)  # refuses what is no model
        several = isinstance(target_layer_names, Sequence) and not isinstance(target_layer_names, str)
        names: Any = target_layer_names if several else [target_layer_names]
        self.model = nn_module
        self.target_layers = tuple(self._name(layer) for layer in names)
        self.register_forward = register_forward
        self.register_backward = register_backward
        self.activations: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.score: Tensor | None = None
        self.class_idx: Any = None

    def _name(self, layer: LayerId) -> str:
        """Return the layer's name in the network itself: a wrapper around it may have put a prefix in front."""
        module, modules = self.get_layer(layer), dict(unwrap(self.model).named_modules(remove_duplicate=False))
        names = [name for name, found in modules.items() if found is module]
        if not names:
            raise ValueError(f"`target_layers` {layer!r} leads to a module that is not in the model.")
        return layer if isinstance(layer, str) and layer in names else names[0]

    def get_layer(self, layer_id: LayerId) -> nn.Module:
        """Return a module of the model.

        Args:
            layer_id: its dotted name, or a callable: `lambda m: m.fc` gives `self.model.fc`.

        Raises:
            ValueError: no module has that name.
            TypeError: neither a name nor a callable that returns a module.
        """
        if isinstance(layer_id, str):
            modules = dict(self.model.named_modules(remove_duplicate=False))
            return modules[layer_id] if layer_id in modules else module_of(unwrap(self.model), layer_id)
        module = layer_id(self.model) if callable(layer_id) else layer_id
        if not isinstance(module, nn.Module):
            raise TypeError(f"a layer is a name or a callable that returns a module; got {module!r}.")
        return module

    def class_score(self, logits: Tensor, class_idx: Any) -> Tensor:
        """Return the score of each image, `(B,)`; a subclass may say something else, also for other outputs.

        Args:
            logits: the model's output `(B, N, …)`.
            class_idx: one class, or one for each image, `(B,)`.
        """
        classes = torch.as_tensor(class_idx, device=logits.device).expand(len(logits))
        return logits.gather(1, classes[:, None])[:, 0]

    def target(self, class_idx: Any) -> Any:
        """Return what the engine is asked to explain: `class_score` where a subclass has its own, else the class."""
        if type(self).class_score is not ModelWithHooks.class_score:
            return ClassScore(self.class_score, class_idx)
        return as_tensor(class_idx) if isinstance(class_idx, list | tuple) else class_idx

    def explain(
        self, explainer: Explainer, x: Tensor, class_idx: Any, kwargs: Mapping[str, Any], progress: bool = False
    ) -> Tensor:
        """Return the raw values `(B, K, *s)` of an explainer, on the image's device.

        Args:
            explainer: the method.
            x: images `(B, C, *S)`.
            class_idx: what is explained.
            kwargs: what the model takes beside the image, by keyword.
            progress: show a bar.
        """
        attribution = explain(
            self.model, plain(x), explainer, self.target(class_idx), model_kwargs=kwargs, progress=progress
        )
        one = cast(Attribution, attribution)  # not a list: one explainer, one target
        self.class_idx = _asked(class_idx, one.classes, x)
        return cast(Tensor, one.raw).to(x.device)

    def __call__(
        self, x: Tensor, class_idx: Any = None, retain_graph: bool = False, **kwargs: Any
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """Run the model on `x`.

        Args:
            x: images `(B, C, *S)`.
            class_idx: the class whose score is differentiated: an int, `(B,)`, any target; None: the argmax.
            retain_graph: has no effect: no graph is left to be kept.
            kwargs: what the model takes beside the image.

        Returns:
            The output, the activations (None without `register_forward`) and the gradients (None without
            `register_backward`), one of each for every layer, on the image's device.
        """
        layers, arguments = self.target_layers, ModelArguments(kwargs=kwargs)
        acti: dict[str, Tensor] = {}
        grad: dict[str, Tensor] = {}
        with Probe(self.model, plain(x), layers=layers, graph=self.register_backward, arguments=arguments) as probe:
            output, score, classes = probe.output.to(x.device), None, None
            if self.register_forward:
                acti = {layer: probe.activation(layer).to(x.device) for layer in layers}
            if self.register_backward:
                target = probe.fix(self.target(class_idx))
                score, classes = probe.scores(target).to(x.device), target.classes
                grad = {layer: probe.gradient(layer, target).to(x.device) for layer in layers}
        self.activations, self.gradients, self.score = acti, grad, score
        self.class_idx = _asked(class_idx, output.argmax(1) if classes is None else classes, x)
        return (
            output,
            tuple(acti.values()) if self.register_forward else None,
            tuple(grad.values()) if self.register_backward else None,
        )

    def get_wrapped_net(self) -> nn.Module:
        """Return the model."""
        return self.model


@attrs.frozen(eq=False)
class ClassScore:
    """The target that a subclass of `ModelWithHooks` computes; the argmax is that of the clean output."""

    function: Callable[[Tensor, Any], Tensor]
    class_idx: Any
    label: str = "class_score"

    def fix(self, output: Tensor) -> FixedTarget:
        """Fix the class."""
        chosen = output.argmax(1) if self.class_idx is None else as_tensor(self.class_idx)
        for_each = bool(chosen.ndim)

        def score(out: Tensor, index: Tensor) -> Tensor:
            class_idx = chosen.to(out.device)[index.to(out.device)] if for_each else int(chosen)
            scores = self.function(out, class_idx).reshape(-1)
            if len(scores) != len(out):
                raise ValueError(f"`class_score` returned {len(scores)} scores for {len(out)} images.")
            return scores

        return FixedTarget(self.label, score)


def plain(x: Any) -> Tensor:
    """Return `x` as a tensor without metadata.

    Raises:
        TypeError: not a tensor.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"`x` is a {type(x).__name__}; expected a tensor (B, C, H, W) or (B, C, H, W, D).")
    return x.detach().as_subclass(Tensor)


def _asked(class_idx: Any, classes: Any, x: Tensor) -> Any:
    return torch.as_tensor(classes, device=x.device) if class_idx is None and classes is not None else class_idx
