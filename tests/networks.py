"""Tiny networks, the devices that are present, and the comparison that the tests of explainers share."""

from __future__ import annotations

from typing import Any

import faraway
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import medviz
from medviz import registry

OURS = [entry for entry in registry.entries("explainers") if entry.package == "medviz-xai"]
LAYERED = [entry.name for entry in OURS if entry.load().needs_layer]  # type: ignore[attr-defined]
GRADIENT = [entry.name for entry in OURS if entry.load().needs_gradient]  # type: ignore[attr-defined]

# images that run beside those that a method asks for: whether a network mixes them is asked with one, another, and both
ASKED = 4

REAL = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DEVICES = [*REAL, *faraway.DEVICES]
# of the maximum; on CUDA with TF32 off, its kernels differ by batch size
TOLERANCE = {"cuda": 1e-4} | dict.fromkeys(["cpu", *faraway.DEVICES], 1e-5)


def explain(name: str, model: nn.Module, image: Any, target: Any = None, **parameters: Any) -> medviz.Attribution:
    """Explain by our own explainer, whatever else is installed under its name."""
    options = {
        key: parameters.pop(key) for key in ("output", "batch_size", "model_args", "compiled") if key in parameters
    }
    explainer = medviz.get_explainer(f"medviz-xai/{name}", **parameters)
    result = explainer(model, image, target, **options)
    assert isinstance(result, medviz.Attribution)
    return result


def check_close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Fail unless the largest difference is within `tolerance` of the largest expected value, which is not 0."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    largest = expected.detach().abs().max().item()
    assert largest > 0, "nothing to compare: the expected map is empty"
    difference = (got.detach().cpu().double() - expected.detach().cpu().double()).abs().max().item()
    assert difference <= tolerance * largest, f"{difference / largest:.2e} of the maximum, allowed is {tolerance:.0e}"


def images(count: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return `(count, *shape)` normal numbers, the same for the same seed."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill parameters and running statistics with numbers of a reasonable size, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.5 / fan**0.5))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + (0.5 if name.endswith("var") else 0))
    return model.eval()


def conv(ndim: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Return a 2-D or 3-D convolution."""
    return (nn.Conv2d if ndim == 2 else nn.Conv3d)(*args, **kwargs)


class Classifier(nn.Module):
    """Two convolutions, global average pooling, one linear layer: every method is valid on `deep`."""

    def __init__(self, ndim: int = 2, channels: int = 2, classes: int = 4, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if ndim == 2 else nn.BatchNorm3d
        self.stem = nn.Sequential(conv(ndim, channels, width, 3, padding=1), norm(width), nn.ReLU(inplace=True))
        self.deep = nn.Sequential(conv(ndim, width, width + 1, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(width + 1, classes)
        seeded(self, seed)
        self.fc.weight.data += 0.5  # so that most maps are not empty

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.deep(self.stem(x)))

    def head(self, features: Tensor) -> Tensor:
        return self.fc(features.flatten(2).mean(2))


class Linear(nn.Module):
    """conv → GAP → linear, without any ReLU: all maps are known on paper."""

    def __init__(self, kernels: list[float], weight: list[list[float]], bias: list[float], ndim: int = 2) -> None:
        super().__init__()
        self.conv = conv(ndim, 1, len(kernels), 1, bias=False)
        self.fc = nn.Linear(len(kernels), len(bias))
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor(kernels).view(-1, *[1] * (ndim + 1)))
            self.fc.weight.copy_(torch.tensor(weight))
            self.fc.bias.copy_(torch.tensor(bias))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(2).mean(2))


class UNet(nn.Module):
    """Two levels with one skip connection; the output has the image's grid, for odd sizes too."""

    def __init__(self, ndim: int = 2, channels: int = 1, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.top = nn.Sequential(conv(ndim, channels, 4, 3, padding=1), nn.ReLU())
        self.bottom = nn.Sequential(conv(ndim, 4, 6, 3, stride=2, padding=1), nn.ReLU())
        self.merge = nn.Sequential(conv(ndim, 10, 5, 3, padding=1), nn.ReLU())
        self.logits = conv(ndim, 5, classes, 1)
        seeded(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        top = self.top(x)
        up = F.interpolate(self.bottom(top), size=x.shape[2:], mode="nearest")
        return self.logits(self.merge(torch.cat([top, up], 1)))


class Tokens(nn.Module):
    """Patches become tokens `(B, N, K)`; attention mixes them; their mean, or a class token, makes the logits."""

    def __init__(
        self, ndim: int = 2, patch: int = 4, class_token: bool = False, classes: int = 3, seed: int = 0
    ) -> None:
        super().__init__()
        self.patch = conv(ndim, 1, 8, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, 8)) if class_token else None
        self.block = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 3)
        seeded(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).mT
        if self.token is not None:
            tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.block(tokens))

    def head(self, tokens: Tensor) -> Tensor:
        mixed = self.norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return self.fc(mixed[:, 0] if self.token is not None else mixed.mean(1))


class ChannelsLast(nn.Module):
    """A layer that returns `(B, *s, K)`, as Swin-like networks do."""

    def __init__(self, ndim: int = 2, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.patch = conv(ndim, 1, 5, 2, stride=2)
        self.block = nn.Sequential(nn.Linear(5, 7), nn.ReLU())
        self.fc = nn.Linear(7, classes)
        seeded(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.patch(x).movedim(1, -1)).flatten(1, -2).mean(1))
