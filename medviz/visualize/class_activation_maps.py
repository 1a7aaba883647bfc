"""Class activation maps, as documented."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from medviz.explainers.gradcam import GradCAM as GradCAMExplainer
from medviz.explainers.gradcampp import GradCAMpp as GradCAMppExplainer
from medviz.explainers.headmap import HeadMap
from medviz.explainers.layered import LayerExplainer
from medviz.image import like
from medviz.visualize.model_with_hooks import LayerId, ModelWithHooks
from medviz.visualize.visualizer import default_upsampler

__all__ = ["CAM", "GradCAM", "GradCAMpp", "ModelWithHooks", "default_normalizer"]

Array = TypeVar("Array", Tensor, np.ndarray)
Upsampler = Callable[[Sequence[int]], Callable[[Tensor], Tensor]]


def default_normalizer(x: Array) -> Array:
    """Map the smallest value of each image to 1 and the largest to 0, linearly.

    This flips magnitudes. A constant image has nothing that stands out: it becomes 1, the least salient, everywhere;
    so an empty map stays empty.

    Args:
        x: `(B, …)`.

    Returns:
        `(B, …)` in [0, 1]: a tensor on the same device or an array; floating dtypes are kept, others become float32.
    """
    if isinstance(x, np.ndarray):
        flipped: np.ndarray = default_normalizer(torch.from_numpy(np.array(x, x.dtype.newbyteorder("=")))).numpy()
        return flipped
    dtype = x.dtype if x.is_floating_point() else torch.float32
    rows = x.detach().to(torch.float64 if dtype == torch.float64 else torch.float32).flatten(1)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return torch.where(high > low, (high - rows) / (high - low), 1).reshape(x.shape).to(dtype)


class CAMBase:
    """What the class activation maps have in common.

    Args:
        nn_module: the model, or a `ModelWithHooks` around it.
        target_layers: name of the layer, or names, or a callable from the model to the layer.
        upsampler: from the image's `*S` to a function that resizes a map.
        postprocessing: applied to the resized map.
        register_backward: whether `nn_module` returns gradients when it is called.
    """

    def __init__(
        self,
        nn_module: nn.Module | ModelWithHooks,
        target_layers: LayerId | Sequence[LayerId],
        upsampler: Upsampler = default_upsampler,
        postprocessing: Callable[[Tensor], Tensor] = default_normalizer,
        register_backward: bool = True,
    ) -> None:
        if not isinstance(nn_module, ModelWithHooks):
            nn_module = ModelWithHooks(nn_module, target_layers, True, register_backward)
        self.nn_module = nn_module
        self.upsampler = upsampler
        self.postprocessing = postprocessing

    def feature_map_size(
        self, input_size: Sequence[int], device: torch.device | str = "cpu", layer_idx: int = -1, **kwargs: Any
    ) -> torch.Size:
        """Return the shape `(B, 1, *s)` of the map before it is resized.

        Args:
            input_size: `(B, C, *S)`.
            device: where the image of zeros is made.
            layer_idx: which of several target layers.
            kwargs: what the model takes beside the image.
        """
        return self.compute_map(torch.zeros(*input_size, device=device), layer_idx=layer_idx, **kwargs).shape

    def compute_map(self, x: Tensor, class_idx: Any = None, layer_idx: int = -1, **kwargs: Any) -> Tensor:
        """Return the map `(B, 1, *s)` before it is resized; a subclass says how."""
        raise NotImplementedError

    def _layer(self, layer_idx: int) -> str:
        names = self.nn_module.target_layers
        if not -len(names) <= layer_idx < len(names):
            raise ValueError(f"`layer_idx` {layer_idx} is out of range: the target layers are {names}.")
        return names[layer_idx]

    def _upsample_and_post_process(self, acti_map: Tensor, x: Tensor) -> Tensor:
        done = self.postprocessing(self.upsampler(x.shape[2:])(acti_map))
        return like(done, x) if isinstance(done, Tensor) and done.shape[2:] == x.shape[2:] else done


class CAM(CAMBase):
    """Class activation maps: the network's last layers, evaluated on the features of each voxel.

    Source: Zhou et al. 2016, "Learning Deep Features for Discriminative Localization",
    https://arxiv.org/abs/1512.04150. The same linear layer is at work as in the explainer `cam`; here its bias is part
    of the map, as documented. List a model's layers with `dict(model.named_modules())`.

    >>> import torch
    >>> from monai.networks.nets import DenseNet121, seresnet50
    >>> from medviz.visualize import CAM
    >>> model_2d = DenseNet121(spatial_dims=2, in_channels=1, out_channels=3)
    >>> cam = CAM(nn_module=model_2d, target_layers="class_layers.relu", fc_layers="class_layers.out")
    >>> result = cam(x=torch.rand((1, 1, 48, 64)))
    >>> result.shape
    torch.Size([1, 1, 48, 64])
    >>> model_2d = seresnet50(spatial_dims=2, in_channels=3, num_classes=4)
    >>> cam = CAM(nn_module=model_2d, target_layers="layer4", fc_layers="last_linear")
    >>> result = cam(x=torch.rand((2, 3, 48, 64)))
    >>> result.shape
    torch.Size([2, 1, 48, 64])

    Args:
        nn_module: the model.
        target_layers: name of the layer that makes the feature map.
        fc_layers: name of the module that turns pooled features into outputs, or a callable from the model to it.
        upsampler: from the image's `*S` to a function that resizes a map; linear.
        postprocessing: applied to the resized map; largest to 0, smallest to 1.
    """

    def __init__(
        self,
        nn_module: nn.Module | ModelWithHooks,
        target_layers: LayerId | Sequence[LayerId],
        fc_layers: LayerId = "fc",
        upsampler: Upsampler = default_upsampler,
        postprocessing: Callable[[Tensor], Tensor] = default_normalizer,
    ) -> None:
        super().__init__(nn_module, target_layers, upsampler, postprocessing, register_backward=False)
        self.fc_layers = fc_layers

    def compute_map(self, x: Tensor, class_idx: Any = None, layer_idx: int = -1, **kwargs: Any) -> Tensor:
        """Return the map `(B, 1, *s)` before it is resized and postprocessed.

        Args:
            x: images `(B, C, *S)`.
            class_idx: the class: an int, or one for each image `(B,)`; None: the argmax of each image.
            layer_idx: which of several target layers.
            kwargs: what the model takes beside the image.
        """
        method = HeadMap(self._layer(layer_idx), head=lambda model: self.nn_module.get_layer(self.fc_layers))
        return self.nn_module.explain(method, x, class_idx, kwargs)

    def __call__(self, x: Tensor, class_idx: Any = None, layer_idx: int = -1, **kwargs: Any) -> Tensor:
        """Return the map `(B, 1, *S)`, resized and postprocessed; arguments as `compute_map`."""
        return self._upsample_and_post_process(self.compute_map(x, class_idx, layer_idx, **kwargs), x)


class GradCAM(CAMBase):
    """Gradient-weighted class activation maps.

    Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    https://arxiv.org/abs/1610.02391; the explainer `gradcam`.

    >>> import torch
    >>> from monai.networks.nets import DenseNet121, seresnet50
    >>> from medviz.visualize import GradCAM
    >>> model_2d = DenseNet121(spatial_dims=2, in_channels=1, out_channels=3)
    >>> cam = GradCAM(nn_module=model_2d, target_layers="class_layers.relu")
    >>> result = cam(x=torch.rand((1, 1, 48, 64)))
    >>> result.shape
    torch.Size([1, 1, 48, 64])
    >>> model_2d = seresnet50(spatial_dims=2, in_channels=3, num_classes=4)
    >>> cam = GradCAM(nn_module=model_2d, target_layers="layer4")
    >>> result = cam(x=torch.rand((2, 3, 48, 64)))
    >>> result.shape
    torch.Size([2, 1, 48, 64])

    Args:
        nn_module: the model, or a `ModelWithHooks` around it.
        target_layers: name of the layer, or names, or a callable from the model to the layer.
        upsampler: from the image's `*S` to a function that resizes a map; linear.
        postprocessing: applied to the resized map; largest to 0, smallest to 1.
        register_backward: whether `nn_module` returns gradients when it is called.
    """

    _method: Callable[[str], LayerExplainer] = GradCAMExplainer

    def compute_map(  # type: ignore[override]
        self, x: Tensor, class_idx: Any = None, retain_graph: bool = False, layer_idx: int = -1, **kwargs: Any
    ) -> Tensor:
        """Return the map `(B, 1, *s)` before it is resized and postprocessed.

        Args:
            x: images `(B, C, *S)`.
            class_idx: the class: an int, or one for each image `(B,)`, or any target; None: the argmax of each image.
            retain_graph: has no effect: no graph is left to be kept.
            layer_idx: which of several target layers.
            kwargs: what the model takes beside the image.
        """
        return self.nn_module.explain(type(self)._method(self._layer(layer_idx)), x, class_idx, kwargs)

    def __call__(
        self, x: Tensor, class_idx: Any = None, layer_idx: int = -1, retain_graph: bool = False, **kwargs: Any
    ) -> Tensor:
        """Return the map `(B, 1, *S)`, resized and postprocessed; arguments as `compute_map`."""
        acti_map = self.compute_map(x, class_idx=class_idx, retain_graph=retain_graph, layer_idx=layer_idx, **kwargs)
        return self._upsample_and_post_process(acti_map, x)


class GradCAMpp(GradCAM):
    """Gradient-weighted class activation maps, each voxel weighted by its share.

    Source: Chattopadhyay et al. 2018, "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks",
    https://arxiv.org/abs/1710.11063; the explainer `gradcampp`.

    Args:
        nn_module: the model, or a `ModelWithHooks` around it.
        target_layers: name of the layer, or names, or a callable from the model to the layer.
        upsampler: from the image's `*S` to a function that resizes a map; linear.
        postprocessing: applied to the resized map; largest to 0, smallest to 1.
        register_backward: whether `nn_module` returns gradients when it is called.
    """

    _method = GradCAMppExplainer
