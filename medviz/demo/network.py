"""The demo's network: does this brain scan hold a lesion?"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

CLASSES = ("no lesion", "lesion")
WEIGHTS = Path(__file__).with_name("weights.safetensors")


class LesionNet(nn.Module):
    """A small 3-D network from a scan in the units of its file, `(B, 1, D, H, W)`, to two logits `(B, 2)`: `CLASSES`.

    Its last features have 1/4, 1/4 and 1/2 of the image's resolution: cells of 8 × 8 × 4.4 mm on the demo's scan.
    Global average pooling and one linear layer follow, so that every class-activation method applies, CAM included.

    Weights: `load_network()`; trained by `tools/train_demo.py`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.standardise = Standardise()
        self.stem = _block(1, 12, kernel=(5, 5, 3), stride=(2, 2, 1))
        self.layer1 = _block(12, 24, stride=(2, 2, 2))
        self.layer2 = _block(24, 24)
        self.layer3 = _block(24, 24)
        self.layer4 = _block(24, 24)
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(24, len(CLASSES))

    def features(self, x: Tensor) -> Tensor:
        """Return the last feature maps `(B, 24, d, h, w)`, non-negative."""
        x = self.layer1(self.stem(self.standardise(x)))
        features: Tensor = self.layer4(self.layer3(self.layer2(x)))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `(B, 2)` of scans `(B, 1, D, H, W)`."""
        logits: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return logits


class Standardise(nn.Module):
    """Give what is not background (0) a mean of 1 and leave the background at 0, for each image alone.

    It makes the network independent of the scanner's arbitrary units, so that it takes a scan as it lies in its file.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `(B, C, *S)` divided by the mean of its positive values."""
        axes = list(range(1, x.ndim))
        positive = x.clamp(min=0)
        mean = positive.sum(axes, keepdim=True) / (x > 0).sum(axes, keepdim=True).clamp(min=1)
        return x / mean.clamp(min=torch.finfo(x.dtype).tiny)


def load_network() -> LesionNet:
    """Return the trained network on the CPU, in eval mode."""
    network = LesionNet()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval()


def _block(
    inputs: int, outputs: int, kernel: tuple[int, int, int] = (3, 3, 3), stride: tuple[int, int, int] = (1, 1, 1)
) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True))
