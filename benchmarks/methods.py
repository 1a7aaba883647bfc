"""Grad-CAM of medviz and of its peers, each as its own documentation calls it: a map on the image's grid.

What a library can make once and keep is made before the clock runs; medviz keeps nothing and does it all each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import medviz
from benchmarks import machine
from benchmarks.networks import inference, own

TARGET = 1
SIX = ("gradcam", "gradcampp", "layercam", "hirescam", "xgradcam", "eigencam")


@attrs.frozen
class Method:
    """A method with its layer and model.

    Args:
        run: from the image to what a user gets, on the image's grid.
        raw: from the image to the map on the layer's grid `(1, 1, *s)`, not scaled, to be held against the others.
    """

    run: Callable[[Tensor], Any]
    raw: Callable[[Tensor], Tensor]


def _medviz(model: nn.Module, layer: str | None) -> Method:
    explainer = medviz.get_explainer("medviz-xai/gradcam", layer=layer)
    return Method(lambda image: explainer(model, image, TARGET), lambda image: explainer(model, image, TARGET).raw)


def _monai(model: nn.Module, layer: str) -> Method:
    from monai.visualize import GradCAM

    cam = GradCAM(nn_module=model, target_layers=layer)
    return Method(lambda image: cam(image, TARGET), lambda image: cam.compute_map(image, TARGET))


def _captum(model: nn.Module, layer: str) -> Method:
    from captum.attr import LayerAttribution, LayerGradCam

    cam = LayerGradCam(model, model.get_submodule(layer))

    def raw(image: Tensor) -> Tensor:
        made: Tensor = cam.attribute(image, target=TARGET, relu_attributions=True)
        return made

    def run(image: Tensor) -> Any:
        mode = "bilinear" if image.ndim == 4 else "trilinear"
        return LayerAttribution.interpolate(raw(image), tuple(image.shape[2:]), mode)

    return Method(run, raw)


def _torchcam(model: nn.Module, layer: str) -> Method:
    from torchcam.methods import GradCAM

    cam = GradCAM(model, layer)

    def made(image: Tensor, normalized: bool) -> Tensor:
        (one,) = cam(TARGET, model(image), normalized=normalized)
        return torch.as_tensor(one).reshape(1, 1, *one.shape[-(image.ndim - 2) :])

    def run(image: Tensor) -> Any:
        mode = "bilinear" if image.ndim == 4 else "trilinear"
        return F.interpolate(made(image, True), tuple(image.shape[2:]), mode=mode)

    return Method(run, lambda image: made(image, False))


def _grad_cam(model: nn.Module, layer: str) -> Method:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layers, targets = [model.get_submodule(layer)], [ClassifierOutputTarget(TARGET)]
    cam = GradCAM(model=model, target_layers=layers)

    def raw(image: Tensor) -> Tensor:
        cam(input_tensor=image, targets=targets)
        held = cam.activations_and_grads
        values = [v[0].detach().cpu().numpy() for v in (held.activations, held.gradients)]
        return torch.from_numpy(np.maximum(cam.get_cam_image(image, layers[0], targets, *values), 0))[:, None]

    return Method(lambda image: cam(input_tensor=image, targets=targets), raw)


PEERS: dict[str, Callable[[nn.Module, str], Method]] = {
    "MONAI": _monai,
    "captum": _captum,
    "grad-cam": _grad_cam,
    "torchcam": _torchcam,
}


def gradcams(model: nn.Module, layer: str) -> dict[str, Method]:
    """Return Grad-CAM of medviz and of every installed peer, each with a copy of `model` of its own."""
    absent = machine.missing()
    peers = {name: make(own(model), layer) for name, make in PEERS.items() if name not in absent}
    return {"medviz": _medviz(own(model), layer), **peers}


def single(name: str, model: nn.Module, layer: str) -> Callable[[Tensor], Any]:
    """Return one method by name: "inference", "medviz", "medviz, automatic layer", "medviz, six methods", or a peer."""
    if name == "inference":
        return lambda image: inference(model, image)
    if name == "medviz, six methods":
        six = [medviz.get_explainer(f"medviz-xai/{one}", layer=layer) for one in SIX]
        return lambda image: medviz.explain(model, image, list(six), TARGET)
    if name.startswith("medviz"):
        return _medviz(model, None if name.endswith("automatic layer") else layer).run
    if name not in PEERS:
        raise ValueError(f"{name!r} is no method; expected inference, medviz or one of {', '.join(PEERS)}.")
    return PEERS[name](model, layer).run
