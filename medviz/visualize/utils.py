"""Blend an image with a label, and show a volume as a sheet of slices.

>>> import numpy as np
>>> import matplotlib.pyplot as plt
>>> from medviz.visualize import blend_images, matshow3d
>>> volume = np.random.rand(10, 10, 10)
>>> fig = plt.figure()
>>> fig, sheet = matshow3d(volume, fig=fig, title="3D Volume")
>>> plt.show()
>>> sheet.shape
(36, 48)
>>> volumes = [np.random.rand(1, 10, 10, 10), np.random.rand(1, 10, 10, 10)]
>>> fig = plt.figure()
>>> fig, sheet = matshow3d(volumes, fig=fig, title="List of Volumes")
>>> plt.show()
>>> sheet.shape
(48, 60)
>>> blend_images(volume[None], volume[None] > 0.5, alpha=0.5, cmap="hsv").shape
(3, 10, 10, 10)
"""

from medviz.renderers.blending import blend_images
from medviz.renderers.matshow3d import matshow3d

__all__ = ["blend_images", "matshow3d"]
