"""The documented calls of `monai.visualize`: the same names, signatures, defaults and results, over medviz's engine.

Code that was written for `monai.visualize` changes one import. Where its text and its code disagree, the text wins; the
page "Differences from MONAI" of the docs lists each such place. MONAI itself is not needed.
"""

from medviz.visualize.class_activation_maps import CAM, GradCAM, GradCAMpp, ModelWithHooks, default_normalizer
from medviz.visualize.gradient_based import GuidedBackpropGrad, GuidedBackpropSmoothGrad, SmoothGrad, VanillaGrad
from medviz.visualize.img2tensorboard import add_animated_gif, make_animated_gif_summary, plot_2d_or_3d_image
from medviz.visualize.occlusion_sensitivity import OcclusionSensitivity
from medviz.visualize.utils import blend_images, matshow3d
from medviz.visualize.visualizer import default_upsampler

__all__ = [
    "CAM",
    "GradCAM",
    "GradCAMpp",
    "GuidedBackpropGrad",
    "GuidedBackpropSmoothGrad",
    "ModelWithHooks",
    "OcclusionSensitivity",
    "SmoothGrad",
    "VanillaGrad",
    "add_animated_gif",
    "blend_images",
    "default_normalizer",
    "default_upsampler",
    "make_animated_gif_summary",
    "matshow3d",
    "plot_2d_or_3d_image",
]
