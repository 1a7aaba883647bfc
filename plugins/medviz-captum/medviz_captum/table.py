"""The one table: which methods of captum there are, what they take and what is true of them.

A method is a row of `METHODS` here and a line in `pyproject.toml`; nothing else.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
import captum.attr as ca


@attrs.frozen
class Method:
    """One row.

    Args:
        attribution: captum's class.
        text: what it does, one sentence, for the docstring.
        source: the paper.
        takes: the parameters of the explainer, among the keys of `medviz_captum.parameters.PARAMETERS`. One with a
            `layer` reads it; one with a `seed` draws random numbers.
        signed: negative values speak against the target.
        gradients: captum differentiates; else it only perturbs.
        channels: "all": the map has the image's channels. "sum": it has a layer's, which are summed. "first": every
            channel holds the same, and one is kept.
    """

    attribution: Any
    text: str
    source: str
    takes: tuple[str, ...] = ()
    signed: bool = True
    gradients: bool = True
    channels: Literal["all", "sum", "first"] = "all"


_IG = "Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365"
_DEEPLIFT = "Shrikumar et al. 2017, https://arxiv.org/abs/1704.02685"
_GRADCAM = "Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391"
_CONDUCTANCE = "Dhamdhere et al. 2018, https://arxiv.org/abs/1805.12233"

METHODS: dict[str, Method] = {
    "Saliency": Method(
        ca.Saliency,
        "The magnitude of the score's gradient at each voxel.",
        "Simonyan et al. 2013, https://arxiv.org/abs/1312.6034",
        signed=False,
    ),
    "InputXGradient": Method(
        ca.InputXGradient,
        "Each voxel times the score's gradient there.",
        "Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713",
    ),
    "IntegratedGradients": Method(
        ca.IntegratedGradients,
        "The gradients on the straight way from a baseline to the image, added up.",
        _IG,
        ("baseline", "steps"),
    ),
    "GradientShap": Method(
        ca.GradientShap,
        "The mean gradient at random points between a baseline and noisy copies of the image.",
        "Lundberg and Lee 2017, https://arxiv.org/abs/1705.07874",
        ("baseline", "samples", "stdev", "seed"),
    ),
    "DeepLift": Method(
        ca.DeepLift,
        "The differences of all activations from those of a baseline, sent back to the voxels (rescale rule).",
        _DEEPLIFT,
        ("baseline",),
    ),
    "GuidedBackprop": Method(
        ca.GuidedBackprop,
        "The score's gradient, in which each ReLU module lets positive gradients pass where it is active.",
        "Springenberg et al. 2014, https://arxiv.org/abs/1412.6806",
    ),
    "Deconvolution": Method(
        ca.Deconvolution,
        "The score's gradient, in which each ReLU module lets positive gradients pass, active or not.",
        "Zeiler and Fergus 2013, https://arxiv.org/abs/1311.2901",
    ),
    "GuidedGradCam": Method(
        ca.GuidedGradCam,
        "Guided backpropagation times Grad-CAM at a layer.",
        _GRADCAM,
        ("layer",),
    ),
    "LayerGradCam": Method(
        ca.LayerGradCam,
        "A layer's feature maps, weighted by their mean gradients; no ReLU.",
        _GRADCAM,
        ("layer",),
        channels="sum",
    ),
    "LayerGradientXActivation": Method(
        ca.LayerGradientXActivation, "A layer's output times its gradient.", _GRADCAM, ("layer",), channels="sum"
    ),
    "LayerIntegratedGradients": Method(
        ca.LayerIntegratedGradients,
        "Integrated gradients on the way of a layer's output, from a baseline image's to the image's.",
        _IG,
        ("layer", "baseline", "steps"),
        channels="sum",
    ),
    "LayerConductance": Method(
        ca.LayerConductance,
        "How much of the integrated gradients of the image flows through each voxel of a layer.",
        _CONDUCTANCE,
        ("layer", "baseline", "steps"),
        channels="sum",
    ),
    "LayerDeepLift": Method(
        ca.LayerDeepLift, "DeepLift from the score down to a layer.", _DEEPLIFT, ("layer", "baseline"), channels="sum"
    ),
    "FeatureAblation": Method(
        ca.FeatureAblation,
        "How far the score falls when one block of the image is set to the baseline.",
        "captum.ai, feature ablation",
        ("baseline", "blocks"),
        gradients=False,
        channels="first",
    ),
    "ShapleyValueSampling": Method(
        ca.ShapleyValueSampling,
        "The Shapley value of each block of the image, estimated from random orders in which blocks appear.",
        "Castro et al. 2009, https://doi.org/10.1016/j.cor.2008.04.004",
        ("baseline", "blocks", "samples", "seed"),
        gradients=False,
        channels="first",
    ),
    "Occlusion": Method(
        ca.Occlusion,
        "How far the score falls when a sliding window is set to the baseline, the mean over the windows at a voxel.",
        "Zeiler and Fergus 2013, https://arxiv.org/abs/1311.2901",
        ("baseline", "window", "stride"),
        gradients=False,
        channels="first",
    ),
}
