"""Where the cells of a layer lie in the image: held against the centre of what each of them sees."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from networks import LAYERED, Classifier, Tokens, UNet, images
from torch import Tensor, nn

import medviz
from medviz.probe.centres import Centres, centres


def even(model: nn.Module) -> nn.Module:
    """All weights are one number, so that what a cell sees is symmetric around its centre."""
    for name, parameter in model.named_parameters():
        parameter.data.fill_(0.1 if name.endswith("weight") else 0.0)
    return model.eval()


class Wrapped(nn.Module):
    """Ends in numbers, so that there is something to explain."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).flatten(2).mean(2)


def seen(body: nn.Module, image: Tensor, cells: Sequence[range]) -> list[float]:
    """Return the mean, over some cells, of the centre of each cell's gradient with respect to the image."""
    image = image.clone().requires_grad_()
    output, found = body(image), []
    for cell in itertools.product(*cells):
        (gradient,) = torch.autograd.grad(output[(0, slice(None), *cell)].sum(), image, retain_graph=True)
        weight = gradient[0].abs().sum(0)
        axes = range(weight.ndim)
        sums = [weight.sum([other for other in axes if other != axis]) for axis in axes]
        found.append(torch.stack([(s * torch.arange(len(s))).sum() / s.sum() for s in sums]))
    return torch.stack(found).mean(0).tolist()


def check(body: nn.Module, size: tuple[int, ...], block: int = 1) -> None:
    """Hold `block` cells along each axis, in the middle, against what they see.

    Of an upsampled grid several cells see one place, and only their mean is where it should be.
    """
    even(body)
    image = torch.ones(1, 2, *size)
    with medviz.Probe(Wrapped(body), image, layers=["body"]) as probe:
        grid = probe.activation("body").shape[2:]
        (found,) = centres(probe, {"body": grid})
    cells = [range((n - block) // 2, (n - block) // 2 + block) for n in grid]
    middle = [c.start + (block - 1) / 2 for c in cells]
    expected = [f + s * i for f, s, i in zip(found.first, found.step, middle, strict=True)]
    assert seen(body, image, cells) == pytest.approx(expected, abs=1e-3)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _written(x: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    made[:, :1] = x[:, 1:]
    made[:, 1:] = x[:, :1]
    return made


def _set(x: Tensor) -> Tensor:
    made = torch.zeros(x.shape)
    made[:, :, 3:] = x[:, :, :-3]
    return made


def _set_behind_dots(x: Tensor) -> Tensor:
    made = torch.zeros(x.shape)
    made[..., 3:] = x[..., :-3]
    return made


def _set_where(x: Tensor) -> Tensor:
    made = torch.zeros(x.shape)
    made[torch.ones(x.shape, dtype=torch.bool)] = x.flatten().roll(3)
    return made


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv 3": lambda: nn.Conv2d(2, 2, 3, padding=1),
    "conv 3, stride 2": lambda: nn.Conv2d(2, 2, 3, 2, 1),
    "conv 7, stride 2": lambda: nn.Conv2d(2, 2, 7, 2, 3),
    "conv 4, stride 4": lambda: nn.Conv2d(2, 2, 4, 4),
    "conv without padding": lambda: nn.Conv2d(2, 2, (5, 2), (1, 3)),
    "conv same": lambda: nn.Conv2d(2, 2, 3, padding="same"),
    "conv dilated": lambda: nn.Conv2d(2, 2, 3, 2, 2, dilation=2),
    "conv reflected": lambda: nn.Conv2d(2, 2, 3, 2, 1, padding_mode="reflect"),
    "conv without bias": lambda: Function(lambda x: F.conv2d(x, torch.ones(2, 1, 3, 3), stride=2, groups=2)),
    "narrow": lambda: Function(lambda x: x.narrow(2, 3, 18).narrow(1, 0, 2)),
    "narrow, from the end": lambda: Function(lambda x: x.narrow(2, -20, 18)),
    "parts of channels": lambda: Function(lambda x: x + torch.cat(x.chunk(2, dim=1)[::-1], dim=1)),
    "patch merging": lambda: Function(lambda x: torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)),
    "gate": lambda: Function(lambda x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)).detach()),
    "pooled branch": lambda: Function(
        lambda x: torch.cat(
            [F.interpolate(F.adaptive_avg_pool2d(x, 1), x.shape[2:], mode="bilinear", align_corners=True).detach(), x],
            1,
        )[:, :4]
    ),
    "channel attention": lambda: Function(lambda x: x + 0 * x.max(1, keepdim=True)[0] + 0 * x.std(1, keepdim=True)),
    "comparisons": lambda: Function(lambda x: x * (x > 0) + torch.where(x > 5, torch.zeros_like(x), x)),
    "strips": lambda: Function(lambda x: x * x.mean(3, keepdim=True).detach() + x.log1p()),
    "chosen channels": lambda: Function(lambda x: x[:, [1, 0], 2:]),
    "tokens": lambda: Function(lambda x: x + 0 * (x.flatten(2).mT @ torch.eye(2)).mT.reshape(x.shape)),
    "written": lambda: Function(_written),
    "nearest, downwards": lambda: nn.Upsample(scale_factor=0.25),
    "nearest-exact, downwards": lambda: nn.Upsample(scale_factor=0.25, mode="nearest-exact"),
    "conv function": lambda: Function(lambda x: F.conv2d(x, torch.ones(2, 2, 3, 1), None, (2, 1), padding=(1, 0))),
    "mean pool": lambda: nn.AvgPool2d(2),
    "mean pool, padded": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(6),
    "corners": lambda: nn.Upsample(size=(13, 9), mode="bilinear", align_corners=True),
    "pad": lambda: nn.ZeroPad2d((3, 0, 1, 2)),
    "slice": lambda: Function(lambda x: x[:, :, 3:-1, ::2]),
    "slice behind dots": lambda: Function(lambda x: x[..., 2:]),
    "norm": lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Dropout()),
    "sum": lambda: Function(lambda x: x + 2 * x),
    "cat": lambda: Function(lambda x: torch.cat([x, x], 1)[:, :2]),
    "channels last": lambda: Function(lambda x: x.permute(0, 2, 3, 1).mul(2).permute(0, 3, 1, 2)),
    "channels selected": lambda: Function(lambda x: x.index_select(1, torch.tensor([1, 0]))),
    "cat, from the end": lambda: Function(lambda x: torch.cat([x, x], -3)[:, :2]),
    "shuffle": lambda: Function(lambda x: x.view(1, 1, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)),
}
UPWARDS: dict[str, Callable[[], nn.Module]] = {
    "transposed": lambda: nn.ConvTranspose2d(2, 2, 2, 2),
    "transposed 3": lambda: nn.ConvTranspose2d(2, 2, 3, 2, 1, output_padding=1),
    "transposed function": lambda: Function(
        lambda x: F.conv_transpose2d(x, torch.ones(2, 2, 4, 4), stride=2, padding=1)
    ),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "linear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "shuffled": lambda: nn.Sequential(nn.Conv2d(2, 8, 1), nn.PixelShuffle(2)),
}
REGULAR = sorted(
    LAYERS.keys()
    - {"adaptive", "corners", "narrow", "narrow, from the end", "patch merging", "pooled branch", "chosen channels"}
)


@pytest.mark.parametrize("layer", LAYERS)
def test_one_layer(layer: str) -> None:
    check(LAYERS[layer](), (24, 18))


@pytest.mark.parametrize("layer", UPWARDS)
@pytest.mark.parametrize("before", ["sum", "conv 3, stride 2", "mean pool", "slice"])
def test_grids_that_become_finer(layer: str, before: str) -> None:
    check(nn.Sequential(LAYERS[before](), UPWARDS[layer]()), (24, 20), block=4)


@settings(max_examples=60, deadline=None, derandomize=True)
@example(["shuffle", "gate"])
@given(st.lists(st.sampled_from(REGULAR), min_size=2, max_size=3))
def test_layers_one_after_the_other(names: list[str]) -> None:
    body = nn.Sequential(*[LAYERS[name]() for name in names])
    assume(min(body(torch.ones(1, 2, 180, 168)).shape[2:]) > 6)  # else the middle sees the border
    check(body, (180, 168))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_in_3d(steps: int) -> None:
    layers = [nn.Conv3d(2, 2, 3, 2, 1), nn.AvgPool3d(2), nn.ConvTranspose3d(2, 2, 2, 2)][:steps]
    check(nn.Sequential(*layers), (20, 16, 24), block=2)


def test_the_corners_of_a_single_row() -> None:
    row = Function(lambda x: F.interpolate(F.avg_pool2d(x, (24, 1)), (1, 35), mode="bilinear", align_corners=True))
    assert where(row, (24, 18)) == Centres((11.5, 0.0), (24.0, 0.5))


@pytest.mark.parametrize(("recomputed", "step"), [(False, 1 / 0.3), (True, 4.0)])
def test_a_scale_that_gives_no_whole_number(recomputed: bool, step: float) -> None:
    options: dict[str, Any] = {"mode": "bilinear", "scale_factor": 0.3, "recompute_scale_factor": recomputed}
    found = where(Function(lambda x: F.interpolate(x, **options)), (16, 16))
    assert (*found.first, *found.step) == pytest.approx(((step - 1) / 2, (step - 1) / 2, step, step))


@pytest.mark.parametrize("kind", [nn.MaxPool2d, nn.AvgPool2d])
def test_a_maximum_lies_where_a_mean_does(kind: Any) -> None:
    found = [where(nn.Sequential(pool(3, 2, 1)), (12, 16)) for pool in (kind, nn.AvgPool2d)]
    assert found[0] == found[1] == Centres((0.0, 0.0), (2.0, 2.0))


def where(body: nn.Module, size: tuple[int, ...]) -> Centres:
    with medviz.Probe(Wrapped(body), torch.ones(1, 2, *size), layers=["body"]) as probe:
        return centres(probe, {"body": probe.activation("body").shape[2:]})[0]


TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x.flip(2),
    "roll": lambda x: x.roll(1, 3),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "index": lambda x: x[:, :, torch.arange(15, -1, -1)],
    "index_select": lambda x: x.index_select(2, torch.arange(15, -1, -1)),
    "matmul": lambda x: torch.eye(16).flip(0) @ x,
    "halves swapped": lambda x: torch.cat([x[:, :, 8:], x[:, :, :8]], 2),
    "halves": lambda x: x.chunk(2, dim=2)[1],
    "transposed": lambda x: x.transpose(2, 3),
    "transposed, from the end": lambda x: x.transpose(-1, -2),
    "transposed, by name": lambda x: x.transpose(dim0=2, dim1=3),
    "moved": lambda x: x.movedim(2, 3),
    "permuted": lambda x: x.permute(0, 1, 3, 2),
    "not torch's own": lambda x: torch.from_numpy(np.roll(x.numpy(), 3, axis=2)),
    "set": _set,
    "set behind dots": _set_behind_dots,
    "chosen behind dots": lambda x: x[..., torch.arange(x.shape[-1] - 1, -1, -1)],
    "chosen rows behind dots": lambda x: x[..., torch.arange(x.shape[-2] - 1, -1, -1), :],
    "set where": _set_where,
    "two places": lambda x: x[:, :, :12] + x[:, :, 4:],
    "nearest, not whole": lambda x: F.interpolate(x, (11, 11)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_what_is_moved_in_another_way_is_not_known(turn: str) -> None:
    for body in (Function(TURNS[turn]), nn.Sequential(Function(TURNS[turn]), nn.Conv2d(2, 2, 3, 2, 1), nn.ReLU())):
        with pytest.raises(ValueError, match="it is not known where in the image the cells of `layer` 'body'"):
            where(body, (16, 16))


@pytest.mark.parametrize("first", [True, False])
def test_skip_connections_to_another_place_are_not_known(first: bool) -> None:
    down = nn.Sequential(*[nn.Conv2d(2, 2, 3, 2, 1) for _ in range(4)])
    up = nn.Sequential(*[nn.ConvTranspose2d(2, 2, 2, 2) for _ in range(4)])
    skip = Function(lambda x: torch.cat([x, up(down(x))][:: 1 if first else -1], 1))
    with pytest.raises(ValueError, match="brings together maps that lie in different places"):
        where(skip, (64, 64))


@pytest.mark.parametrize("method", [name for name in LAYERED if name != "cam"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_bright_spot_is_found_where_it_is(method: str, ndim: int) -> None:
    conv = nn.Conv2d if ndim == 2 else nn.Conv3d
    body = nn.Sequential(*[conv(2 if i == 0 else 3, 3, 3, 2, 1) for i in range(3)])
    model = nn.Sequential(even(body), nn.ReLU(), nn.Flatten(2), Function(lambda x: x.mean(2)))
    image, spot = torch.zeros(1, 2, *[64] * ndim), 40
    image[(..., *[slice(spot - 2, spot + 3)] * ndim)] = 1
    at = {}
    for aligned in (False, True):
        values = medviz.get_explainer(method, layer="0", aligned=aligned)(model, image, 0).values[0, 0]
        assert values.shape == image.shape[2:]
        mass = values.clamp(min=0).sum(tuple(range(1, ndim)))
        mass = (mass - mass.min()) / (mass - mass.min()).sum()
        at[aligned] = float((mass * torch.arange(64)).sum())
    assert abs(at[True] - spot) < 1
    assert at[False] - at[True] == pytest.approx(3.5, abs=0.3)  # half of the stride, less half a voxel


def test_other_tensors_of_the_size_of_a_map_are_no_maps() -> None:
    class Attends(nn.Module):
        """Of 16 by 16 pixels, 16 tokens and heads of 16 channels, so that queries look like images."""

        def __init__(self) -> None:
            super().__init__()
            self.patch, self.mix, self.norm = nn.Conv2d(2, 16, 4, 4), nn.Linear(16, 48), nn.LayerNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patch(x).flatten(2).mT
            q, k, v = self.mix(tokens).reshape(len(x), 16, 3, 1, 16).permute(2, 0, 3, 1, 4)
            tokens = tokens + ((q @ k.mT).softmax(-1) @ v)[:, 0]
            return self.norm(tokens)

    model = nn.Sequential(Attends(), Function(lambda x: x.mean(1)))
    with medviz.Probe(model, torch.rand(1, 2, 16, 16)) as probe:
        assert centres(probe, {"0": (4, 4)}) == [Centres((1.5, 1.5), (4.0, 4.0))]


def test_a_kernel_of_the_size_of_a_map_is_no_map() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3, padding=1))
    assert where(nn.Sequential(nn.Conv2d(2, 2, 2, 2), conv), (6, 6)) == Centres((0.5, 0.5), (2.0, 2.0))


def test_an_axis_of_one_voxel_is_followed_too() -> None:
    model = nn.Sequential(nn.ConvTranspose3d(2, 2, 2, 2), nn.Upsample(scale_factor=2, mode="trilinear"))
    assert where(model, (1, 4, 4)) == Centres((-0.375,) * 3, (0.25,) * 3)


def test_tokens_lie_where_their_patches_lay() -> None:
    model, image = Tokens(), images(2, 1, 16, 12)
    plain, aligned = (medviz.get_explainer("hirescam", layer="norm", aligned=a)(model, image, 1) for a in (False, True))
    assert aligned.values.shape == plain.values.shape
    check_correlated(plain.values, aligned.values)


def check_correlated(a: Tensor, b: Tensor) -> None:
    assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.9


def test_several_layers_cost_one_more_pass() -> None:
    model, image, passes = Classifier(2), images(2, 2, 16, 12), []
    watched = nn.Sequential(model)
    watched.register_forward_pre_hook(lambda module, given: passes.append(len(given[0])))
    medviz.get_explainer("layercam", layer=["0.stem", "0.deep"], aligned=True)(watched, image, 1)
    assert passes == [2, 1]


def test_several_layers_meet_on_the_images_grid() -> None:
    model, image = Classifier(2), images(2, 2, 16, 12)
    fused = medviz.get_explainer("layercam", layer=["stem", "deep"], aligned=True)(model, image, 1)
    assert fused.raw is not None
    assert fused.raw.shape == (2, 1, 16, 12)
    assert fused.provenance["parameters"]["aligned"] is True


def test_a_segmentation_network() -> None:
    model, image = UNet(), images(1, 1, 16, 16)
    target = medviz.SegmentationTarget(1)
    assert medviz.get_explainer("hirescam", aligned=True)(model, image, target).values.any()


def test_the_model_and_the_images_are_as_they_were() -> None:
    model, image = Classifier(2).train(), images(2, 2, 16, 12)
    before, state = image.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    medviz.get_explainer("gradcam", aligned=True)(model, image, 1)
    assert model.training
    assert torch.equal(image, before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_an_axis_of_one_cell_is_constant() -> None:
    values = Centres((3.5, 0.0), (8.0, 2.0)).resample(torch.tensor([[[[1.0, 3.0]]]]), (8, 4))
    assert torch.equal(values[0, 0], torch.tensor([[1.0, 2.0, 3.0, 3.0]]).expand(8, 4))
