"""Each defect of MONAI 1.6.1's `visualize`, as one test that takes a namespace.

Pointed at `medviz.visualize` a test passes; pointed at `monai.visualize` the very same test fails. The table in
docs/differences.md leads here.
"""

from __future__ import annotations

import copy
import importlib
import io
import math
import random
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Classifier, Tokens, UNet, check_close, images
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

MONAI = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.xfail(strict=True, reason="the defect"),
]


@pytest.fixture(params=["medviz.visualize", pytest.param("monai.visualize", marks=MONAI)])
def peer(request: pytest.FixtureRequest) -> types.ModuleType:
    torch.manual_seed(0)
    return importlib.import_module(request.param)


Peer = types.ModuleType
LAYER = "deep"


def raw(x: Any) -> Any:
    return x


def quiet(peer: Peer, model: nn.Module, **arguments: Any) -> Any:
    return peer.OcclusionSensitivity(model, verbose=False, **arguments)


def by_class(peer: Peer, occ_map: Tensor) -> Tensor:
    """The map of the first image with the classes in front, `(N, *S)`, in documented and in released order (A20)."""
    return occ_map[0].as_subclass(Tensor) if peer.__name__.startswith("monai") else occ_map[0, 0].movedim(-1, 0)


class Spy(nn.Module):
    """Keeps what it is shown, whole images, and answers with their mean."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(classes))
        SEEN.clear()

    def forward(self, x: Tensor) -> Tensor:
        if not torch.isfinite(x).all():  # a question about values: nobody can take this network apart
            raise ValueError("not finite")
        SEEN.append(x.detach().as_subclass(Tensor).clone())
        return x.flatten(1).mean(1, keepdim=True) * self.scale


SEEN: list[Tensor] = []  # outside of the model, whose state is put back after each call


def seen() -> Tensor:
    return torch.cat(SEEN).float()


class Flat(nn.Module):
    """Two logits that are plus and minus one linear function of the image."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(images(1, *shape)[0])

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.w).flatten(1).sum(1, keepdim=True)
        return torch.cat([score, -score], 1)


# A: wrong numbers


@pytest.mark.parametrize("ndim", [2, 3])
def test_a1_a_batch_of_mixed_classes_equals_single_images(peer: Peer, ndim: int) -> None:
    model, x = Classifier(ndim), images(3, 2, *[8] * ndim)
    classes = torch.tensor([2, 0, 1])
    batch = peer.GradCAM(model, LAYER).compute_map(x, classes)
    for i in range(3):
        check_close(batch[i : i + 1], peer.GradCAM(model, LAYER).compute_map(x[i : i + 1], int(classes[i])))


@pytest.mark.parametrize("size", [8, 12])
def test_a2_gradcampp_of_a_batch(peer: Peer, size: int) -> None:
    """Also where there are as many images as columns."""
    model, x = Squared().eval(), images(8, 1, size, size).abs()
    batch = peer.GradCAMpp(model, "act")(x, 1)
    for i in range(8):
        check_close(batch[i : i + 1], peer.GradCAMpp(model, "act")(x[i : i + 1], 1), 1e-4)


def test_a3_gradcampp_of_a_large_logit(peer: Peer) -> None:
    model = Classifier()
    model.fc.bias.data += 100
    cam = peer.GradCAMpp(model, LAYER, postprocessing=raw)(images(1, 2, 8, 8), 1)
    assert torch.isfinite(cam).all()
    assert cam.any()


def test_a4_mean_patch_replaces_by_the_mean(peer: Peer) -> None:
    quiet(peer, Spy(), mask_size=4, mode="mean_patch")(torch.full((1, 1, 8, 8), 4.0))
    assert seen().unique().tolist() == [4.0]


def test_a5_a_callable_mode(peer: Peer) -> None:
    def mode(x: Tensor, to_occlude: Tensor) -> Tensor:
        assert x.shape == (1, 1, 8, 8)
        assert to_occlude.shape == (1, 1, 4, 4)
        return to_occlude * 0 + 7

    quiet(peer, Spy(), mask_size=4, overlap=0.0, mode=mode)(torch.ones(1, 1, 8, 8))
    assert sorted(set(((seen() == 7).sum((1, 2, 3))).tolist()) - {0}) == [16]


def test_a6_the_activation_looks_at_the_output(peer: Peer) -> None:
    occ_map, _ = quiet(peer, Classifier(channels=1, classes=3), mask_size=4)(images(1, 1, 8, 8))
    torch.testing.assert_close(by_class(peer, occ_map).sum(0), torch.ones(8, 8))
    occ_map, _ = quiet(peer, Classifier(channels=3, classes=1), mask_size=4)(images(1, 3, 8, 8))
    assert occ_map.std() > 0


@pytest.mark.parametrize("class_idx", [None, 1])
def test_a7_a_class_of_a_segmentation_is_an_error_that_says_what_to_do(peer: Peer, class_idx: Any) -> None:
    with pytest.raises(ValueError, match="SegmentationTarget"):
        peer.GradCAM(UNet(), "bottom")(images(1, 1, 6, 6), class_idx)


def test_a8_a_second_call_on_the_same_image(peer: Peer) -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    first = peer.VanillaGrad(model)(x, 0)
    kept = first.clone()
    second = peer.VanillaGrad(model)(x, 0)
    assert torch.equal(first, kept)
    assert torch.equal(second, kept)


class Rectified(nn.Module):
    """One network, its rectifiers called in several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)
        self.relu = nn.ReLU() if how == "relu" else None
        self.act = nn.ReLU() if how == "act" else None
        self.how = how

    def rectify(self, x: Tensor) -> Tensor:
        return {"relu": self.relu, "act": self.act, "F": F.relu, "torch": torch.relu, "in place": Tensor.relu_}[
            self.how
        ](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rectify(self.second(self.rectify(self.first(x)))).flatten(2).mean(2))


@pytest.mark.parametrize("how", ["act", "F", "torch", "in place"])
def test_a9_guided_backpropagation_reaches_every_relu(peer: Peer, how: str) -> None:
    named, other, x = Rectified("relu"), Rectified(how), images(1, 1, 8, 8)
    other.load_state_dict(named.state_dict())
    guided = peer.GuidedBackpropGrad(other.eval())(x.clone(), 0)
    check_close(guided, peer.GuidedBackpropGrad(named.eval())(x.clone(), 0))
    assert not torch.equal(guided, peer.VanillaGrad(other)(x.clone(), 0))


def test_a9_guided_backpropagation_leaves_the_forward_pass_alone(peer: Peer) -> None:
    """A module with "relu" in its name that is none: the score is a leaky ReLU's of a negative number."""
    model = nn.Sequential()
    model.add_module("flat", nn.Flatten())
    model.add_module("lrelu", nn.LeakyReLU(0.5))
    model.add_module("fc", nn.Linear(4, 2))
    outputs: list[Tensor] = []
    handle = model.fc.register_forward_hook(lambda module, args, out: outputs.append(out.detach().clone()))
    x = images(1, 1, 2, 2)
    clean = model(x).detach()
    peer.GuidedBackpropGrad(model)(x.clone(), 0)
    handle.remove()
    assert all(torch.equal(out, clean) for out in outputs)
    assert len(outputs) > 1


def test_a10_the_magnitude_does_not_fall_with_the_number_of_samples(peer: Peer) -> None:
    model, x = Flat(1, 6, 6).eval(), images(1, 1, 6, 6, seed=1)
    for n in (1, 4, 16):
        check_close(peer.SmoothGrad(model, n_samples=n, verbose=False)(x, 0), model.w.detach().abs()[None])


def test_a11_the_class_is_that_of_the_clean_image(peer: Peer) -> None:
    model = Flat(1, 6, 6).eval()
    x = images(1, 1, 6, 6, seed=1)
    x -= (x * model.w.detach()).sum() / model.w.detach().square().sum() * model.w.detach() * 0.999  # almost undecided
    clean = model(x).argmax(1)
    grad = peer.SmoothGrad(model, n_samples=20, magnitude=False, verbose=False)(x)
    check_close(grad, model.w.detach()[None] * (1 if clean == 0 else -1))


class Twice(nn.Module):
    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.early = nn.ReLU()
        self.late = self.early if shared else nn.ReLU()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.late(self.second(self.early(self.first(x)))).flatten(2).mean(2))


def test_a12_a_module_that_is_called_twice(peer: Peer) -> None:
    apart, shared, x = Twice(False).eval(), Twice(True).eval(), images(1, 1, 8, 8)
    shared.load_state_dict(apart.state_dict())
    for target in range(3):
        expected = peer.GradCAM(apart, "late").compute_map(x, target)
        got = peer.GradCAM(shared, "early").compute_map(x, target)
        torch.testing.assert_close(got, expected)


class Bypass(Classifier):
    def forward(self, x: Tensor, bypass: bool = False) -> Tensor:
        return super().forward(x) if not bypass else self.fc(x.flatten(1)[:, :7])


def test_a13_nothing_of_the_last_call_is_used_again(peer: Peer) -> None:
    cam, x = peer.GradCAM(Bypass(), LAYER), images(1, 2, 8, 8)
    cam(x, 0)
    with pytest.raises(ValueError, match="was not called"):
        cam(x, 0, bypass=True)


class Inplace(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.conv(x)).flatten(2).mean(2))


def test_a14_an_in_place_layer_after_the_one_that_is_looked_at(peer: Peer) -> None:
    apart, inplace, x = Inplace(False).eval(), Inplace(True).eval(), images(1, 1, 8, 8)
    inplace.load_state_dict(apart.state_dict())
    for method in (peer.GradCAM, peer.CAM):
        expected = method(apart, "conv").compute_map(x, torch.tensor([1]))
        check_close(method(inplace, "conv").compute_map(x, torch.tensor([1])), expected)


def test_a15_gradcampp_is_the_papers_formula(peer: Peer) -> None:
    """Equations 7 and 19 with the derivatives of exp(S), up to one factor for the image."""
    model, x = Squared().eval(), images(1, 1, 6, 6).abs()
    activation = model.conv(x).relu().detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.head(activation)[0, 1], activation)
    total = activation.detach().sum((2, 3), keepdim=True)
    alpha = gradient**2 / (2 * gradient**2 + gradient**3 * total)
    alpha = torch.where(gradient == 0, 0, alpha)
    expected = ((alpha * gradient.relu()).sum((2, 3), keepdim=True) * activation.detach()).sum(1, keepdim=True).relu()
    got = peer.GradCAMpp(model, "act").compute_map(x, 1)
    check_close(got / got.max(), expected / expected.max(), 1e-4)


class Squared(nn.Module):
    """Its gradient at the layer differs from voxel to voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Linear(5, 3)
        self.fc.weight.data.abs_()

    def head(self, features: Tensor) -> Tensor:
        return self.fc(features.square().flatten(2).mean(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(x)))


@pytest.mark.parametrize("value", [0.0, 5.0, -2.0])
def test_a16_a_constant_map_is_the_least_salient(peer: Peer, value: float) -> None:
    flat = torch.full((2, 1, 4, 4), value)
    assert torch.equal(peer.default_normalizer(flat), torch.ones_like(flat))
    assert np.array_equal(peer.default_normalizer(flat.numpy()), np.ones(flat.shape))


@pytest.mark.parametrize("mode", ["mean_img", "mean_patch"])
def test_a17_each_channel_has_its_own_mean(peer: Peer, mode: str) -> None:
    x = torch.stack([torch.zeros(8, 8), torch.full((8, 8), 100.0)])[None]
    quiet(peer, Spy(), mask_size=4, mode=mode)(x)
    assert seen()[:, 0].unique().tolist() == [0.0]
    assert seen()[:, 1].unique().tolist() == [100.0]


def test_a18_windows_of_a_bfloat16_image(peer: Peer) -> None:
    x = torch.ones(1, 1, 4, 294, dtype=torch.bfloat16)
    quiet(peer, Spy().bfloat16(), mask_size=(4, 7), overlap=0.0, mode=0.0)(x)
    assert (seen() == 0).any(0)[0, 0].all()


def test_a19_windows_are_blended_by_the_gaussian_that_hides(peer: Peer) -> None:
    model, x, nothing = Flat(1, 8, 16).eval(), images(1, 1, 8, 16, seed=1), {"activate": False}
    mul, _ = peer.OcclusionSensitivity.gaussian_occlusion(x, (8, 8))
    weight = (1 - mul[0, 0]).clamp(min=1e-3)
    total, weights = torch.zeros(8, 16), torch.zeros(8, 16)
    for start in (0, 4, 8):
        copy, box = x.clone(), (..., slice(start, start + 8))
        copy[box] *= mul
        total[box] += weight * model(copy).detach()[0, 0]
        weights[box] += weight
    occ_map, _ = quiet(peer, model, mask_size=8, overlap=0.5, **nothing)(x)
    torch.testing.assert_close(by_class(peer, occ_map)[0], total / weights, rtol=1e-3, atol=1e-3)


def test_a20_the_classes_are_the_last_axis(peer: Peer) -> None:
    occ_map, most_probable = quiet(peer, Classifier(classes=4), mask_size=4)(images(1, 2, 8, 9))
    assert occ_map.shape == (1, 1, 8, 9, 4)
    assert most_probable.shape == (1, 1, 8, 9)
    assert torch.equal(most_probable, occ_map.argmax(-1))


GREY = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 3, 4)


@pytest.mark.parametrize("label", [np.ones((1, 3, 4)), np.arange(1.0, 13).reshape(1, 3, 4)])
def test_a21_every_label_but_zero_is_visible(peer: Peer, label: np.ndarray) -> None:
    blended = peer.blend_images(GREY, label, 1.0, "viridis")
    assert (np.abs(blended - np.repeat(GREY, 3, 0)).max(0) > 0.01).all()


def test_a21_a_labels_colour_does_not_depend_on_the_others(peer: Peer) -> None:
    colours = []
    for most in (2, 7):
        label = np.array([[[0, 1, 2, most]]])
        colours.append(np.asarray(peer.blend_images(GREY[:, :1], label, 1.0))[:, 0, 1])
    np.testing.assert_allclose(*colours)


def test_a22_an_integer_label_that_is_not_rescaled(peer: Peer) -> None:
    label = np.array([[[0, 1, 1, 0]]])
    blended = peer.blend_images(GREY[:, :1], label, 0.5, rescale_arrays=False)
    assert (np.abs(blended - np.repeat(GREY[:, :1], 3, 0)).max(0) > 0.01).tolist() == [[False, True, True, False]]


def frames(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as movie:
        shown = [(movie.seek(i), movie.convert("RGB"))[1] for i in range(getattr(movie, "n_frames", 1))]
        return np.stack([np.asarray(one) for one in shown])


def test_a23_values_beyond_a_byte_are_clipped(peer: Peer) -> None:
    image = np.array([-100.0, 0, 100, 255, 256, 272, 3000, 50], np.float32).reshape(1, 2, 2, 2)
    (summary,) = peer.make_animated_gif_summary("t", image, max_out=1)
    got = frames(summary.value[0].image.encoded_image_string)[..., 0]
    assert got.reshape(-1).tolist() == [0, 0, 100, 255, 255, 255, 255, 50]


def logged(folder: Any) -> dict[str, Any]:
    log = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: log.Images(tag) for tag in log.Tags()["images"]}


def test_a24_colours_of_0_to_255_are_not_saturated(peer: Peer, tmp_path: Any) -> None:
    data = torch.arange(48.0).reshape(1, 3, 4, 4) * 5
    with SummaryWriter(tmp_path) as writer:
        peer.plot_2d_or_3d_image(data, 0, writer, max_channels=3)
    ((event,),) = logged(tmp_path).values()
    assert len(np.unique(frames(event.encoded_image_string))) == 48


# B: state leaks and mutation


def calls(peer: Peer) -> list[Any]:
    """Every way to run a model, as functions of the model and an image."""
    return [
        lambda model, x: peer.CAM(model, LAYER)(x),
        lambda model, x: peer.GradCAM(model, LAYER)(x, 0),
        lambda model, x: peer.GradCAMpp(model, LAYER)(x, 0),
        lambda model, x: peer.VanillaGrad(model)(x, 0),
        lambda model, x: peer.SmoothGrad(model, n_samples=2, verbose=False)(x, 0),
        lambda model, x: quiet(peer, model, mask_size=4)(x),
    ]


def test_b1_training_flags_of_all_modules_survive(peer: Peer) -> None:
    for call in calls(peer):
        model = Classifier().train()
        model.stem[1].eval()  # frozen on purpose
        before = [m.training for m in model.modules()]
        call(model, images(1, 2, 8, 8))
        assert [m.training for m in model.modules()] == before


def test_b1_training_flags_survive_an_error(peer: Peer) -> None:
    model = Bypass().train()
    with pytest.raises(TypeError):
        peer.GradCAM(model, LAYER)(images(1, 2, 8, 8), 0, no_such_argument=1)
    assert all(m.training for m in model.modules())


def test_b2_no_hooks_stay(peer: Peer) -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    for call in calls(peer) * 2:
        call(model, x.clone())
    assert sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()) == 0


def test_b3_no_graph_and_no_activations_are_held(peer: Peer) -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    for method in (peer.CAM, peer.GradCAM):
        cam = method(model, LAYER)
        assert not cam.compute_map(x, torch.tensor([0])).requires_grad
        assert not cam.nn_module.activations
        assert not cam.nn_module.gradients
    wrapper = peer.ModelWithHooks(model, LAYER, register_forward=True, register_backward=True)
    logits, (activation,), (gradient,) = wrapper(x, 0)
    assert not any(t.requires_grad for t in (logits, activation, gradient, wrapper.score))


def test_b4_accumulated_gradients_survive(peer: Peer) -> None:
    model = Classifier()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for call in calls(peer):
        call(model, images(1, 2, 8, 8))
        assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_b5_in_place_modules_stay_in_place(peer: Peer) -> None:
    model = Inplace(True).eval()
    peer.GradCAM(model, "act")(images(1, 1, 8, 8), 0)
    assert model.act.inplace


def test_b6_the_image_is_not_changed(peer: Peer) -> None:
    x = images(1, 2, 8, 8)
    peer.VanillaGrad(Classifier())(x, 0)
    assert not x.requires_grad
    assert x.grad is None


def test_b6_an_image_with_a_history(peer: Peer) -> None:
    x = images(1, 2, 8, 8).requires_grad_() * 2
    assert peer.VanillaGrad(Classifier())(x, 0).any()


def test_b7_alpha_is_not_changed(peer: Peer) -> None:
    alpha = np.full((1, 3, 4), 0.5, np.float32)
    peer.blend_images(GREY, np.eye(3, 4, dtype=np.float32)[None], alpha)
    assert (alpha == 0.5).all()


def test_b8_no_figure_stays_open(peer: Peer) -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    try:
        peer.matshow3d(np.zeros((3, 4, 5)) + np.arange(5))
        assert pyplot.get_fignums() == before
    finally:
        for number in set(pyplot.get_fignums()) - set(before):
            pyplot.close(number)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_b9_the_place_in_the_patient_is_kept(peer: Peer) -> None:
    data = pytest.importorskip("monai.data")
    affine = torch.tensor([[2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]], dtype=torch.float64)
    x, model = data.MetaTensor(images(1, 2, 8, 8, 8), affine=affine), Classifier(3)
    box = [2, 6, 1, 5, 0, 3]
    for name, call in (("cam", peer.CAM(model, LAYER)), ("grad", peer.VanillaGrad(model))):
        assert torch.equal(call(x).affine, affine), name
    for result in quiet(peer, model, mask_size=4)(x, box):
        corner = result.affine @ torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)
        assert corner.tolist() == [10 + 2 * 2, 20 + 3 * 1, 30, 1]


# C: fails, or limits


def test_c1_cam_takes_an_int(peer: Peer) -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    expected = torch.einsum("k,bk...->b...", model.fc.weight[1], model.deep(model.stem(x)))[:, None]
    check_close(peer.CAM(model, LAYER).compute_map(x, 1), expected + model.fc.bias[1])


def test_c2_layers_may_be_named_by_a_callable(peer: Peer) -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    named, called = peer.GradCAM(model, LAYER)(x, 0), peer.GradCAM(model, lambda m: m.deep)(x, 0)
    assert torch.equal(named, called)


def test_c3_a_wrong_layer_is_a_clear_error(peer: Peer) -> None:
    with pytest.raises(ValueError, match="'dep' is not in the model; did you mean 'deep'"):
        peer.GradCAM(Classifier(), "dep")(images(1, 2, 8, 8), 0)


class TwoOutputs(Classifier):
    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x), "features": x}


@pytest.mark.parametrize("case", ["no_grad", "frozen", "dict", "tokens"])
def test_c4_networks_and_contexts_that_gradcam_works_with(peer: Peer, case: str) -> None:
    model, x, layer = Classifier(), images(1, 2, 8, 8), LAYER
    expected = peer.GradCAM(model, LAYER)(x, 0)
    model = copy.deepcopy(model)
    if case == "frozen":
        model.requires_grad_(False)
    if case == "dict":
        model = TwoOutputs()
    if case == "tokens":
        model, x, layer = Tokens(2), images(1, 1, 8, 8), "block"
    with torch.set_grad_enabled(case != "no_grad"):
        got = peer.GradCAM(model, layer)(x, 0)
    if case == "tokens":
        assert got.shape == (1, 1, 8, 8)
    else:
        check_close(got, expected)


def test_c5_half_precision(peer: Peer) -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    for call in calls(peer)[:5]:
        half = call(copy.deepcopy(model).bfloat16(), x.bfloat16())
        assert torch.isfinite(half).all()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert peer.default_normalizer(x.to(dtype)).dtype == dtype


def test_c6_cam_calls_the_last_layer_once_for_all_voxels(peer: Peer) -> None:
    model, counted = Classifier(), []
    handle = model.fc.register_forward_hook(lambda *_: counted.append(1))
    peer.CAM(model, LAYER)(images(1, 2, 16, 16), torch.tensor([1]))
    handle.remove()
    assert len(counted) <= 2


def test_c7_batches(peer: Peer) -> None:
    model, x = Classifier(), images(2, 2, 8, 8)
    occlusion = quiet(peer, model, mask_size=4)
    batch, occ_map = peer.VanillaGrad(model)(x.clone(), 1), occlusion(x)[0]
    for i in range(2):
        check_close(batch[i : i + 1], peer.VanillaGrad(model)(x[i : i + 1].clone(), 1))
        check_close(occ_map[i : i + 1], occlusion(x[i : i + 1])[0])


def test_c8_a_seed_repeats_the_noise_and_the_global_generators_are_left_alone(peer: Peer) -> None:
    model, x = Classifier(), images(1, 2, 8, 8)
    before = torch.get_rng_state(), random.getstate()
    peer.SmoothGrad(model, n_samples=3, verbose=False)(x, 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    seeded = [peer.SmoothGrad(model, n_samples=3, verbose=False, seed=s)(x, 0) for s in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])


def test_c9_an_int_is_a_constant(peer: Peer) -> None:
    quiet(peer, Spy(), mask_size=4, mode=0)(torch.ones(1, 1, 8, 8))
    assert seen().unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("b_box", "size"), [([0, 23, 0, 19], (24, 20)), ([-2, -3, 2, 2], (24, 1)), ([0, 0, 5, -1], (1, 15))]
)
def test_c10_a_bounding_box_is_inclusive_and_negative_means_no_limit(peer: Peer, b_box: list[int], size: Any) -> None:
    occ_map, _ = quiet(peer, Classifier(), mask_size=6)(images(1, 2, 24, 20), b_box)
    assert by_class(peer, occ_map).shape[1:] == size


def test_c10_a_small_box_does_not_shrink_the_mask(peer: Peer) -> None:
    quiet(peer, Spy(), mask_size=12, mode=0.0)(torch.ones(1, 1, 24, 24), [0, 3, 0, 3])
    assert set((seen() == 0).sum((1, 2, 3)).tolist()) <= {0, 144}


def test_c11_no_warnings(peer: Peer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in ("gaussian", "mean_patch", "mean_img", 0.5):
            quiet(peer, Classifier(), mask_size=4, mode=mode)(images(1, 2, 8, 8))


class Deep(Classifier):
    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits, logits * 2


def test_c12_occlusion_of_several_outputs(peer: Peer) -> None:
    x = images(1, 2, 8, 8)
    got, expected = (quiet(peer, model, mask_size=4)(x)[0] for model in (Deep(), Classifier()))
    check_close(got, expected)


def test_c13_the_docs_describe_no_parameter_that_is_not_there(peer: Peer) -> None:
    texts = [peer.OcclusionSensitivity.__doc__, peer.OcclusionSensitivity.__call__.__doc__]
    assert "per_channel" not in "".join(texts)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_c14_alpha_of_the_images_size(peer: Peer, kind: Any) -> None:
    image = np.repeat(GREY, 3, 0)
    label, alpha = np.eye(3, 4, dtype=np.float32)[None], np.full((3, 3, 4), 0.25, np.float32)
    got = peer.blend_images(kind(image), kind(label), kind(alpha))
    np.testing.assert_allclose(got, peer.blend_images(image, label, 0.25), atol=1e-6)


def test_c15_a_list_of_volumes_in_colour(peer: Peer) -> None:
    volumes = [np.random.default_rng(i).random((3, 4, 5, 6), np.float32) for i in range(2)]
    _, sheet = peer.matshow3d(volumes, channel_dim=0)
    assert sheet.shape[-1] == 3


def test_c17_one_slice(peer: Peer) -> None:
    (summary,) = peer.make_animated_gif_summary("t", torch.full((1, 1, 5, 6), 9.0), max_out=1)
    assert (frames(summary.value[0].image.encoded_image_string) == 9).all()


def test_c18_height_and_width_are_true(peer: Peer) -> None:
    (summary,) = peer.make_animated_gif_summary("t", torch.rand(1, 4, 5, 6), max_out=1)
    image = summary.value[0].image
    assert (image.height, image.width) == (5, 6)
    assert frames(image.encoded_image_string).shape == (4, 5, 6, 3)


def test_c19_colour_movies_in_torchs_writer(peer: Peer, tmp_path: Any) -> None:
    data = (torch.arange(3 * 4 * 5 * 6).reshape(1, 3, 4, 5, 6) % 200).to(torch.uint8)
    with SummaryWriter(tmp_path) as writer:
        peer.plot_2d_or_3d_image(data, 0, writer, max_channels=3, tag="scan")
    ((tag, (event,)),) = logged(tmp_path).items()
    assert tag == "scan"
    expected = data[0].permute(1, 2, 3, 0).numpy()
    shown = frames(event.encoded_image_string)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).max() <= 40  # one palette of 256 colours
    assert np.ptp(shown, axis=-1).max() > 0


class OtherWriter:
    """What is public of a writer, and nothing else."""

    def __init__(self) -> None:
        self.file_writer = self
        self.written: list[Any] = []

    def add_summary(self, summary: Any, step: int | None) -> None:
        self.written.append((summary.value[0].tag, step))


def test_c20_only_what_is_public_of_a_writer_is_used(peer: Peer) -> None:
    writer = OtherWriter()
    peer.add_animated_gif(writer, "t", torch.rand(2, 3, 4, 5), global_step=7)
    assert writer.written == [("t/image/0", 7), ("t/image/1", 7)]


# D: other peers' defects that the documented calls could have


def test_d1_a_class_for_each_image_or_an_error(peer: Peer) -> None:
    with pytest.raises(ValueError, match="2 classes for 3 images"):
        peer.GradCAM(Classifier(), LAYER)(images(3, 2, 8, 8), torch.tensor([0, 1]))


def test_d1_guided_backpropagation_puts_every_module_back() -> None:
    from medviz.visualize import GuidedBackpropGrad, VanillaGrad

    model = Twice(True).eval()
    before, x = list(model.modules()), images(1, 1, 8, 8)
    expected = VanillaGrad(model)(x, 0)
    guided = GuidedBackpropGrad(model)(x, 0)
    assert [a is b for a, b in zip(model.modules(), before, strict=True)] == [True] * len(before)
    assert torch.equal(VanillaGrad(model)(x, 0), expected)
    assert not x.requires_grad
    assert not torch.equal(guided, expected)


def test_d2_each_image_is_normalised_by_itself() -> None:
    from medviz.visualize import default_normalizer

    x = images(3, 1, 4, 4) * torch.tensor([1.0, 10, 100]).view(3, 1, 1, 1)
    scaled = default_normalizer(x)
    assert scaled.flatten(1).amax(1).tolist() == [1, 1, 1]
    assert scaled.flatten(1).amin(1).tolist() == [0, 0, 0]
    assert all(torch.equal(scaled[i : i + 1], default_normalizer(x[i : i + 1])) for i in range(3))
    assert math.isclose(float(scaled[0].flatten()[x[0].argmin()]), 1)
