"""The documented calls against an installed MONAI, where MONAI is right: one image, an int class, 2-D and 3-D.

"1e-5" is the largest difference as a fraction of the largest value of MONAI's, and 1e-11 for the same in float64.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import attrs
import monai.visualize
import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map
from networks import check_close, images
from networks_monai import densenet, resnet_10, resnet_18, seresnet
from PIL import Image
from torch import Tensor, nn

import medviz.visualize
from medviz.explainers.sampling import generator, image_range
from medviz.hookspecs import Occluder, hookimpl
from medviz.occluders.gaussian import Gaussian

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),  # MONAI's own hooks
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing"),
]

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
SIZES = {2: (66, 34), 3: (65, 33, 33)}


NETWORKS = [
    (densenet, 2, "class_layers.relu", "class_layers.out"),
    (densenet, 3, "class_layers.relu", "class_layers.out"),
    (resnet_10, 2, "layer4", "fc"),
    (resnet_18, 3, "layer4", "fc"),
    (seresnet, 2, "layer4", "last_linear"),
    (seresnet, 3, "layer4", "last_linear"),
]
CASES = pytest.mark.parametrize(("make", "ndim", "layer", "fc"), NETWORKS, ids=lambda v: getattr(v, "__name__", str(v)))
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
Make = Callable[[int], nn.Module]


def build(make: Make, ndim: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return make(ndim).eval().to(dtype), images(1, 1, *SIZES[ndim], dtype=dtype)


def unscaled(x: Tensor) -> Tensor:
    return x


@DTYPES
@CASES
def test_cam(make: Make, ndim: int, layer: str, fc: str, dtype: torch.dtype) -> None:
    """MONAI fails with an int, so that it gets the class in a tensor."""
    model, image = build(make, ndim, dtype)
    ours, theirs = (v.CAM(model, layer, fc) for v in (medviz.visualize, monai.visualize))
    for target in (0, 2):
        check_close(ours.compute_map(image, target), theirs.compute_map(image, [target]), TOLERANCE[dtype])
    if dtype == torch.float32:
        check_close(ours(image, 2), theirs(image, [2]))
        check_close(ours(image), theirs(image))
        assert ours.feature_map_size(image.shape) == theirs.feature_map_size(image.shape)


@DTYPES
@CASES
def test_gradcam(make: Make, ndim: int, layer: str, fc: str, dtype: torch.dtype) -> None:
    model, image = build(make, ndim, dtype)
    ours, theirs = (v.GradCAM(model, layer) for v in (medviz.visualize, monai.visualize))
    compared = 0
    for target in range(3):
        raw = theirs.compute_map(image, target)
        if raw.any():
            compared += 1
            check_close(ours.compute_map(image, target), raw, TOLERANCE[dtype])
            if dtype == torch.float32:
                check_close(ours(image, target), theirs(image, target))
    assert compared


@DTYPES
@CASES
def test_vanilla_grad(make: Make, ndim: int, layer: str, fc: str, dtype: torch.dtype) -> None:
    model, image = build(make, ndim, dtype)
    for target in (None, 2):
        theirs = monai.visualize.VanillaGrad(model)(image.clone(), target)
        check_close(medviz.visualize.VanillaGrad(model)(image, target), theirs, TOLERANCE[dtype])


def the_same_noise(monkeypatch: pytest.MonkeyPatch, seed: int, image: Tensor) -> None:
    """Make MONAI draw, to the last bit, what medviz draws from a generator with `seed`."""
    source = generator(seed)

    def normal(mean: float, std: float, size: Any, **_: Any) -> Tensor:
        assert mean == 0
        assert std == pytest.approx(0.15 * float(image_range(image)))
        return torch.randn(size[1:], generator=source)[None].to(image) * 0.15 * image_range(image)

    monkeypatch.setattr(torch, "normal", normal)


@DTYPES
@CASES
def test_smoothgrad(
    make: Make, ndim: int, layer: str, fc: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `magnitude`; with it MONAI's scale falls with the number of samples."""
    model, image = build(make, ndim, dtype)
    n = 2
    the_same_noise(monkeypatch, 5, image)
    theirs = monai.visualize.SmoothGrad(model, n_samples=n, magnitude=False, verbose=False)(image, 1)
    ours = medviz.visualize.SmoothGrad(model, n_samples=n, magnitude=False, verbose=False, seed=5)(image, 1)
    check_close(ours, theirs, TOLERANCE[dtype])
    if dtype == torch.float32 and ndim == 2:
        the_same_noise(monkeypatch, 5, image)
        theirs = monai.visualize.SmoothGrad(model, n_samples=n, verbose=False)(image, 1)
        ours = medviz.visualize.SmoothGrad(model, n_samples=n, verbose=False, seed=5)(image, 1)
        check_close(ours, theirs * n**0.5)


class Named(nn.Module):
    """Every ReLU is a module of its own, called relu."""

    def __init__(self, ndim: int) -> None:
        super().__init__()
        conv = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.conv1, self.relu1 = conv(1, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = conv(4, 6, 3, stride=2, padding=1), nn.ReLU()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.fc(x.flatten(2).mean(2))


@DTYPES
@pytest.mark.parametrize(
    ("make", "ndim"), [(Named, 2), (Named, 3), (densenet, 2)], ids=lambda v: getattr(v, "__name__", str(v))
)
def test_guided(make: Make, ndim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = build(make, ndim, dtype)
    theirs = monai.visualize.GuidedBackpropGrad(model)(image.clone(), 1)
    check_close(medviz.visualize.GuidedBackpropGrad(model)(image, 1), theirs, TOLERANCE[dtype])
    arguments = {"n_samples": 3, "magnitude": False, "verbose": False}
    the_same_noise(monkeypatch, 7, image)
    theirs = monai.visualize.GuidedBackpropSmoothGrad(model, **arguments)(image, 1)
    ours = medviz.visualize.GuidedBackpropSmoothGrad(model, **arguments, seed=7)(image, 1)
    check_close(ours, theirs, TOLERANCE[dtype])


@attrs.frozen(eq=False)
class BlendedAsReleased(Occluder):
    """MONAI hides with a Gaussian of a quarter of the box and blends with one of an eighth."""

    @hookimpl
    def occlude(self, patches: Tensor, image: Tensor, corners: Tensor) -> Tensor:
        return Gaussian()(patches, image, corners)

    @hookimpl
    def blend_weight(self, mask_size: tuple[int, ...]) -> Tensor:
        return compute_importance_map(mask_size, mode="gaussian", sigma_scale=0.125)


# in this order: medviz's mode, MONAI's
MODES = {"mean_img": ("mean_img",) * 2, "constant": (0.3, 0.3), "gaussian": (BlendedAsReleased(), "gaussian")}
SHARED = {"n_batch": 7, "verbose": False}


@DTYPES
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("ndim", "size", "mask", "overlap", "b_box"),
    [
        (2, (40, 33), 9, 0.6, None),
        (2, (40, 33), (8, 11), 0.25, [6, 30, -1, -1]),
        (2, (40, 33), 7, 0.0, [0, 20, 3, 29]),
        (3, (17, 14, 12), (6, 5, 4), 0.5, None),
        (3, (17, 14, 12), 5, 0.3, [4, 12, 2, 11, -1, -1]),
    ],
)
def test_occlusion(
    ndim: int, size: tuple[int, ...], mask: Any, overlap: float, b_box: Any, mode: str, dtype: torch.dtype
) -> None:
    """Switched off: classes last (`class_dim`), the inclusive end of `b_box`, the Gaussian that blends.

    With one channel there is one mean; MONAI would look at the image's channels, so that the activation is named.
    """
    torch.manual_seed(0)
    model = Named(ndim).eval().to(dtype)
    model.fc.weight.data *= 20  # so that it matters what is hidden
    image = images(1, 1, *size, dtype=dtype)
    arguments = {**SHARED, "mask_size": mask, "overlap": overlap, "activate": lambda out: out.softmax(1)}
    exclusive = b_box and [b - 1 if i % 2 and b > 0 else b for i, b in enumerate(b_box)]
    ours = medviz.visualize.OcclusionSensitivity(model, mode=MODES[mode][0], class_dim=1, **arguments)
    theirs = monai.visualize.OcclusionSensitivity(model, mode=MODES[mode][1], **arguments)
    (got, most), (expected, their_most) = ours(image, exclusive), theirs(image, b_box)
    check_close(got, expected.as_subclass(Tensor), 1e-4 if mode == "gaussian" else 1e-5)
    assert float(expected.std(dim=(0, *range(2, ndim + 2))).max()) > 1e-3
    assert (most == their_most.as_subclass(Tensor)).float().mean() > 0.99


def test_the_documented_axes_are_the_released_ones_moved() -> None:
    model, image = build(Named, 2)
    last, most = medviz.visualize.OcclusionSensitivity(model, **SHARED)(image)
    second, same = medviz.visualize.OcclusionSensitivity(model, **SHARED, class_dim=1)(image)
    check_close(last[:, 0], second.movedim(1, -1))
    assert (most == same).float().mean() > 0.99
    assert torch.equal(most, last.argmax(-1))


@pytest.mark.parametrize("size", [(5, 7), (6, 4, 9), (16, 16)])
def test_the_static_methods_of_occlusion(size: tuple[int, ...]) -> None:
    x = images(1, 2, 20, 20, *[20] * (len(size) - 2))
    ours, theirs = medviz.visualize.OcclusionSensitivity, monai.visualize.OcclusionSensitivity
    for sigma in (0.25, 0.15):
        (mul, add), (their_mul, their_add) = (o.gaussian_occlusion(x, size, sigma) for o in (ours, theirs))
        check_close(mul, their_mul, 1e-4)
        assert add == their_add == 0
    (mul, add), (their_mul, their_add) = (o.constant_occlusion(x, 2.5, size) for o in (ours, theirs))
    assert mul == their_mul == 0
    assert torch.equal(add, their_add)


@pytest.mark.parametrize("activate", [True, False, torch.tanh])
def test_the_predictor(activate: Any) -> None:
    """MONAI looks at the image's channels: with one logit and one channel both take the sigmoid."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(120, 1 if activate is True else 3)).eval()
    x, mask = images(1, 1, 12, 10), (4, 3)
    grid = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(10.0), indexing="ij"))[None]
    windows = torch.cat([grid[:, :, r : r + 4, c : c + 3] for r, c in [(0, 0), (3, 5), (8, 7)]])
    mul, add = medviz.visualize.OcclusionSensitivity.gaussian_occlusion(x, mask)
    for mode in ("gaussian", "mean_img"):
        got, expected = (
            o.predictor(windows, model, x, mul, add, mask, mode, activate, {})
            for o in (medviz.visualize.OcclusionSensitivity, monai.visualize.OcclusionSensitivity)
        )
        check_close(got, expected)


def test_the_grid_that_boxes_slide_over() -> None:
    grid = torch.stack(torch.meshgrid(torch.arange(30), torch.arange(24), indexing="ij"))[None].float()
    meta = monai.data.MetaTensor(grid)
    got, crop, size = medviz.visualize.OcclusionSensitivity.crop_meshgrid(grid, [8, 19, -1, -1], (5, 7))
    expected, their_crop, their_size = monai.visualize.OcclusionSensitivity.crop_meshgrid(meta, [8, 20, -1, -1], (5, 7))
    assert torch.equal(got, expected.as_subclass(Tensor))
    assert list(size) == list(their_size)
    assert list(crop.slices) == list(their_crop.slices)
    assert torch.equal(crop.inverse(got[0]), their_crop.inverse(expected[0]).as_subclass(Tensor))


def test_normaliser_and_upsampler() -> None:
    x = images(3, 1, 7, 5)
    ours, theirs = medviz.visualize, monai.visualize
    check_close(ours.default_normalizer(x), theirs.default_normalizer(x), 1e-6)
    np.testing.assert_allclose(ours.default_normalizer(x.numpy()), theirs.default_normalizer(x.numpy()), atol=1e-6)
    for align_corners in (False, True):
        for shape, size in (((5, 6), (11, 7)), ((3, 4, 5), (6, 7, 4)), ((6,), (9,))):
            y = images(2, 1, *shape)
            got, expected = (v.default_upsampler(size, align_corners)(y) for v in (ours, theirs))
            assert torch.equal(got, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(9, 8), (5, 6, 7)])
def test_blend_images(channels: int, shape: tuple[int, ...]) -> None:
    """Where the smallest value of the label is its background, 0."""
    rng = np.random.default_rng(0)
    image, label = rng.random((channels, *shape), np.float32), rng.random((1, *shape), np.float32)
    label[label < 0.3] = 0
    for kind in (np.asarray, torch.as_tensor):
        got, expected = (v.blend_images(kind(image), kind(label), 0.4) for v in (medviz.visualize, monai.visualize))
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("arguments", [{}, {"frame_dim": -1, "every_n": 2}, {"frames_per_row": 3, "fill_value": 0}])
def test_matshow3d(arguments: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    volume = np.random.default_rng(0).random((2, 7, 6, 5), np.float32)
    (_, got), (_, expected) = (v.matshow3d(volume, **arguments) for v in (medviz.visualize, monai.visualize))
    plt.close("all")  # MONAI leaves it open
    assert np.array_equal(got, expected, equal_nan=True)


def decoded(summary: Any) -> np.ndarray:
    with Image.open(io.BytesIO(summary.value[0].image.encoded_image_string)) as movie:
        return np.stack(
            [np.asarray((movie.seek(i), movie.convert("L"))[1]) for i in range(getattr(movie, "n_frames", 1))]
        )


@pytest.mark.parametrize("frame_dim", [-3, -2, -1, 1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_gif_decodes_to_the_same_frames(frame_dim: int, scale: float) -> None:
    """Where no value lies outside of 0 to 255."""
    image = np.random.default_rng(0).uniform(0, 255 / scale, (2, 5, 7, 6)).astype(np.float32)
    ours, theirs = (
        v.make_animated_gif_summary("t", image, max_out=2, frame_dim=frame_dim, scale_factor=scale)
        for v in (medviz.visualize, monai.visualize)
    )
    assert [s.value[0].tag for s in ours] == [s.value[0].tag for s in theirs] == ["t/image/0", "t/image/1"]
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert np.array_equal(decoded(one), decoded(other))
        spatial = frame_dim - 1 if frame_dim > 0 else frame_dim
        assert np.array_equal(decoded(one), np.moveaxis((image[i] * scale).astype(np.uint8), spatial, 0))
