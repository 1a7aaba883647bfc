"""CAM at 4,096 locations beside MONAI's, on a network so light that the map is what takes the time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.agreement import agree, said
from benchmarks.options import Options
from benchmarks.rows import Case, Row
from benchmarks.timing import interleaved, medians, ratio
from medviz.explainers.cam import CAM

_FEATURES, _CLASSES = 512, 10
_SIZES = {2: 64, 3: 16}  # both 4,096 locations


class Light(nn.Module):
    """One convolution, global average pooling and a linear layer."""

    def __init__(self, nd: int) -> None:
        super().__init__()
        conv, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if nd == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
        self.features = nn.Sequential(conv(1, _FEATURES, 1), nn.ReLU())
        self.pool = pool(1)
        self.fc = nn.Linear(_FEATURES, _CLASSES, bias=False)  # MONAI adds a bias to every voxel

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, 10)`."""
        result: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return result


def cases(options: Options) -> Iterator[Case]:
    """Return a case in 2-D and one in 3-D."""
    for nd in _SIZES:
        yield Case(f"{nd}-D", partial(_compare, nd, options), "cam")


def _compare(nd: int, options: Options) -> Iterator[Row]:
    import monai.visualize

    torch.manual_seed(0)
    model = Light(nd).eval().to(options.device)
    image = torch.rand(1, 1, *[_SIZES[nd]] * nd).to(options.device)
    ours, peer = CAM("features"), monai.visualize.CAM(model, "features", "fc")
    found = agree({"medviz": ours(model, image, 1).raw, "MONAI": peer.compute_map(image, [1])}, 1e-5)
    ways = {"medviz": lambda: ours(model, image, 1), "MONAI": lambda: peer(image, [1])}
    times = interleaved(ways, options.rounds(41), options.device)
    note = f"maps {said(found)}; {options.rounds(41)} rounds"
    title = f"{_FEATURES} features, {nd}-D, one convolution before"
    yield Row("cam", title, ratio(times, "MONAI", "medviz"), medians(times), note)
