"""From a row of the table to an explainer, and from a probe to what captum calls a model."""

from __future__ import annotations

import random
import traceback
import warnings
from typing import Any, ClassVar

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from medviz import Explainer, FixedTarget, Probe, hookimpl
from medviz_captum.parameters import PARAMETERS
from medviz_captum.table import Method


class CaptumExplainer(Explainer):
    """A method of captum, run image by image on a model that is left untouched.

    Attributes:
        method: its row of the table.
    """

    method: ClassVar[Method]

    @hookimpl
    def explain(self, probe: Probe, target: FixedTarget) -> Tensor:
        """Return `(B, C, *S)`, or `(B, 1, *s)` of a layer or of windows that hide all channels alike."""
        with probe.model() as model, warnings.catch_warnings():
            # the guard around the model undoes what captum warns of
            warnings.filterwarnings("ignore", message="Setting (backward|forward)", category=UserWarning)
            for module in model.modules():
                if getattr(module, "inplace", False) is True:  # it would overwrite what captum's hooks keep
                    module.inplace = False  # type: ignore[assignment]
            return torch.cat([self._one(probe, target, model, i) for i in range(len(probe.inputs))])

    def _one(self, probe: Probe, target: FixedTarget, model: nn.Module, index: int) -> Tensor:
        """Return the map of one image, with a batch axis of 1."""
        image = _wide(probe.inputs[index : index + 1]).clone()
        given: dict[str, Any] = {}
        for name in self.method.takes:
            given |= PARAMETERS[name].given(getattr(self, name), image, probe)
        scored = _Scored(probe, target, model, index, self.method.gradients)
        made = self.method.attribution(scored, *self._layer(probe, model))
        _sow(getattr(self, "seed", None))
        with torch.set_grad_enabled(self.method.gradients):
            values = _attribute(made, image.requires_grad_(self.method.gradients), given)
        values = _wide(values.detach())
        if values.ndim != image.ndim:
            raise ValueError(
                f"the layer gives a map {tuple(values.shape)}; captum needs one whose output is (B, K, *s): name "
                "another with `layer`."
            )
        if self.method.channels == "sum":
            return values.sum(1, keepdim=True)
        return values[:, :1] if self.method.channels == "first" else values

    def _layer(self, probe: Probe, model: nn.Module) -> list[nn.Module]:
        return [model.get_submodule(probe.layer_name(getattr(self, "layer", None)))] if self.needs_layer else []


class _Scored(nn.Module):
    """The network and the target's score behind it: `(M, C, *S)` in, `(M,)` out. The network is a sub-module of it."""

    def __init__(self, probe: Probe, target: FixedTarget, model: nn.Module, image: int, gradients: bool) -> None:
        super().__init__()
        self.model = model
        self._probe, self._target, self._image, self._gradients = probe, target, image, gradients

    def forward(self, rows: Tensor) -> Tensor:
        index = torch.full((len(rows),), self._image, device=rows.device)
        output = self._probe.run(rows, index)
        if self._gradients and output.dtype == torch.float16:
            raise ValueError(
                "the network runs in float16, in which captum's gradients vanish without an error; explain it in "
                "float32 or bfloat16, or with medviz's own methods."
            )
        return self._probe.scores(self._target, output, index)


def explainer(name: str, method: Method, module: str) -> type[CaptumExplainer]:
    """Return the explainer that a row of the table describes.

    Args:
        name: the name of the class.
        method: the row.
        module: where the class can be imported from.
    """
    made: type[CaptumExplainer] = attrs.make_class(
        name,
        {parameter: PARAMETERS[parameter].field() for parameter in method.takes},
        bases=(CaptumExplainer,),
        class_body={
            "__doc__": _doc(method),
            "__module__": module,
            "method": method,
            "signed": method.signed,
            "stochastic": "seed" in method.takes,
            "needs_layer": "layer" in method.takes,
        },
        frozen=True,
        eq=False,
    )
    return made


def _doc(method: Method) -> str:
    lines = [method.text, "", f"Source: {method.source}; computed by captum's {method.attribution.__name__}."]
    if method.takes:
        lines += ["", "Args:", *(f"    {name}: {PARAMETERS[name].text}" for name in method.takes)]
    return "\n".join(lines)


def _attribute(made: Any, image: Tensor, given: dict[str, Any]) -> Tensor:
    """Call captum; what it refuses becomes a `ValueError` that says so, what the network raises passes."""
    try:
        values = made.attribute(image, **given)
    except (AssertionError, AttributeError, RuntimeError, TypeError) as err:
        frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(err.__traceback__)]
        if frames[-1].partition(".")[0] != "captum":
            raise
        raise ValueError(f"captum's {type(made).__name__} cannot explain this network: {err}") from err
    if not isinstance(values, Tensor):
        raise ValueError(f"captum's {type(made).__name__} returned several maps; name a layer with one output.")
    return values


def _sow(seed: int | None) -> None:
    """Set the global generators, which captum draws from; the guard around the model puts them back."""
    if seed is not None:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
