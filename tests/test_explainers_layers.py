"""Which layer is read: chosen automatically, named, several, tokens; and an error for every way to name it wrongly."""

from __future__ import annotations

import importlib
import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import GRADIENT, LAYERED, ChannelsLast, Classifier, Tokens, UNet, check_close, explain, images
from torch import Tensor, nn

import medviz

NO_GAP = [m for m in LAYERED if m != "cam"]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("method", LAYERED)
def test_the_automatic_layer_is_the_last_with_a_spatial_extent(method: str, ndim: int) -> None:
    model, image = Classifier(ndim), images(2, 2, *(8, 6, 4)[:ndim])
    automatic = explain(method, model, image, 1)
    assert automatic.provenance["layers"] == ["deep"]
    check_close(automatic.values, explain(method, model, image, 1, layer="deep").values, 1e-6)
    check_close(automatic.values, explain(method, model, image, 1, layer="deep.1").values, 1e-6)


@pytest.mark.parametrize("method", NO_GAP)
def test_several_layers_are_the_mean_of_scaled_maps_on_the_finest_grid(method: str) -> None:
    model, image = Classifier(2), images(3, 2, 9, 8)
    fused = explain(method, model, image, 1, layer=["stem", "deep"])
    alone = [explain(method, model, image, 1, layer=layer).raw for layer in ("stem", "deep")]
    scaled = [a / a.flatten(1).amax(1).clamp(min=1e-30).view(-1, 1, 1, 1) for a in alone if a is not None]
    expected = (scaled[0] + F.interpolate(scaled[1], size=(9, 8), mode="bilinear")) / 2
    check_close(fused.values, expected)
    assert fused.values.max() <= 1
    assert fused.provenance["layers"] == ["stem", "deep"]
    assert fused.provenance["parameters"]["layer"] == ["stem", "deep"]


def test_an_empty_map_stays_empty_among_several_layers() -> None:
    model, image = Classifier(2), images(1, 2, 9, 8)
    model.fc.weight.data.abs_().neg_()
    assert not explain("layercam", model, image, 1, layer="deep").values.any()
    fused = explain("layercam", model, image, 1, layer=["stem", "deep"])
    stem = explain("layercam", model, image, 1, layer="stem").values
    check_close(fused.values, stem / stem.max() / 2)


def test_signed_maps_keep_their_signs_among_several_layers() -> None:
    fused = explain("hirescam", Classifier(2), images(3, 2, 9, 8), 1, layer=["stem", "deep"], relu=False)
    assert fused.signed
    assert (fused.values < 0).any()
    assert fused.values.abs().max() <= 1


def test_a_map_of_negative_values_is_scaled_by_its_largest_magnitude_among_several_layers() -> None:
    model, image = Classifier(2), images(3, 2, 9, 8)
    model.fc.weight.data.abs_().neg_()
    alone = explain("hirescam", model, image, 1, layer="deep", relu=False).raw
    twice = explain("hirescam", model, image, 1, layer=["deep", "deep.1"], relu=False).raw
    assert alone is not None
    assert twice is not None
    assert (alone <= 0).all()
    check_close(twice, -alone / alone.flatten(1).amin(1).view(-1, 1, 1, 1), 1e-6)


def test_one_named_layer_in_a_list_is_that_layer() -> None:
    model, image = Classifier(2), images(2, 2, 8, 8)
    listed = explain("gradcam", model, image, 1, layer=["deep"])
    assert torch.equal(listed.values, explain("gradcam", model, image, 1, layer="deep").values)


@pytest.mark.parametrize("method", [m for m in GRADIENT if m != "cam"])
def test_several_layers_of_a_segmentation_network(method: str) -> None:
    fused = explain(method, UNet(3), images(2, 1, 6, 5, 7), medviz.SegmentationTarget(1), layer=["top", "bottom"])
    assert fused.raw is not None
    assert fused.raw.shape == (2, 1, 6, 5, 7)
    assert fused.values.any()


def as_grid(tokens: Tensor, *grid: int) -> Tensor:
    return tokens[:, tokens.shape[1] - math.prod(grid) :].mT.reshape(len(tokens), -1, *grid)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize(("size", "grid"), [((12, 20), (3, 5)), ((8, 12, 16), (2, 3, 4))], ids=["2d", "3d"])
def test_tokens_become_the_grid_that_fits(size: tuple[int, ...], grid: tuple[int, ...], class_token: bool) -> None:
    model, image = Tokens(len(size), class_token=class_token), images(2, 1, *size)
    found = explain("gradcam", model, image, 1, layer="block")
    assert found.raw is not None
    assert found.raw.shape == (2, 1, *grid)
    kept: dict[str, Tensor] = {}
    handle = model.block.register_forward_hook(lambda m, a, output: kept.update(tokens=output))
    score = model(image)[:, 1].sum()
    handle.remove()
    tokens = kept["tokens"]
    (gradient,) = torch.autograd.grad(score, tokens)
    a, g = as_grid(tokens.detach(), *grid), as_grid(gradient, *grid)
    spatial = tuple(range(2, a.ndim))
    check_close(found.raw, (g.mean(spatial, keepdim=True) * a).sum(1, keepdim=True).relu())


RESHAPES = [(3, 5), [3, 5], lambda tokens: as_grid(tokens, 3, 5)]


@pytest.mark.parametrize("method", NO_GAP)
@pytest.mark.parametrize("class_token", [False, True])
def test_a_grid_may_be_given(method: str, class_token: bool) -> None:
    model, image = Tokens(2, class_token=class_token), images(2, 1, 12, 20)
    found = explain(method, model, image, 0, layer="block").values
    given = [explain(method, model, image, 0, layer="block", reshape=reshape).values for reshape in RESHAPES[:2]]
    assert all(torch.equal(values, found) for values in given)


@pytest.mark.parametrize("method", NO_GAP)
def test_a_callable_may_make_the_grid(method: str) -> None:
    model, image = Tokens(2), images(2, 1, 12, 20)
    got = explain(method, model, image, 0, layer="block", reshape=RESHAPES[2])
    assert torch.equal(got.values, explain(method, model, image, 0, layer="block").values)
    assert isinstance(got.provenance["parameters"]["reshape"], str)


@pytest.mark.parametrize("method", LAYERED)
def test_ablation_and_all_others_take_channels_last(method: str) -> None:
    """The same network, once with the channels moved to the front by its own last step."""

    class Moved(ChannelsLast):
        def __init__(self) -> None:
            super().__init__()
            self.moved = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.moved(self.block(self.patch(x).movedim(1, -1)).movedim(-1, 1)).flatten(2).mean(2))

    image = images(2, 1, 8, 6)
    got = explain(method, ChannelsLast(2), image, 0, layer="block", reshape="channels_last")
    expected = explain(method, Moved(), image, 0, layer="moved")
    assert got.raw is not None
    assert got.raw.shape == (2, 1, 4, 3)
    check_close(got.values, expected.values)
    moved = explain(method, ChannelsLast(2), image, 0, layer="block", reshape=lambda features: features.movedim(-1, 1))
    assert torch.equal(moved.values, got.values)


def test_ablation_refuses_a_reshape_that_mixes_maps() -> None:
    def pairs(tokens: Tensor) -> Tensor:
        grid = as_grid(tokens, 3, 5)
        return grid + grid.flip(1)

    with pytest.raises(ValueError, match="AblationCAM cannot tell which axis of `layer` 'block'"):
        explain("ablationcam", Tokens(2), images(1, 1, 12, 20), 0, layer="block", reshape=pairs)


@pytest.mark.parametrize("method", ["ablationcam", "scorecam"])
def test_no_more_maps_are_made_than_a_pass_takes(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a thousand masks of a large volume need not be held at once."""
    module = importlib.import_module(f"medviz.explainers.{method}")
    rows = module._Ablated if method == "ablationcam" else module._Masked
    made, make = [], rows.__getitem__

    def watched(self: Any, part: slice) -> Tensor:
        made.append(make(self, part))
        return made[-1]

    monkeypatch.setattr(rows, "__getitem__", watched)
    model, image = Classifier(3), images(2, 2, 6, 5, 4)
    whole = explain(method, model, image, 1, layer="deep")
    assert {len(some) for some in made} == {7}
    made.clear()
    check_close(explain(method, model, image, 1, layer="deep", batch_size=2).values, whole.values)
    assert [len(some) for some in made] == [2, 2, 2, 1] * 2


def test_cam_of_tokens_without_a_class_token() -> None:
    class Mean(Tokens):
        def head(self, tokens: Tensor) -> Tensor:
            return self.fc(tokens.mean(1))

    attribution = explain("cam", Mean(2), images(2, 1, 12, 20), 1, layer="block")
    assert attribution.raw is not None
    bias = Mean(2).fc.bias[1].detach()
    check_close(attribution.raw.flatten(1).mean(1) + bias, torch.tensor(attribution.scores))


def test_an_ambiguous_grid_is_asked_for() -> None:
    """15 tokens of 24 × 40 could be 3 × 5 of any patch; 6 of 12 × 12 could be 2 × 3 or 3 × 2."""
    model = Tokens(2, patch=4)
    model.patch = nn.Sequential(nn.Conv2d(1, 8, (6, 4), stride=(6, 4)))
    with pytest.raises(
        ValueError, match=r"6 tokens .* several grids fit: .*\(2, 3\).*\(3, 2\).*give `reshape="
    ) as error:
        explain("gradcam", model, images(1, 1, 12, 12), 0, layer="block")
    assert "'block'" in str(error.value)
    assert explain("gradcam", model, images(1, 1, 12, 12), 0, layer="block", reshape=(2, 3)).raw.shape[2:] == (2, 3)  # type: ignore[union-attr]


def test_no_grid_fits_and_too_few_tokens() -> None:
    model = Tokens(2, patch=4)
    model.patch = nn.Conv2d(1, 8, 4, stride=4, padding=3)
    with pytest.raises(ValueError, match=r"25 tokens .* no grid fits; give `reshape"):
        explain("gradcam", model, images(1, 1, 14, 14), 0, layer="block")
    with pytest.raises(ValueError, match=r"`reshape` \(7, 7\) wants 49 tokens; `layer` 'block' has 15"):
        explain("gradcam", Tokens(2), images(1, 1, 12, 20), 0, layer="block", reshape=(7, 7))


def test_the_automatic_choice_asks_for_a_layer_of_tokens() -> None:
    with pytest.raises(ValueError, match=r"works on tokens .* token layers end with .*'block'"):
        explain("gradcam", Tokens(2), images(1, 1, 12, 20), 0)


@pytest.mark.parametrize("reshape", ["first", 3, (0, 2), (1.5, 2), []])
def test_a_wrong_reshape(reshape: Any) -> None:
    with pytest.raises((TypeError, medviz.PluginError), match="`reshape` is None, a grid"):
        medviz.get_explainer("gradcam", reshape=reshape)


@pytest.mark.parametrize("layer", [True, [], ["deep", b"1"], ["deep", "deep"], ["1", 1], [None]])
def test_a_wrong_layer_parameter(layer: Any) -> None:
    with pytest.raises((TypeError, medviz.PluginError), match=r"`layer` is the name of a module|a layer is the dotted"):
        medviz.get_explainer("gradcam", layer=layer)


def test_a_name_with_a_dot_needs_quotes_in_a_plugin_string() -> None:
    assert medviz.get_explainer("gradcam:layer='0.10'").layer == "0.10"
    with pytest.raises(medviz.PluginError, match=r"in a shell others around them: \"gradcam:layer='0.10'\""):
        medviz.get_explainer("gradcam:layer=0.10")


@pytest.mark.parametrize("method", LAYERED)
class TestErrors:
    image = images(2, 2, 8, 8)

    def test_no_such_layer_names_near_misses(self, method: str) -> None:
        with pytest.raises(ValueError, match="`layer` 'deeep' is not in the model; did you mean 'deep"):
            explain(method, Classifier(2), self.image, 1, layer="deeep")

    def test_no_such_layer_among_several(self, method: str) -> None:
        with pytest.raises(ValueError, match="`layer` 'stm' is not in the model; did you mean 'stem"):
            explain(method, Classifier(2), self.image, 1, layer=["deep", "stm"])

    def test_a_layer_without_spatial_extent(self, method: str) -> None:
        with pytest.raises(ValueError, match="`layer` 'fc' has no spatial extent"):
            explain(method, Classifier(2), self.image, 1, layer="fc")

    def test_a_layer_that_is_not_called(self, method: str) -> None:
        model = Classifier(2)
        model.unused = nn.Conv2d(2, 2, 1)
        with pytest.raises(ValueError, match="`layer` 'unused' was not called"):
            explain(method, model, self.image, 1, layer="unused")

    @pytest.mark.parametrize(
        ("image", "error", "message"),
        [
            (torch.full((1, 2, 8, 8), float("nan")), ValueError, "128 values of 128 that are NaN or infinite"),
            (torch.zeros(1, 2, 8, 8, dtype=torch.int16), TypeError, r"torch.int16; .*image\.float\(\)"),
            (torch.zeros(0, 2, 8, 8), ValueError, "is empty"),
            (torch.zeros(2, 8, 8), ValueError, r"Add a missing batch axis with image\[None\]"),
            ([[1.0]], TypeError, "`image` is a list; expected a tensor"),
            ("scan.nii", TypeError, "`image` is a str; expected a tensor"),
            (None, TypeError, "`image` is a NoneType; expected a tensor"),
        ],
        ids=["nan", "integers", "empty", "unbatched", "list", "path", "none"],
    )
    def test_a_wrong_image(self, method: str, image: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            explain(method, Classifier(2), image, 1)

    @pytest.mark.parametrize(
        ("target", "error", "message"),
        [
            (4, ValueError, "`target` 4 is out of range: the network has 4 outputs, 0 to 3"),
            (-1, ValueError, "`target` -1 is out of range"),
            (torch.tensor([0, 7]), ValueError, "`target` 7 is out of range"),
            (torch.tensor([0, 1, 2]), ValueError, "`target` names 3 classes for 2 images"),
            (torch.tensor([0.0, 1.0]), TypeError, "must be integers"),
            ("1", TypeError, "`target` '1' is a str"),
            (True, TypeError, "`target` True is a bool"),
            (medviz.SegmentationTarget(0), ValueError, r"SegmentationTarget needs an output \(B, N, \*S\)"),
            (medviz.BinaryTarget(), ValueError, r"BinaryTarget needs an output \(B, 1\)"),
            (medviz.RegressionTarget(4), ValueError, "out of range"),
        ],
        ids=["class", "negative", "one-class", "number", "floats", "string", "bool", "segmentation", "binary", "value"],
    )
    def test_a_wrong_target(self, method: str, target: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            explain(method, Classifier(2), self.image, target)

    def test_a_model_that_is_none(self, method: str) -> None:
        with pytest.raises(TypeError, match=r"`model` is a function; expected a torch\.nn\.Module"):
            explain(method, lambda x: x, self.image, 1)  # type: ignore[arg-type]

    def test_an_infinite_output(self, method: str) -> None:
        model = Classifier(2)
        model.fc.bias.data[0] = float("inf")
        with pytest.raises(ValueError, match="the model's output holds 2 values of 8 that are NaN or infinite"):
            explain(method, model, self.image, 1)

    def test_a_scripted_model(self, method: str, recwarn: pytest.WarningsRecorder) -> None:
        import warnings

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit")  # torch.jit announces its end
            traced = torch.jit.trace(Classifier(2), self.image)
        for layer in ("deep", None):
            with pytest.raises(ValueError, match="scripted or traced module, which takes no hooks; use a method that"):
                explain(method, traced, self.image, 1, layer=layer)


@pytest.mark.parametrize("method", GRADIENT)
def test_a_layer_that_the_score_does_not_depend_on(method: str) -> None:
    class Aside(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.aside = nn.Conv2d(2, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            return super().forward(x)

    with pytest.raises(ValueError, match="the score 'class 1' does not depend on `layer` 'aside'"):
        explain(method, Aside(), images(2, 2, 8, 8), 1, layer="aside")


def test_a_single_voxel_is_no_spatial_extent() -> None:
    with pytest.raises(ValueError, match="no spatial extent"):
        explain("gradcam", Classifier(2), images(1, 2, 2, 2), 1, layer="deep")
    assert explain("gradcam", Classifier(2), images(1, 2, 2, 2), 1).provenance["layers"] == ["stem"]


@pytest.mark.parametrize("method", LAYERED)
def test_an_axis_of_one_voxel_is_a_spatial_axis(method: str) -> None:
    assert explain(method, Classifier(2), images(2, 2, 1, 9), 1).values.shape == (2, 1, 1, 9)
    assert explain(method, Classifier(3), images(2, 2, 5, 1, 4), 1).values.shape == (2, 1, 5, 1, 4)


def test_layers_of_a_sequential_have_numbers_for_names() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    image = torch.rand(1, 1, 8, 8)
    expected = medviz.get_explainer("gradcam", layer="1")(model, image).values
    assert torch.equal(medviz.explain(model, image, "gradcam:layer=1").values, expected)
    assert medviz.explain(model, image, "gradcam:layer=[0,1]").provenance["layers"] == ["0", "1"]
    with pytest.raises(ValueError, match="in quotes"):
        medviz.get_explainer("gradcam:layer=0.10")
    assert medviz.get_explainer("gradcam:layer='0.10'").layer == "0.10"


class Last(nn.Module):
    """Goes on with `(B, H, W, K)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 16, 4, 4), nn.LayerNorm(16), nn.Linear(16, 3)
        self.act, self.block = nn.GELU(), nn.Sequential(OrderedDict(norm=nn.LayerNorm(16), act=nn.ReLU()))
        self.end = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.act(self.norm(self.conv(x).permute(0, 2, 3, 1))))
        return self.fc(self.end(x.permute(0, 3, 1, 2)).mean((2, 3)))


@pytest.mark.parametrize("layer", ["norm", "act", "block", "block.act"])
def test_channels_last_must_be_said(layer: str) -> None:
    model, image = Last(), torch.rand(2, 1, 16, 20)
    for method in ("gradcam", "eigencam", "ablationcam"):
        with pytest.raises(ValueError, match=r"\(2, 4, 5, 16\), channels last; give reshape='channels_last'"):
            medviz.explain(model, image, f"{method}:layer={layer}")
        assert medviz.explain(model, image, f"{method}:layer={layer},reshape=channels_last").raw.shape[2:] == (4, 5)


class Square(nn.Module):
    """As many channels as the map has columns, and the channels are last inside of `block`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())
        self.conv = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x).movedim(1, -1)).movedim(-1, 1)
        return self.fc(self.conv(x).mean((2, 3)))


def test_a_gate_of_linear_layers_does_not_put_channels_last() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2), nn.Linear(2, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.squeeze(x).sigmoid()[:, :, None, None]

    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), Gated(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    assert explain("hirescam", model, images(1, 1, 8, 8), 1, layer="1").values.any()


@pytest.mark.parametrize("layer", ["block", "block.0", "block.1"])
def test_channels_last_must_be_said_where_there_are_as_many_as_columns(layer: str) -> None:
    model, image = Square(), images(1, 1, 8, 8)
    with pytest.raises(ValueError, match="channels last; give reshape='channels_last'"):
        explain("gradcam", model, image, 1, layer=layer)
    assert explain("hirescam", model, image, 1, layer=layer, reshape="channels_last").values.any()
    for first in ("stem", "conv", "conv.0"):
        assert explain("hirescam", model, image, 1, layer=first).values.any()


@pytest.mark.parametrize("layer", ["conv", "end"])
def test_channels_first_beside_channels_last(layer: str) -> None:
    assert medviz.explain(Last(), torch.rand(2, 1, 16, 20), f"gradcam:layer={layer}").raw.shape[2:] == (4, 5)


def test_a_norm_over_channels_inside_of_a_layer_does_not_put_them_last() -> None:
    class Moved(nn.Module):
        def __init__(self, *axes: int) -> None:
            super().__init__()
            self.axes = axes

        def forward(self, x: Tensor) -> Tensor:
            return x.permute(self.axes)

    class Down(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            norm = (Moved(0, 2, 3, 1), nn.LayerNorm(8), Moved(0, 3, 1, 2))
            self.conv, self.down = nn.Conv2d(1, 8, 1), nn.Sequential(*norm, nn.Conv2d(8, 16, 2, 2))
            self.filters, self.fc = nn.Parameter(torch.rand(4, 16, 1, 1)), nn.Linear(4, 2)
            self.own = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.own(F.conv2d(self.down(self.conv(x)), self.filters)).mean((2, 3)))

    assert medviz.explain(Down(), torch.rand(1, 1, 16, 16), "gradcam:layer=down").raw.shape[2:] == (8, 8)


def test_the_automatic_choice_refuses_channels_last() -> None:
    class Pooled(Last):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.block(self.norm(self.conv(x).permute(0, 2, 3, 1))).mean((1, 2)))

    model, image = Pooled(), torch.rand(2, 1, 16, 16)
    with pytest.raises(ValueError, match='reshape="channels_last"'):
        medviz.explain(model, image, "gradcam")
    named = medviz.explain(model, image, "hirescam:layer=block,reshape=channels_last,relu=false", 1)
    assert named.raw.shape == (2, 1, 4, 4)
    expected = torch.tensor(named.scores) - model.fc.bias[1].detach()
    torch.testing.assert_close(named.raw.flatten(1).sum(1), expected)


class Stage(nn.Module):
    """As in ConvNeXt: channels are last inside of the block, and first outside."""

    def __init__(self, nd: int) -> None:
        super().__init__()
        self.mix = (nn.Conv2d if nd == 2 else nn.Conv3d)(16, 16, 3, padding=1, groups=16)
        self.norm, self.linear = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(self.mix(x).movedim(1, -1))).movedim(-1, 1)


@pytest.mark.parametrize("nd", [2, 3])
def test_channels_last_inside_of_a_block_matter_to_nobody(nd: int) -> None:
    stem, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if nd == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
    stages = nn.Sequential(stem(1, 16, 4, 4), Stage(nd), Stage(nd))
    model, image = nn.Sequential(stages, pool(1), nn.Flatten(), nn.Linear(16, 3)), torch.rand(2, 1, *[16] * nd)
    found = medviz.explain(model, image, "hirescam:relu=false", 1)
    assert found.raw.shape == (2, 1, *[4] * nd)
    expected = torch.tensor(found.scores) - model[3].bias[1].detach()
    torch.testing.assert_close(found.raw.flatten(1).sum(1), expected)
    for layer in ("0", "0.1", "0.0"):
        with pytest.raises(ValueError, match="channels first; leave `reshape` out"):
            medviz.explain(model, image, f"gradcam:layer={layer!r},reshape=channels_last", 1)


def test_a_convolution_with_as_many_channels_says_that_they_come_first() -> None:
    """No linear layer takes as many as the layer's map has columns, or channels."""
    convolutions = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3))
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(ValueError, match="channels first; leave `reshape` out"):
        explain("gradcam", model, images(1, 1, 8, 9), 1, layer="0", reshape="channels_last")


def test_a_grid_for_what_is_a_grid_already_is_refused() -> None:
    model, image = nn.Sequential(*list(Square().conv), nn.Flatten(), nn.Linear(8 * 64, 3)), torch.rand(1, 8, 8, 8)
    with pytest.raises(ValueError, match=r"is a grid already; `reshape` \(4, 16\) is for tokens"):
        medviz.explain(model, image, "hirescam:layer='1',reshape=[4,16]", 1)
    assert medviz.explain(model, image, "hirescam:layer='1',reshape=[8,8]", 1).raw.shape == (1, 1, 8, 8)


def test_a_layer_behind_the_last_attention_has_nothing_to_map() -> None:
    class TinyViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.cls = nn.Conv2d(1, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
            block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(block, 2), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(x).flatten(2).mT
            return self.head(self.encoder(torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1))[:, 0])

    model, image = TinyViT(), torch.rand(2, 1, 16, 16)
    for name in ("gradcam", "layercam", "hirescam"):
        with pytest.raises(ValueError, match="only through its class token"):
            medviz.explain(model, image, f"{name}:layer=encoder.layers.1", 1)
    assert medviz.explain(model, image, "hirescam:layer=encoder.layers.0,relu=false", 1).values.abs().max() > 0


@pytest.mark.parametrize("name", ["gradcam", "layercam", "hirescam"])
def test_tokens_that_a_constant_score_does_not_depend_on_have_a_map_of_zeros(name: str) -> None:
    model, image = Tokens(class_token=True), images(1, 1, 16, 16)
    assert not explain(name, model, image, lambda out: (out * 0).sum(1), layer="block").values.any()


def test_a_side_branch_whose_output_is_dropped_is_refused_beside_others() -> None:
    """Its node is gone when the gradient is asked for, which ended the interpreter with PyTorch 2.6."""

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.side, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu_()
            self.side(x)
            return self.fc(self.second(x).mul_(2).relu_().mean((2, 3)))

    layers = ["gradcam:layer=second", "gradcam:layer=side", "layercam:layer=first"]
    for _ in range(3):
        with pytest.raises(ValueError, match="does not depend on `layer` 'side'"):
            medviz.explain(Dropped(), torch.rand(2, 1, 64, 64), layers, [0, 1])


@pytest.mark.parametrize("name", ["gradcam", "ablationcam"])
def test_a_layer_on_a_side_branch_is_refused(name: str) -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.decoder, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            features = self.conv(x).relu()
            logits = self.fc(features.mean((2, 3)))
            return {"logits": logits, "reconstruction": self.decoder(features)}

    with pytest.raises(ValueError, match="does not depend on `layer` 'decoder'"):
        medviz.get_explainer(name, layer="decoder")(Side(), torch.rand(2, 1, 8, 8), 1)
    # the decoder is the last spatial layer, but the score does not pass it
    assert medviz.get_explainer(name)(Side(), torch.rand(2, 1, 8, 8), 1).provenance["layers"] == ["conv"]


@pytest.mark.parametrize("layer", [None, "relu"])
def test_a_norm_of_pooled_features_does_not_make_a_square_map_unclear(layer: str | None) -> None:
    """The map has as many columns as the norm has channels."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(1, 8, 3, padding=1, stride=2), nn.ReLU()
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.relu(self.conv(x)).mean((2, 3))))

    assert explain("gradcam", Pooled(), images(1, 1, 16, 16), 1, layer=layer).raw.shape[2:] == (8, 8)


def test_a_layer_whose_axes_before_the_last_are_the_images_ends_in_channels() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.norm = nn.Conv2d(2, 24, 4, stride=4), nn.Identity(), nn.LayerNorm(24)
            self.head = nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.mix(self.conv(x).movedim(1, -1))).mean((1, 2)))

    model, image = Last(), images(1, 2, 8, 12)
    with pytest.raises(ValueError, match=r"'mix' returns \(1, 2, 3, 24\), and the layers do not tell"):
        explain("gradcam", model, image, 1, layer="mix")
    named = explain("gradcam", model, image, 1, layer="mix", reshape="channels_last")
    assert named.raw.shape[2:] == (2, 3)
