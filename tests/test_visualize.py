"""The documented calls: signatures, sub-modules, what they add to the text, and wrong input."""

from __future__ import annotations

import importlib
import inspect
import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorboardX
import torch
from networks import DEVICES, Classifier, UNet, check_close, conv, explain, images, seeded
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import medviz
import medviz.visualize as v
from medviz.occluders.blur import Blur
from medviz.windows import Crop, Grid, sliding_range

LAYER = "deep"
SUBMODULES = [
    "class_activation_maps",
    "gradient_based",
    "img2tensorboard",
    "occlusion_sensitivity",
    "utils",
    "visualizer",
]


def occlusion(model: nn.Module, **arguments: Any) -> v.OcclusionSensitivity:
    return v.OcclusionSensitivity(model, **{"mask_size": 4, "verbose": False, **arguments})


# names


@pytest.mark.parametrize(("code", "forbidden"), [("medviz", "torch"), ("medviz.visualize", "monai")])
def test_what_an_import_brings_along(code: str, forbidden: str) -> None:
    script = f"import sys, {code}; sys.exit({forbidden!r} in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert "visualize" not in dir(medviz.Attribution)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["", *SUBMODULES])
def test_names_and_signatures_are_those_of_monai(name: str) -> None:
    """Same parameters, in the same order, with the same defaults; medviz may have more, keyword only, behind them."""
    dotted = f"visualize.{name}".rstrip(".")
    theirs, ours = importlib.import_module(f"monai.{dotted}"), importlib.import_module(f"medviz.{dotted}")
    public = getattr(theirs, "__all__", None) or [n for n in vars(theirs) if n in v.__all__]
    assert public
    for each in public:
        assert each in ours.__all__
        one, other = getattr(ours, each), getattr(theirs, each)
        check_signature(one, other)
        if inspect.isclass(other):
            for attribute, method in inspect.getmembers(other, inspect.isfunction):
                if not attribute.startswith("_") or attribute in ("__init__", "__call__"):
                    if attribute in ("backward_hook", "forward_hook"):
                        continue  # how MONAI does it
                    check_signature(getattr(one, attribute), method)


def check_signature(ours: Any, theirs: Any) -> None:
    got, expected = (list(inspect.signature(f).parameters.values()) for f in (ours, theirs))
    extra = [p for p in got if p.kind is not p.KEYWORD_ONLY]
    assert [(p.name, p.kind, default(p)) for p in extra] == [(p.name, p.kind, default(p)) for p in expected]


def default(parameter: inspect.Parameter) -> Any:
    value = parameter.default
    return value.__name__ if inspect.isfunction(value) else str(value)


# class activation maps


@pytest.mark.parametrize("device", DEVICES)
def test_results_stay_on_the_images_device(device: str) -> None:
    model, x = Classifier().to(device), images(2, 2, 8, 8).to(device)
    wrapper = v.ModelWithHooks(model, LAYER, True, True)
    logits, acti, grad = wrapper(x, torch.tensor([0, 1]))
    results = [logits, *acti, *grad, wrapper.score, v.CAM(model, LAYER)(x), v.GradCAM(model, LAYER)(x)]
    results += [v.VanillaGrad(model)(x), *occlusion(model)(x), v.default_normalizer(x)]
    assert {t.device.type for t in results} == {device}


@pytest.mark.parametrize("ndim", [2, 3])
def test_maps_are_the_engines(ndim: int) -> None:
    model, x = Classifier(ndim), images(3, 2, *[8] * ndim)
    for target in (None, 1, torch.tensor([2, 0, 3])):
        for name, method in (("gradcam", v.GradCAM), ("gradcampp", v.GradCAMpp)):
            expected = explain(name, model, x, target, layer=LAYER)
            assert torch.equal(method(model, LAYER).compute_map(x, target), expected.raw)
            upsampled = method(model, LAYER, postprocessing=lambda m: m)(x, target)
            assert torch.equal(upsampled, expected.values)
        cam = v.CAM(model, LAYER)
        raw = explain("cam", model, x, target, layer=LAYER)
        bias = model.fc.bias.detach()[list(raw.classes)].reshape(-1, *[1] * (ndim + 1))
        check_close(cam.compute_map(x, target), raw.raw + bias)
        assert torch.equal(torch.as_tensor(cam.nn_module.class_idx).expand(3), torch.tensor(raw.classes))


def test_a_list_names_the_class_of_each_image() -> None:
    model, x = Classifier(), images(2, 2, 8, 8)
    for method in (v.CAM, v.GradCAM):
        assert torch.equal(method(model, LAYER)(x, [2, 0]), method(model, LAYER)(x, torch.tensor([2, 0])))


def test_several_layers_and_two_maps_on_one_model() -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    both = v.GradCAM(model, ["stem", "deep"])
    other = v.GradCAMpp(model, "stem")
    for layer_idx, name in ((0, "stem"), (1, "deep"), (-1, "deep")):
        other(x, 1)
        assert torch.equal(both(x, 1, layer_idx), v.GradCAM(model, name)(x, 1))
        shape = both.feature_map_size((1, 2, 8, 8), layer_idx=layer_idx)
        assert shape == ((1, 1, 8, 8) if name == "stem" else (1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"`layer_idx` 2 is out of range: the target layers are \('stem', 'deep'\)"):
        both(x, 1, layer_idx=2)


def test_heads_of_every_kind() -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    expected = v.CAM(model, LAYER)(x, 1)
    assert torch.equal(v.CAM(model, LAYER, lambda m: m.fc)(x, 1), expected)
    weight, bias = model.fc.weight.data, model.fc.bias.data
    convolution = conv(2, 7, 4, 1)
    convolution.weight.data, convolution.bias.data = weight[..., None, None], bias
    model.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(7, 4))
    model.fc[1].weight.data, model.fc[1].bias.data = weight, bias
    check_close(v.CAM(model.train(), LAYER)(x, 1), expected)
    model.head = lambda features: convolution(features.mean((2, 3), keepdim=True)).flatten(1)
    model.conv = convolution
    check_close(v.CAM(model, LAYER, "conv")(x, 1), expected)


def test_a_head_that_does_not_fit() -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    with pytest.raises(ValueError, match="does not take the 6 features of the layer"):
        v.CAM(model, "stem")(x, 1)
    with pytest.raises(ValueError, match="'fcc' is not in the model; did you mean 'fc'"):
        v.CAM(model, LAYER, "fcc")(x, 1)
    with pytest.raises(TypeError, match="a layer is a name or a callable that returns a module; got 3"):
        v.CAM(model, LAYER, lambda m: 3)(x, 1)
    with pytest.raises(ValueError, match="leads to a module that is not in the model"):
        v.GradCAM(model, lambda m: nn.ReLU())
    with pytest.raises(ValueError, match="expected a row for each"):
        v.CAM(model, LAYER, lambda m: nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1))))(x, 1)


def test_a_wrapper_may_be_given_and_may_say_what_the_score_is() -> None:
    class Sum(v.ModelWithHooks):
        def class_score(self, logits: Tensor, class_idx: Any) -> Tensor:
            return logits[:, class_idx].flatten(1).sum(1) if logits.ndim > 2 else 2 * logits[:, class_idx]

    model, x = UNet(), images(2, 1, 8, 8)
    cam = v.GradCAM(Sum(model, "bottom", True, True), "bottom", postprocessing=lambda m: m)
    expected = explain("gradcam", model, x, lambda out: out[:, 1].flatten(1).sum(1), layer="bottom")
    check_close(cam(x, 1), expected.values)
    classifier, x = Classifier(), images(2, 2, 8, 8)
    twice = v.VanillaGrad(Sum(classifier, (), register_backward=True))(x, 1)
    check_close(twice, 2 * v.VanillaGrad(classifier)(x, 1))


def test_a_score_of_the_wrong_size() -> None:
    class Wrong(v.ModelWithHooks):
        def class_score(self, logits: Tensor, class_idx: Any) -> Tensor:
            return logits.sum()

    with pytest.raises(ValueError, match="`class_score` returned 1 scores for 2 images"):
        v.GradCAM(Wrong(Classifier(), LAYER), LAYER)(images(2, 2, 8, 8), 1)


def test_the_argmax_goes_to_a_score_of_ones_own_for_each_image() -> None:
    class Same(v.ModelWithHooks):
        def class_score(self, logits: Tensor, class_idx: Any) -> Tensor:
            return super().class_score(logits, class_idx)

    model, x = Classifier(), images(3, 2, 8, 8)
    assert torch.equal(v.GradCAM(Same(model, LAYER), LAYER)(x), v.GradCAM(model, LAYER)(x))
    one = [v.SmoothGrad(m, n_samples=3, verbose=False, seed=0)(x) for m in (Same(model, ()), model)]
    check_close(*one)


def test_a_part_of_a_segmentation_is_a_target() -> None:
    model, x = UNet(), images(1, 1, 8, 8)
    target = medviz.SegmentationTarget(1, torch.ones(8, 8))
    expected = explain("gradcam", model, x, target, layer="bottom")
    assert torch.equal(v.GradCAM(model, "bottom", postprocessing=lambda m: m)(x, target), expected.values)


def test_names_behind_a_wrapper_of_torch() -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    parallel = nn.DataParallel(model)
    for name in ("module.deep", "deep"):
        assert torch.equal(v.GradCAM(parallel, name)(x, 1), v.GradCAM(model, LAYER)(x, 1))


def test_what_the_wrapper_keeps() -> None:
    model, x = Classifier(), images(2, 2, 8, 8)
    wrapper = v.ModelWithHooks(model, ["stem", "deep"], register_forward=True, register_backward=True)
    logits, acti, grad = wrapper(x)
    torch.testing.assert_close(logits, model(x).detach())
    assert torch.equal(wrapper.class_idx, logits.argmax(1))
    assert torch.equal(wrapper.score, wrapper.class_score(logits, wrapper.class_idx))
    assert [t.shape for t in acti] == [t.shape for t in grad] == [(2, 6, 8, 8), (2, 7, 4, 4)]
    assert list(wrapper.activations) == list(wrapper.gradients) == ["stem", "deep"]
    assert wrapper.get_wrapped_net() is wrapper.model is model
    forward = v.ModelWithHooks(model, "deep", register_forward=True)
    _, (features,), none = forward(x)
    assert none is None
    assert torch.equal(features, acti[1])
    assert v.ModelWithHooks(model, ())(x)[1:] == (None, None)


def test_a_normaliser_of_ones_own_and_an_upsampler_of_ones_own() -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    cam = v.GradCAM(model, LAYER, upsampler=lambda size: lambda m: m, postprocessing=lambda m: m.numpy())
    assert isinstance(cam(x, 1), np.ndarray)
    assert cam(x, 1).shape == (1, 1, 4, 4)


def test_the_normaliser_keeps_integers_apart() -> None:
    assert v.default_normalizer(torch.tensor([[0, 5, 10]])).tolist() == [[1, 0.5, 0]]
    read_only = np.broadcast_to(np.arange(3, dtype=">i2"), (2, 3))
    assert v.default_normalizer(read_only).tolist() == [[1, 0.5, 0]] * 2
    assert v.default_normalizer(np.array([[0, 5, 10], [3, 3, 3]])).tolist() == [[1, 0.5, 0], [1, 1, 1]]


@pytest.mark.parametrize("x", [np.zeros((1, 2, 8, 8), np.float32), torch.zeros(2, 8, 8), torch.zeros(1, 2, 8, 8).int()])
def test_a_wrong_image(x: Any) -> None:
    model = Classifier()
    for call in (v.CAM(model, LAYER), v.GradCAM(model, LAYER), v.VanillaGrad(model), occlusion(model)):
        with pytest.raises((TypeError, ValueError), match=r"`x` is a|`image` has shape|`image` holds"):
            call(x)


def test_a_class_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="`target` 7 is out of range: the network has 4 outputs"):
        v.CAM(Classifier(), LAYER)(images(1, 2, 8, 8), 7)


# gradients


def test_gradients_are_the_engines() -> None:
    model, x = Classifier(), images(2, 2, 8, 8)
    pairs = [
        ("vanillagrad", {}, v.VanillaGrad(model)),
        ("guidedbackprop", {}, v.GuidedBackpropGrad(model)),
        ("smoothgrad", {"n_samples": 3, "statistic": "magnitude"}, v.SmoothGrad(model, n_samples=3, seed=1)),
        ("guidedbackpropsmooth", {"n_samples": 3}, v.GuidedBackpropSmoothGrad(model, 0.15, 3, False, False, seed=1)),
    ]
    for name, parameters, call in pairs:
        seed = {"seed": 1} if "smooth" in name else {}
        assert torch.equal(call(x, 1), explain(name, model, x, 1, **parameters, **seed).values)


def test_the_model_of_a_gradient_may_be_set() -> None:
    one, other, x = Classifier(), Classifier(seed=1), images(1, 2, 8, 8)
    grad = v.VanillaGrad(one)
    expected = v.VanillaGrad(other)(x, 0)
    grad.model = other
    assert torch.equal(grad(x, 0), expected)
    grad.model = v.ModelWithHooks(one, ())
    assert grad.model is one
    assert torch.equal(grad.get_grad(x, 0), v.VanillaGrad(one)(x, 0))


# occlusion


def test_change_is_the_difference_to_the_clean_probabilities() -> None:
    model, x = Classifier(), images(2, 2, 8, 8)
    occ_map, most = occlusion(model)(x, [1, 5, 2, 6])
    change, same = occlusion(model, change=True)(x, [1, 5, 2, 6])
    clean = model(x).softmax(1).detach()
    torch.testing.assert_close(change, occ_map - clean[:, None, None, None])
    assert (most == same).float().mean() > 0.99  # two passes may round differently
    raw = occlusion(model, change=True, activate=False, class_dim=1, mode=0.0)(x)[0]
    for target in range(4):
        engine = explain("occlusion", model, x, target, mask_size=4, occluder="constant")
        check_close(-raw[:, target : target + 1], engine.values, 1e-4)


def test_occluders_of_the_engine_are_modes() -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    for mode in ("blur", Blur()):
        check_close(occlusion(model, mode=mode)(x)[0], occlusion(model, mode=Blur())(x)[0])
    assert not torch.equal(occlusion(model, mode="blur")(x)[0], occlusion(model)(x)[0])


def test_a_function_may_work_in_place_and_return_a_number() -> None:
    def in_place(x: Tensor, to_occlude: Tensor) -> Tensor:
        x.zero_()
        return to_occlude.zero_()

    model, x = Classifier(), images(1, 2, 8, 8)
    expected = occlusion(model, mode=0)(x)[0]
    kept = x.clone()
    check_close(occlusion(model, mode=in_place)(x)[0], expected)
    check_close(occlusion(model, mode=lambda x, to_occlude: 0.0)(x)[0], expected)
    assert torch.equal(x, kept)


def test_a_function_as_activation_may_reduce_a_segmentation() -> None:
    mean = occlusion(UNet(), activate=lambda out: out.softmax(1).flatten(2).mean(2))
    occ_map, _ = mean(images(1, 1, 8, 8))
    assert occ_map.shape == (1, 1, 8, 8, 3)
    torch.testing.assert_close(occ_map.sum(-1), torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"need an output \(B, N\) .*SegmentationTarget"):
        occlusion(UNet())(images(1, 1, 8, 8))


def test_the_model_gets_its_arguments() -> None:
    class Scaled(Classifier):
        def forward(self, x: Tensor, factor: Any = 1) -> Tensor:
            return factor * super().forward(x)

    model, x, factors = Scaled(), images(2, 2, 8, 8), torch.tensor([[1.0], [3.0]])
    expected = torch.cat([occlusion(model)(x[i : i + 1], factor=float(factors[i]))[0] for i in range(2)])
    check_close(occlusion(model)(x, factor=medviz.per_image(factors))[0], expected)
    check_close(v.VanillaGrad(model)(x, 0, factor=3), 3 * v.VanillaGrad(model)(x, 0))
    check_close(v.GradCAM(model, LAYER).compute_map(x, 0, factor=3), 3 * v.GradCAM(model, LAYER).compute_map(x, 0))


def test_the_predictor_takes_what_is_made_on_the_fly() -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    grid = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"))[None]
    window = grid[:, :, 2:6, 1:4]
    for mode in ("mean_patch", lambda image, patch: patch.mean((2, 3), keepdim=True).expand_as(patch)):
        out = v.OcclusionSensitivity.predictor(window, model, x, 1, 0, (4, 3), mode, True, {})
        hidden = x.clone()
        hidden[..., 2:6, 1:4] = x[..., 2:6, 1:4].mean((2, 3), keepdim=True)
        expected = model(hidden).softmax(1).detach()[..., None, None].expand(1, 4, 4, 3)
        torch.testing.assert_close(out, expected)


def test_crop_meshgrid_is_what_boxes_slide_over() -> None:
    grid = torch.stack(torch.meshgrid(torch.arange(24), torch.arange(20), indexing="ij"))[None]
    part, crop, size = v.OcclusionSensitivity.crop_meshgrid(grid, [0, 3, -1, -1], (12, 30))
    assert part.shape == (1, 2, 12, 20)
    assert size == [12, 20]
    assert torch.equal(crop(grid), part)
    assert torch.equal(Crop((slice(1, 3),), (4,)).inverse(torch.ones(2, 2)), torch.tensor([[0, 1.0, 1, 0]] * 2))


@pytest.mark.parametrize("wanted", range(1, 14))
def test_windows_keep_their_size_and_reach_half_of_it_around(wanted: int) -> None:
    for first in range(12):
        for end in range(first + 1, 13):
            low, high, size = sliding_range(12, wanted, first, end)
            assert size == min(wanted, 12)
            assert 0 <= low <= first < end <= high <= 12
            assert high - low >= size
            assert low <= max(0, first - (wanted - 1) // 2)
            assert high >= min(12, end + (wanted - 1) // 2)
    windows = Grid.over((12,), (wanted,), 0.5, [(3, 5)]).windows()
    assert windows.size == (min(wanted, 12),)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"class_dim": 0}, ValueError, "`class_dim` is -1, as documented, or 1; got 0"),
        ({"mask_size": 0}, ValueError, "`mask_size` is a positive number"),
        ({"mask_size": (4, 4, 4)}, ValueError, "must fit the image's 2 axes"),
        ({"overlap": 1.0}, ValueError, "overlap"),
        ({"mode": "gausian"}, medviz.PluginError, "did you mean 'gaussian'"),
        ({"activate": "softmax"}, TypeError, "`activate` is True, False or a function of the model's output"),
        ({"mask_size": 2.5}, ValueError, "`mask_size` is a positive number of voxels"),
        ({"mask_size": [2.5, 3]}, ValueError, "`mask_size` is a positive number of voxels"),
        ({"b_box": [0.5, 3, 0, 3]}, TypeError, "`b_box` holds voxels"),
        ({"mode": None}, TypeError, "`mode` is a number, one of .*; got None"),
        ({"n_batch": 0}, ValueError, "`batch_size` must be 'auto' or a positive int"),
        ({"b_box": [0, 3]}, ValueError, "`b_box` has 2 numbers; expected a minimum and a maximum for 2 axes"),
        ({"b_box": [5, 3, 0, 3]}, ValueError, "holds no voxel of an image"),
        ({"b_box": [9, 12, 0, 3]}, ValueError, "holds no voxel of an image"),
    ],
)
def test_wrong_arguments_of_occlusion(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    b_box = arguments.pop("b_box", None)
    with pytest.raises(error, match=message):
        occlusion(Classifier(), **arguments)(images(1, 2, 8, 8), b_box)


# TensorBoard


@pytest.fixture(params=[SummaryWriter, tensorboardX.SummaryWriter], ids=["torch", "tensorboardX"])
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with request.param(str(tmp_path)) as opened:
        yield opened


def logged(writer: Any, folder: Path) -> dict[str, np.ndarray]:
    writer.close()
    log = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: decoded(log.Images(tag)[-1].encoded_image_string) for tag in log.Tags()["images"]}


def decoded(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as movie:
        shown = [(movie.seek(i), movie.convert("RGB"))[1] for i in range(getattr(movie, "n_frames", 1))]
        return np.stack([np.asarray(one) for one in shown])


def test_grey_pictures_are_stretched_each_by_itself(writer: Any, tmp_path: Path) -> None:
    data = torch.stack([torch.arange(12.0).reshape(3, 4) - 5, torch.full((3, 4), 7.0)])[None]
    v.plot_2d_or_3d_image(data, 3, writer, max_channels=2, tag="a")
    v.plot_2d_or_3d_image([data[0], data[0, 0]], 3, writer, index=1, tag="b")
    got = logged(writer, tmp_path)
    assert set(got) == {"a_HW_0", "a_HW_1", "b_HW"}
    assert np.array_equal(
        got["a_HW_0"][0, ..., 0], (np.arange(12, dtype=np.float32) / 11 * 255).astype(int).reshape(3, 4)
    )
    assert not got["a_HW_1"].any()
    assert np.array_equal(got["b_HW"], got["a_HW_0"])


@pytest.mark.parametrize("scale", [1.0, 255.0, 1000.0])
def test_colours_stay_together(writer: Any, tmp_path: Path, scale: float) -> None:
    """Two columns are enough to see that green stays half of red."""
    picture = torch.zeros(1, 3, 4, 4, 2)
    picture[:, 0, ..., 1], picture[:, 1, ..., 1] = scale, scale / 2
    v.plot_2d_or_3d_image(picture[:, :, 0], 0, writer, max_channels=3, tag="flat")
    v.plot_2d_or_3d_image(picture, 0, writer, max_channels=3, tag="deep", frame_dim=-3, max_frames=5)
    got = logged(writer, tmp_path)
    assert set(got) == {"flat_CHW", "deep"}
    assert got["flat_CHW"][0, 0].tolist() == [[0, 0, 0], [255, 127, 0]]
    assert got["deep"].shape == (4, 4, 2, 3)
    assert got["deep"][0, 0].tolist() == [[0, 0, 0], [255, 127, 0]]


@pytest.mark.parametrize("frame_dim", [-3, -2, -1, 2, 3, 4])
def test_the_frames_of_a_batch_of_volumes(writer: Any, tmp_path: Path, frame_dim: int) -> None:
    volume = np.random.default_rng(0).permutation(np.arange(60.0)).reshape(3, 4, 5)
    v.plot_2d_or_3d_image(volume[None, None], 0, writer, frame_dim=frame_dim, tag="t")
    got = logged(writer, tmp_path)["t_HWD/image"][..., 0]
    spatial = frame_dim - 2 if frame_dim > 0 else frame_dim
    expected = np.moveaxis((volume.astype(np.float32) / np.float32(59) * np.float32(255)).astype(int), spatial, 0)
    assert np.array_equal(got, expected)


def test_the_number_of_copies_is_checked_at_once() -> None:
    with pytest.raises(ValueError, match="`batch_size`"):
        v.OcclusionSensitivity(Classifier(2), n_batch=0)


@pytest.mark.parametrize("number", [0, -1])
def test_at_least_one_channel_is_shown(number: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`max_out` is how many channels are shown"):
        v.make_animated_gif_summary("t", np.ones((2, 3, 3, 3)), max_out=number)
    with SummaryWriter(tmp_path) as writer, pytest.raises(ValueError, match="`max_channels` is how many"):
        v.plot_2d_or_3d_image(np.ones((1, 2, 3, 3)), 0, writer, max_channels=number)


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    volume = np.random.default_rng(0).random((5, 4, 3))
    _, sheet = v.matshow3d(volume, every_n=np.int64(2), frames_per_row=np.int8(2), frame_dim=np.int32(-1))
    assert np.array_equal(sheet, v.matshow3d(volume, every_n=2, frames_per_row=2, frame_dim=-1)[1], equal_nan=True)


def test_max_out_and_tags() -> None:
    image = torch.rand(5, 3, 4, 2) * 255
    assert [s.value[0].tag for s in v.make_animated_gif_summary("t{}", image)] == [f"t{{}}/image/{i}" for i in range(3)]
    assert [s.value[0].tag for s in v.make_animated_gif_summary("t", image, max_out=1)] == ["t/image"]
    (summary,) = v.make_animated_gif_summary("t", image[:1].bfloat16(), max_out=9, frame_dim=3)
    assert decoded(summary.value[0].image.encoded_image_string).shape == (2, 3, 4, 3)


def test_a_black_picture_is_told(caplog: pytest.LogCaptureFixture) -> None:
    image = torch.rand(1, 3, 4, 2)
    with caplog.at_level(logging.WARNING, "medviz"):
        v.make_animated_gif_summary("t", image, scale_factor=255)
        assert not caplog.records
        (summary,) = v.make_animated_gif_summary("t", image)
    assert "black" in caplog.text
    assert not decoded(summary.value[0].image.encoded_image_string).any()


@pytest.mark.parametrize(
    ("image", "arguments", "error", "message"),
    [
        (torch.zeros(3, 4, 5), {}, ValueError, r"`image` has shape \(3, 4, 5\); expected \(C, H, W, D\)"),
        (torch.full((1, 2, 2, 2), torch.nan), {}, ValueError, "holds 8 values that are NaN"),
        (np.zeros((1, 2, 2, 2), complex), {}, TypeError, "real numbers"),
        (torch.zeros(1, 2, 2, 2), {"frame_dim": 0}, ValueError, "`frame_dim` is 0; the spatial axes are -3, -2, -1, 1"),
        (torch.zeros(1, 2, 2, 2), {"frame_dim": -4}, ValueError, "`frame_dim` is -4"),
    ],
)
def test_wrong_volumes(image: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        v.make_animated_gif_summary("t", image, **arguments)


def test_a_model_that_is_none() -> None:
    for make in (lambda: v.GradCAM("model", "deep"), lambda: v.CAM(None, "deep"), lambda: v.VanillaGrad(nn.ReLU)):
        with pytest.raises(TypeError, match=r"`model` is a .*; expected a torch.nn.Module"):
            make()


def test_integers_of_any_library_are_sizes() -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    expected = occlusion(model)(x, [1, 5, 2, 6])[0]
    for size in (np.int64(4), (4, 4), torch.Size((4, 4)), np.array([4, 4]), torch.tensor([4, 4])):
        check_close(occlusion(model, mask_size=size)(x, np.array([1, 5, 2, 6]))[0], expected)


def test_an_upsampler_for_too_many_axes() -> None:
    with pytest.raises(ValueError, match="`spatial_size` has 4 axes"):
        v.default_upsampler((2, 2, 2, 2))


def test_wrong_writers(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`writer` is a NoneType; expected a SummaryWriter"):
        v.plot_2d_or_3d_image(torch.zeros(1, 1, 4, 4), 0, None)
    with pytest.raises(TypeError, match="`writer` is a str; expected a SummaryWriter"):
        v.add_animated_gif("log", "t", torch.zeros(1, 2, 2, 2))
    writer = SummaryWriter(str(tmp_path))
    writer.close()
    with pytest.raises(ValueError, match="`writer` is closed"):
        v.add_animated_gif(writer, "t", torch.zeros(1, 2, 2, 2))


def test_seeded_networks_are_what_the_tests_think() -> None:
    """The maps that are compared above are not empty."""
    model = seeded(Classifier())
    assert v.GradCAM(model, LAYER).compute_map(images(1, 2, 8, 8), 1).any()
