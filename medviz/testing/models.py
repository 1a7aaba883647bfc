"""Toy networks whose answers are known on paper; each derives its own in its docstring.

All take `(B, C, H, W)` or `(B, C, D, H, W)`, are in eval mode, use each module once, and are the same for the same
`seed`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn


def _conv(ndim: int, inputs: int, outputs: int, size: int, stride: int = 1, bias: bool = True) -> nn.Module:
    if ndim not in (2, 3):
        raise ValueError(f"`ndim` is {ndim!r}; expected 2 or 3 spatial axes.")
    kind: type[nn.Module] = nn.Conv2d if ndim == 2 else nn.Conv3d
    return kind(inputs, outputs, size, stride=stride, padding=size // 2, bias=bias)


def _own_random_numbers() -> AbstractContextManager[None]:
    """Leave the global generator as it is: layers draw from it when they are made."""
    return torch.random.fork_rng(devices=[])


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill all parameters and running statistics with seeded numbers of a reasonable size; return the model in eval.

    Layers get normal weights of standard deviation √(2 / inputs), so that values neither vanish nor explode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            inputs = max(1, parameter[0].numel()) if parameter.ndim > 1 else 8
            parameter.copy_(torch.randn(parameter.shape, generator=generator, device="cpu") * (2 / inputs) ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                drawn = torch.rand(buffer.shape, generator=generator, device="cpu")
                buffer.copy_(drawn + (0.5 if name.endswith("var") else 0))
    return model.eval()


class Classifier(nn.Module):
    """A small network of the ordinary kind: two convolutions, batch norm, ReLU, global average pooling, linear layer.

    Known answer: the logits are `fc` of the mean of the features `deep` over space, so for class n the map
    M_n = Σ_k W_nk A_k has the mean `logit_n − b_n`, and it is what CAM gives. Grad-CAM and HiResCAM, before their
    ReLU, give M_n / V on the V voxels of the features: ∂logit_n / ∂A_k(v) = W_nk / V at each voxel v, so its mean over
    space, Grad-CAM's weight, is W_nk / V too. `class_map` returns M_n.

    Args:
        ndim: 2 or 3 spatial axes.
        channels: of the image.
        classes: logits.
        seed: of the parameters.
    """

    def __init__(self, ndim: int = 2, channels: int = 2, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(6) if ndim == 2 else nn.BatchNorm3d(6)
        with _own_random_numbers():
            self.stem = nn.Sequential(_conv(ndim, channels, 6, 3), norm, nn.ReLU())
            self.deep = nn.Sequential(_conv(ndim, 6, 7, 3, stride=2), nn.ReLU())
            self.pool = nn.AdaptiveAvgPool2d(1) if ndim == 2 else nn.AdaptiveAvgPool3d(1)
            self.flat = nn.Flatten()
            self.fc = nn.Linear(7, classes)
        randomise(self, seed)
        self.fc.weight.data += 0.5  # most weights are positive: maps that cut off what is negative are not empty

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `(B, N)`."""
        logits: Tensor = self.fc(self.flat(self.pool(self.deep(self.stem(x)))))
        return logits

    def class_map(self, images: Tensor, target: int) -> Tensor:
        """Return Σ_k W_nk A_k `(B, 1, *s)` on the grid of `deep`, for the class n = `target`."""
        with torch.no_grad():
            features = self.deep(self.stem(images))
            return torch.einsum("k,bk...->b...", self.fc.weight[target], features)[:, None]


class Linear(nn.Module):
    """A linear network: `logits = W · flattened image + b`.

    Known answer: the gradient of logit n is row n of W, whatever the image; input × gradient is `W_n ⊙ image`, and its
    sum is `logit_n − b_n`; integrated gradients from the baseline 0 give the same, because the gradient does not change
    along the path. `gradient` returns `W_n` in the image's shape.

    Args:
        shape: of one image, `(C, *S)`.
        classes: logits.
        seed: of the parameters.
    """

    def __init__(self, shape: tuple[int, ...] = (1, 6, 5), classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.flat = nn.Flatten()
        with _own_random_numbers():
            self.fc = nn.Linear(torch.Size(shape).numel(), classes)
        randomise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `(B, N)`."""
        logits: Tensor = self.fc(self.flat(x))
        return logits

    def gradient(self, target: int) -> Tensor:
        """Return the gradient `(C, *S)` of the logit `target` with respect to any image."""
        return self.fc.weight[target].detach().reshape(self.shape)


class Regions(nn.Module):
    """Each class looks at one box of one channel, the last, and at nothing else.

    For class n with the box R_n, feature n is `relu(image_C · 1[voxel in R_n])` and its mean over the V voxels of the
    image, times V / |R_n|, is the logit: the mean of the positive values of that channel within R_n.

    Known answer: nothing outside of R_n changes logit n, so its gradient is 0 there and in every other channel; where
    the image is positive, it is 1 / |R_n| at each voxel of R_n in that channel. Every map that is made of the
    gradient, of the features `deep` or of hidden windows lies within R_n, but for the width of a window.
    `inside` returns the box as a mask.

    Args:
        boxes: for each class, for each spatial axis, the first voxel and the one after the last.
        channels: of the image.
        reads: the one of them that is read.
    """

    def __init__(self, *boxes: tuple[tuple[int, int], ...], channels: int = 1, reads: int = -1) -> None:
        super().__init__()
        if not boxes or len({len(box) for box in boxes}) > 1:
            raise ValueError(f"`boxes` holds, for each class, (first, after the last) of each axis; got {boxes!r}.")
        self.boxes = boxes
        ndim, classes = len(boxes[0]), len(boxes)
        with _own_random_numbers():
            self.pick = _conv(ndim, channels, classes, 1, bias=False)
            self.fc = nn.Linear(classes, classes)
        self.cut = _Cut(boxes)
        self.deep = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1) if ndim == 2 else nn.AdaptiveAvgPool3d(1)
        self.flat = nn.Flatten()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.zero_()
                if name == "pick.weight":
                    parameter[:, reads] = 1
            self.fc.weight.copy_(torch.eye(classes, device="cpu"))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `(B, N)`."""
        features = self.deep(self.cut(self.pick(x)))
        logits: Tensor = self.fc(self.flat(self.pool(features)))
        return logits

    def inside(self, target: int, shape: tuple[int, ...]) -> Tensor:
        """Return where the class `target` looks in an image of the size `shape` `*S`: 1 there, elsewhere 0."""
        return _box(self.boxes[target], shape)


class _Cut(nn.Module):
    """Keep of each feature its box, scaled so that the mean over the image becomes the mean over the box."""

    def __init__(self, boxes: tuple[tuple[tuple[int, int], ...], ...]) -> None:
        super().__init__()
        self.boxes = boxes

    def forward(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape[2:])
        masks = [box * (box.numel() / box.sum()) for box in (_box(each, shape) for each in self.boxes)]
        return x * torch.stack(masks).to(x)


def _box(box: tuple[tuple[int, int], ...], shape: tuple[int, ...]) -> Tensor:
    inside = torch.zeros(shape, device="cpu")
    inside[tuple(slice(first, end) for first, end in box)] = 1
    return inside


def constant(model: nn.Module) -> nn.Module:
    """Set the parameters of the model's last layer with parameters to zero, in place, and return the model.

    Known answer: the output is 0 for every image. It still depends on the image as far as autograd can see, so the
    gradient is not missing but 0 everywhere, and every map of what the image does to the score is 0.
    """
    with torch.no_grad():
        for parameter in _last_parameters(model):
            parameter.zero_()
    return model


def multiplied(model: nn.Module, factor: float) -> nn.Module:
    """Multiply the parameters of the model's last layer with parameters by `factor`, in place, and return the model.

    Known answer: where that layer is linear and gives the logits, every logit is `factor` times what it was, for every
    image, and so is every gradient and every difference of two logits.
    """
    with torch.no_grad():
        for parameter in _last_parameters(model):
            parameter.mul_(factor)
    return model


def _last_parameters(model: nn.Module) -> list[nn.Parameter]:
    owners = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    if not owners:
        raise ValueError(f"{type(model).__name__} has no parameters that could be changed.")
    return list(owners[-1].parameters(recurse=False))
