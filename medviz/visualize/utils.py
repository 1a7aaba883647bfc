"""Blend an image with a label, and show a volume as a sheet of slices."""

from medviz.renderers.blending import blend_images
from medviz.renderers.matshow3d import matshow3d

__all__ = ["blend_images", "matshow3d"]
