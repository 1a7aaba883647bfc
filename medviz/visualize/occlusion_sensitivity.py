"""Occlusion sensitivity, as documented."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from medviz import registry
from medviz.explainers.occlusion import Occluded, Occlusion
from medviz.hookspecs import Occluder
from medviz.image import as_batch, like
from medviz.model_arguments import ModelArguments
from medviz.occluders.constant import Constant
from medviz.occluders.function import FunctionOccluder
from medviz.occluders.gaussian import Gaussian
from medviz.occluders.mean_img import MeanImage
from medviz.occluders.mean_patch import MeanPatch
from medviz.probe import Probe
from medviz.probe.batching import check_batch_size
from medviz.tensors import as_tensor
from medviz.visualize.model_with_hooks import plain
from medviz.windows import Crop, Windows, sliding_range

__all__ = ["OcclusionSensitivity"]

_MODES: dict[str, type[Occluder]] = {"gaussian": Gaussian, "mean_patch": MeanPatch, "mean_img": MeanImage}


class OcclusionSensitivity:
    """What the network says of every class while a part of the image is hidden, for every voxel.

    The explainer `occlusion` gives one class's fall of the score instead, where high means important.

    >>> import torch
    >>> from monai.networks.nets import DenseNet, DenseNet121
    >>> from medviz.visualize import OcclusionSensitivity
    >>> model_2d = DenseNet121(spatial_dims=2, in_channels=1, out_channels=3)
    >>> occ_sens = OcclusionSensitivity(nn_module=model_2d)
    >>> occ_map, most_probable_class = occ_sens(x=torch.rand((1, 1, 48, 64)), b_box=[2, 40, 1, 62])
    >>> occ_map.shape, most_probable_class.shape
    (torch.Size([1, 1, 39, 62, 3]), torch.Size([1, 1, 39, 62]))
    >>> model_3d = DenseNet(
    ...     spatial_dims=3, in_channels=1, out_channels=3, init_features=2, growth_rate=2, block_config=(6,)
    ... )
    >>> occ_sens = OcclusionSensitivity(nn_module=model_3d, n_batch=10)
    >>> occ_map, most_probable_class = occ_sens(torch.rand(1, 1, 6, 6, 6), b_box=[1, 3, -1, -1, -1, -1])
    >>> occ_map.shape
    torch.Size([1, 1, 3, 6, 6, 3])

    Args:
        nn_module: a network with an output `(B, N)`.
        mask_size: of the hidden box in voxels, for all axes or for each; cut where it is larger than the image.
        n_batch: copies of an image in one pass.
        verbose: show a bar where stderr is a terminal.
        mode: what stands in the place of what is hidden. A number; "gaussian": the image times one less a Gaussian, and
            boxes that overlap are blended by that Gaussian; "mean_patch": the box's mean, "mean_img": the image's, both
            of each channel; a function of the image `(1, C, *S)` and the box's content `(1, C, *mask)`; an occluder.
        overlap: of neighbouring boxes, as a fraction of the box, in [0, 1).
        activate: True: softmax where there are several classes, else sigmoid. False: nothing. A function of the
            model's output: that, and it may turn other outputs into `(M, N)`.
        class_dim: -1: the classes are the last axis, as documented; 1: the second, as in MONAI's released code.
        change: subtract what the network says of the clean image.
    """

    def __init__(
        self,
        nn_module: nn.Module,
        mask_size: int | Sequence[int] = 16,
        n_batch: int = 16,
        verbose: bool = True,
        mode: str | float | Callable[[Tensor, Tensor], Tensor] | Occluder = "gaussian",
        overlap: float = 0.6,
        activate: bool | Callable[[Any], Tensor] = True,
        *,
        class_dim: int = -1,
        change: bool = False,
    ) -> None:
        if class_dim not in (-1, 1):
            raise ValueError(f"`class_dim` is -1, as documented, or 1; got {class_dim!r}.")
        if isinstance(activate, str):
            raise TypeError(f"`activate` is True, False or a function of the model's output; got {activate!r}.")
        self.nn_module = nn_module
        self.mask_size = mask_size
        check_batch_size(n_batch)
        self.n_batch = n_batch
        self.verbose = verbose
        self.mode = mode
        self.overlap = overlap
        self.activate = activate
        self.class_dim = class_dim
        self.change = change
        self._method(None)  # refuses what is wrong now, and not after an hour

    def __call__(self, x: Tensor, b_box: Sequence[int] | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the occlusion map and the most probable class, on the device of `x`.

        Args:
            x: images `(B, C, *S)`.
            b_box: the part to be mapped, `[min1, max1, min2, max2, …]`; both ends are inclusive, negative means no
                limit. Boxes slide over it and half a box around it.
            kwargs: what the model takes beside the image.

        Returns:
            Probabilities `(B, 1, *S, N)` while each voxel is hidden, and their argmax over the classes `(B, 1, *S)`;
            with `class_dim=1`, `(B, N, *S)` and `(B, 1, *S)`.
        """
        images, _ = as_batch(plain(x))
        region = _region(b_box, images.shape[2:])
        method, arguments = self._method(region), ModelArguments(kwargs=kwargs).of(len(images))
        maps, clean = zip(
            *(self._one(method, images[i : i + 1], arguments.take(as_tensor([i]))) for i in range(len(images))),
            strict=True,
        )
        cut = Crop(tuple(slice(first, end) for first, end in region), tuple(images.shape[2:]))
        occ_map = cut(torch.cat(maps))
        most_probable = occ_map.argmax(1, keepdim=True)
        if self.change:
            occ_map = occ_map - torch.cat(clean).reshape(*occ_map.shape[:2], *[1] * len(region))
        if self.class_dim == -1:
            occ_map = occ_map.movedim(1, -1)[:, None]
        first = [start for start, _ in region]
        return like(occ_map, x, first), like(most_probable, x, first)

    def _method(self, region: Sequence[tuple[int, int]] | None) -> Occlusion:
        return Occlusion(_size(self.mask_size), self.overlap, _occluder(self.mode), region=region)

    def _one(self, method: Occlusion, image: Tensor, arguments: ModelArguments) -> tuple[Tensor, Tensor]:
        """Return the map `(1, N, *S)` of one image, and what the network says of it when it is clean, `(1, N)`."""
        with _opened(self.nn_module, image, self.activate, arguments, self.n_batch, self.verbose) as probe:
            activation = _activation(self.activate)
            return method.scores(probe, activation), activation(probe.output)

    @staticmethod
    def constant_occlusion(x: Tensor, val: float, mask_size: Sequence[int]) -> tuple[float, Tensor]:
        """Return what the box is multiplied by and what is added: 0, and a constant `(B, C, *mask)`."""
        patches = x.new_zeros((*x.shape[:2], *mask_size))
        return 0, Constant(val)(patches, x[0], _corners(patches))

    @staticmethod
    def gaussian_occlusion(x: Tensor, mask_size: Sequence[int], sigma: float = 0.25) -> tuple[Tensor, float]:
        """Return what the box is multiplied by and what is added: one less a Gaussian `(1, C, *mask)`, and 0.

        Args:
            x: `(B, C, *S)`.
            mask_size: of the box.
            sigma: standard deviation, as a fraction of the box.
        """
        patches = x.new_ones((1, x.shape[1], *mask_size))
        return Gaussian(sigma)(patches, x[0], _corners(patches)), 0

    @staticmethod
    def predictor(
        cropped_grid: Tensor,
        nn_module: nn.Module,
        x: Tensor,
        mul: Tensor | float,
        add: Tensor | float,
        mask_size: Sequence[int],
        occ_mode: Any,
        activate: bool | Callable[[Any], Tensor],
        module_kwargs: Mapping[str, Any],
    ) -> Tensor:
        """Return what the network says while boxes are hidden, at every voxel of each box: `(M, N, *mask)`.

        Args:
            cropped_grid: the voxel coordinates in each box, `(M, nd, *mask)`; only those of its first voxel are read.
            nn_module: the network.
            x: the image `(1, C, *S)`.
            mul: what a box is multiplied by.
            add: what is then added to it.
            mask_size: of the box.
            occ_mode: "mean_patch" or a function of the image and the box replaces `mul` and `add`.
            activate: as in the constructor.
            module_kwargs: what the model takes beside the image.
        """
        nd = len(mask_size)
        corners = cropped_grid.as_subclass(Tensor).flatten(2)[:, :, 0].round().long().cpu()
        on_the_fly = callable(occ_mode) or occ_mode == "mean_patch"
        occluder = _occluder(occ_mode) if on_the_fly else FunctionOccluder(lambda p, *_: _times_plus(p, mul, add))
        windows = Windows(tuple(mask_size), corners, tuple(x.shape[2:]))
        arguments = ModelArguments(kwargs=module_kwargs)
        with _opened(nn_module, plain(x), activate, arguments, len(corners), False) as probe:
            rows = Occluded(occluder, probe.inputs, windows)
            out = _activation(activate)(probe.forward(rows, rows.index)).to(x.device)
        return out.reshape(*out.shape, *[1] * nd).repeat(1, 1, *mask_size)

    @staticmethod
    def crop_meshgrid(
        grid: Tensor, b_box: Sequence[int], mask_size: Sequence[int]
    ) -> tuple[Tensor, Crop, Sequence[int]]:
        """Return the part of the grid that boxes slide over to map `b_box`, how it was cut out, and the box's size.

        Args:
            grid: `(1, nd, *S)`.
            b_box: as in the call.
            mask_size: of the box; cut where it is larger than the image.
        """
        shape = tuple(grid.shape[2:])
        ranges = [
            sliding_range(extent, size, *limits)
            for extent, size, limits in zip(shape, mask_size, _region(b_box, shape), strict=True)
        ]
        crop = Crop(tuple(slice(low, high) for low, high, _ in ranges), shape)
        return crop(grid), crop, [size for *_, size in ranges]


def _size(mask_size: Any) -> Any:
    """Return integers of any library as Python's; what is none goes on, to be refused."""
    mask_size = mask_size.tolist() if hasattr(mask_size, "tolist") else mask_size
    if isinstance(mask_size, Sequence) and not isinstance(mask_size, str):
        return tuple(_size(one) for one in mask_size)
    return index(mask_size) if hasattr(mask_size, "__index__") else mask_size


def _occluder(mode: Any) -> Occluder:
    if isinstance(mode, Occluder):
        return mode
    if isinstance(mode, str):
        return _MODES[mode]() if mode in _MODES else registry.get_occluder(mode)
    if callable(mode):
        return FunctionOccluder(lambda p, image, _: _by_function(mode, p, image))
    if not hasattr(mode, "__float__"):
        raise TypeError(f"`mode` is a number, one of {list(_MODES)}, a function or an occluder; got {mode!r}.")
    return Constant(float(mode))


def _by_function(mode: Callable[[Tensor, Tensor], Tensor], patches: Tensor, image: Tensor) -> Tensor:
    whole = image[None].clone()  # the function may work in place
    hidden = [as_tensor(mode(whole, patch[None].clone())).to(patches).expand(1, *patch.shape) for patch in patches]
    return torch.cat(hidden)


def _times_plus(patches: Tensor, mul: Tensor | float, add: Tensor | float) -> Tensor:
    return patches * as_tensor(mul).to(patches) + as_tensor(add).to(patches)


def _opened(
    model: nn.Module, image: Tensor, activate: Any, arguments: ModelArguments, batch_size: int, progress: bool
) -> Probe:
    output = activate if callable(activate) else None
    return Probe(model, image, output=output, arguments=arguments, batch_size=batch_size, progress=progress)


def _activation(activate: Any) -> Callable[[Tensor], Tensor]:
    """Return what is left to be done with an output `(M, N)`: a function has already chosen it."""
    return _probabilities if activate and not callable(activate) else lambda output: output


def _probabilities(output: Tensor) -> Tensor:
    return output.softmax(1) if output.shape[1] > 1 else output.sigmoid()


def _region(b_box: Sequence[int] | None, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return the first voxel and the one after the last, along each axis."""
    limits = [-1] * (2 * len(shape)) if b_box is None else [_size(b) for b in b_box]
    if not all(isinstance(limit, int) for limit in limits):
        raise TypeError(f"`b_box` holds voxels, [min1, max1, …]; got {b_box!r}.")
    if len(limits) != 2 * len(shape):
        raise ValueError(f"`b_box` has {len(limits)} numbers; expected a minimum and a maximum for {len(shape)} axes.")
    region = tuple(
        (max(low, 0), extent if high < 0 else min(high + 1, extent))
        for low, high, extent in zip(limits[::2], limits[1::2], shape, strict=True)
    )
    if any(first >= end for first, end in region):
        raise ValueError(f"`b_box` {limits} holds no voxel of an image of {tuple(shape)}; [min1, max1, …], inclusive.")
    return region


def _corners(patches: Tensor) -> Tensor:
    return torch.zeros((len(patches), patches.ndim - 2), dtype=torch.long, device="cpu")
