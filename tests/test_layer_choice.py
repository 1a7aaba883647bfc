"""Which layer is taken where none is named."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import check_close, images
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import medviz


def chosen(model: nn.Module, image: Tensor, target: Any = 1, method: str = "gradcam") -> str:
    """Return the automatic layer, after a look at its map: the one that is made where the layer is named."""
    attribution = medviz.explain(model, image, method, target)
    (name,) = attribution.provenance["layers"]
    named = medviz.get_explainer(method, layer=name)(model, image, target)
    check_close(attribution.raw, named.raw)
    return str(name)


class Pooled(nn.Module):
    """As those of transformers: the features, and beside them what the classifier reads."""

    def __init__(self, aside: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
        self.pooler, self.aside = nn.AdaptiveAvgPool2d(1), aside

    def forward(self, x: Tensor) -> Any:
        features = self.encoder(x)
        return (features, self.pooler(features)) if self.aside else features


class Wrapped(nn.Module):
    def __init__(self, aside: bool) -> None:
        super().__init__()
        self.backbone, self.classifier = Pooled(aside), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.backbone(x)
        pooled = found[1] if isinstance(found, tuple) else found.mean((2, 3), keepdim=True)
        scores: Tensor = self.classifier(pooled.flatten(1))
        return scores


@pytest.mark.parametrize("method", ["gradcam", "ablationcam"])
@pytest.mark.parametrize(("aside", "name"), [(True, "backbone.encoder"), (False, "backbone")])
def test_a_container_stands_for_its_last_layer_unless_the_score_leaves_by_another(
    aside: bool, name: str, method: str
) -> None:
    assert chosen(Wrapped(aside), images(1, 2, 9, 8), method=method) == name


class Pyramid(nn.Module):
    """As PSPNet: the features go on beside what is pooled of them to grids of a fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3, stride=4), nn.ReLU())
        self.branches = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(n), nn.Conv2d(4, 2, 1)) for n in (1, 2, 3))
        self.bottleneck, self.logits = nn.Conv2d(10, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        pooled = [F.interpolate(branch(features), size=features.shape[2:]) for branch in self.branches]
        joined = torch.relu(self.bottleneck(torch.cat([features, *pooled], 1)))
        return F.interpolate(self.logits(joined), size=x.shape[2:])


def test_a_branch_that_is_pooled_to_a_fixed_grid_is_not_the_coarsest() -> None:
    assert chosen(Pyramid(), images(1, 2, 32, 32), medviz.SegmentationTarget(1)) == "bottleneck"


def test_where_all_is_pooled_to_a_fixed_grid_that_one_is_taken() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    assert chosen(model, images(1, 2, 9, 8), medviz.SegmentationTarget(1)) == "2"


def test_cells_that_are_made_of_a_single_one_are_no_place() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, stride=4), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU()),  # 8 × 8, 2 × 2, 1 × 1
        *(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 3)),  # 3 × 3, of which 8 cells are padding
    )
    assert chosen(model, images(1, 2, 8, 8)) == "1"


def test_padding_is_no_layer_to_look_at() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.ZeroPad2d((0, 2, 0, 1)), nn.Flatten(), nn.Linear(80, 3))
    assert chosen(model, images(1, 2, 7, 7)) == "0"


def test_where_nothing_tells_which_axis_holds_the_channels_both_are_offered() -> None:
    class Unclear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 6))
            self.grid, self.norm = nn.Conv2d(2, 6, 4, stride=4), nn.LayerNorm(6)
            self.mix, self.head = nn.Identity(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.norm(self.grid(x).movedim(1, -1))
            grid = self.mix(tokens.movedim(-1, 1) + self.table(torch.ones(1, 2)).view(1, 6, 1, 1))
            scores: Tensor = self.head(grid.mean((2, 3)))
            return scores

    with pytest.raises(ValueError, match=r"whether the channels of 'mix', \(1, 6, 2, 2\), come first or last"):
        medviz.explain(Unclear(), images(1, 2, 8, 8), "gradcam", 1)
    assert medviz.explain(Unclear(), images(1, 2, 8, 8), "gradcam:layer=mix", 1).raw.shape == (1, 1, 2, 2)
    for order, shape in (("channels_first", (1, 1, 2, 2)), ("channels_last", (1, 1, 6, 2))):
        named = medviz.explain(Unclear(), images(1, 2, 8, 8), f"gradcam:layer=mix,reshape={order}", 1)
        assert named.raw.shape == shape


def test_of_several_grids_those_of_cubic_patches_are_shown_first() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.block, self.head = nn.Conv2d(1, 4, (6, 2), (6, 2)), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.block(self.patches(x).flatten(2).movedim(1, 2)).mean(1))
            return scores

    # 64 tokens: patches of 3 × 4 voxels, of 6 × 2, or of 12 × 1
    with pytest.raises(ValueError, match=r"several grids fit: \[\(16, 4\), \(8, 8\), \(4, 16\)\]"):
        medviz.explain(Tokens(), images(1, 1, 48, 16), "gradcam:layer=block", 1)


class Heads(nn.Module):
    """As torchvision's and nnU-Net's: beside the scores there are some for training, from other depths."""

    def __init__(self, aside: str, returned: bool = True) -> None:
        super().__init__()
        self.stem, self.deep = (
            nn.Sequential(nn.Conv2d(2, 4, 3, 2), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3, 2), nn.ReLU()),
        )
        self.scores, self.aux = nn.Conv2d(6, 3, 1), nn.Conv2d({"stem": 4, "deep": 6}[aside], 3, 1)
        self.coarse = nn.MaxPool2d(2)
        self.aside, self.returned = aside, returned

    def forward(self, x: Tensor) -> Any:
        stem = self.stem(x)
        deep = self.deep(stem)
        if self.aside == "deep":
            deep_aside = self.aux(self.coarse(deep))
        scores = F.interpolate(self.scores(deep), size=x.shape[2:])
        aside = self.aux(stem) if self.aside == "stem" else deep_aside
        return {"out": scores, "aux": F.interpolate(aside, size=x.shape[2:])} if self.returned else scores


@pytest.mark.parametrize("method", ["gradcam", "eigencam", "ablationcam"])
@pytest.mark.parametrize("returned", [True, False])
@pytest.mark.parametrize("aside", ["stem", "deep"])
def test_a_head_that_the_score_does_not_come_from_is_left_out(aside: str, returned: bool, method: str) -> None:
    """With its parameters last, the logits would be what comes before them; on the coarsest grid, it would be taken."""
    assert chosen(Heads(aside, returned), images(1, 2, 32, 32), medviz.SegmentationTarget(1), method) == "deep"


@pytest.mark.parametrize("method", ["gradcam", "eigencam"])
def test_another_output_is_explained_at_its_own_layer(method: str) -> None:
    model, image = Heads("stem"), images(1, 2, 32, 32)
    target = medviz.SegmentationTarget(1)
    explainer = medviz.get_explainer(method)
    names = [explainer(model, image, target, output=key).provenance["layers"] for key in ("out", "aux")]
    assert names == [["deep"], ["stem"]]


class Shared(nn.Module):
    """One ReLU is called everywhere, also where there are no voxels any more."""

    def __init__(self, segments: bool) -> None:
        super().__init__()
        self.down, self.deep, self.up = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.relu, self.segments = nn.ReLU(), segments
        self.fc, self.logits = nn.Linear(4, 4), nn.Conv2d(4, 3, 1) if segments else nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        deep = self.relu(self.deep(self.relu(self.down(x))))
        if not self.segments:
            return self.logits(self.relu(self.fc(deep.mean((2, 3)))))
        return self.logits(self.relu(self.up(F.interpolate(deep, size=x.shape[2:]))))


@pytest.mark.parametrize("method", ["gradcam", "layercam", "ablationcam"])
@pytest.mark.parametrize("segments", [True, False])
def test_a_layer_that_is_called_again_stands_for_its_last_call(segments: bool, method: str) -> None:
    target = medviz.SegmentationTarget(1) if segments else 1
    assert chosen(Shared(segments), images(1, 2, 16, 16), target, method) == "deep"


class Embedded(nn.Module):
    """As UNETR: tokens of patches, that come back to their grid without a layer."""

    def __init__(self, decoder: nn.Module | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm, self.mixed = nn.Conv2d(2, 4, 8, 8), nn.LayerNorm(4), nn.Linear(4, 4)
        self.decoder, self.logits = decoder, nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.embedding(x)
        tokens = self.mixed(self.norm(grid.flatten(2).movedim(1, 2)))
        back = tokens.movedim(1, 2).reshape(grid.shape)
        return F.interpolate(self.logits(back if self.decoder is None else self.decoder(back)), size=x.shape[2:])


def test_the_embedding_of_patches_is_no_layer_to_look_at() -> None:
    image, target = images(1, 2, 32, 32), medviz.SegmentationTarget(1)
    assert chosen(Embedded(nn.ConvTranspose2d(4, 4, 2, 2)), image, target, "hirescam:relu=false") == "decoder"
    with pytest.raises(ValueError, match=r"a model that works on tokens .*\['norm', 'mixed'\]"):
        chosen(Embedded(None), image, target)


def test_the_pass_that_follows_the_graph_holds_no_tensors() -> None:
    alive: list[int] = []
    made: list[weakref.ref[Tensor]] = []

    class Noted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result = x.exp()  # whose gradient needs its result
            made.append(weakref.ref(result))
            return result + 0

    class Deep(Heads):
        def forward(self, x: Tensor) -> Any:
            made.clear()
            for layer in layers:
                x = layer(x).tanh()
            alive.append(sum(one() is not None for one in made))
            return super().forward(x)

    layers = nn.ModuleList(Noted() for _ in range(4))
    model = Deep("deep")
    model.layers = layers
    medviz.explain(model, images(1, 2, 32, 32), "gradcam", medviz.SegmentationTarget(1))
    assert alive == [0, 0, 0]  # the choice, the way to the output, the layer itself


FREE = ("eigencam", "ablationcam")  # no gradient


class Branches(nn.Module):
    """Two stages; `scores` come from the second, and something else from the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.scores, self.aside = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Any:
        first = self.first(x)
        return F.interpolate(self.scores(self.inside(first)), size=x.shape[2:]), self.aside(first)

    def inside(self, first: Tensor) -> Tensor:
        return self.second(first)


class Differentiates(Branches):
    def inside(self, first: Tensor) -> Tensor:
        second = self.second(first)
        with torch.enable_grad():
            leaf = second.detach().requires_grad_()
            (slope,) = torch.autograd.grad((leaf**3).sum(), leaf)
        return second + 0.1 * slope


class Frozen(Branches):
    def inside(self, first: Tensor) -> Tensor:
        with torch.no_grad():
            second = self.second(first)
        return second + 0.1 * F.avg_pool2d(first, 2)


class Recomputed(Branches):
    def inside(self, first: Tensor) -> Tensor:
        made = checkpoint(self.second, first, use_reentrant=True)
        assert isinstance(made, Tensor)
        return made


class Counts(Branches):
    """Converts a value, of which PyTorch warns where it has a graph."""

    def inside(self, first: Tensor) -> Tensor:
        return self.second(first / float(first.abs().max()))


class OtherOrder(Branches):
    def forward(self, x: Tensor) -> Any:
        first = self.first(x)
        if torch.is_grad_enabled():
            scores, aside = self.scores(self.second(first)), self.aside(first)
        else:
            aside, scores = self.aside(first), self.scores(self.second(first))
        return F.interpolate(scores, size=x.shape[2:]), aside


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's, of the checkpoint
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(
            (kind, method)
            for kind in (Branches, Differentiates, OtherOrder)
            for method in ("hirescam:relu=false", *FREE)
        ),
        *((kind, method) for kind in (Frozen, Recomputed, Counts) for method in FREE),
    ],
)
def test_the_stage_before_the_scores_whatever_happens_inside(kind: type[Branches], method: str) -> None:
    torch.manual_seed(0)
    assert chosen(kind(), images(1, 2, 16, 16), medviz.SegmentationTarget(1), method) == "second"


class Tower(nn.Module):
    """One tower reads two levels of a pyramid, as those of detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse, self.tower = nn.Conv2d(2, 4, 3, 2), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        fine = self.fine(x)
        levels = (fine, self.coarse(fine))
        return [self.head(self.tower(level).relu().mean((2, 3))) for level in levels]


@pytest.mark.parametrize("method", ["gradcam", "eigencam", "ablationcam"])
def test_a_layer_whose_last_call_leads_elsewhere_is_not_taken(method: str) -> None:
    assert chosen(Tower(), images(1, 2, 24, 24), method=method) == "fine"


class Cropped(nn.Module):
    """What a layer returns is a view, which is changed in place behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.crop, self.fc = nn.Conv2d(2, 4, 3), Crop(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        features = F.relu_(self.crop(self.conv(x))).mean((2, 3))
        return self.fc(features), features


class Crop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :-1]


@pytest.mark.parametrize("method", ["gradcam", "eigencam"])
def test_a_view_that_is_changed_in_place_leads_on(method: str) -> None:
    assert chosen(Cropped(), images(1, 2, 9, 9), method=method) == "crop"


class Reconstructs(nn.Module):
    """A loss is kept on `self`, of a decoder that runs after the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.decoder = nn.Conv2d(2, 4, 3), nn.Linear(4, 3), nn.ConvTranspose2d(4, 2, 3)
        self.loss: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        scores: Tensor = self.fc(features.mean((2, 3)))
        self.loss = (self.decoder(features) - x).pow(2).mean()
        return scores


@pytest.mark.parametrize("method", ["gradcam", "eigencam", "ablationcam"])
def test_what_runs_after_the_scores_is_left_out(method: str) -> None:
    assert chosen(Reconstructs(), images(1, 2, 9, 9), method=method) == "conv"


@pytest.mark.parametrize("method", ["gradcam", "eigencam"])
@pytest.mark.parametrize("norm", [spectral_norm, weight_norm])
def test_weights_that_are_computed_are_no_maps_and_make_a_layer_one_with_parameters(norm: Any, method: str) -> None:
    layers = [norm(nn.Conv2d(2, 4, 3, 2)), nn.ReLU(), norm(nn.Conv2d(4, 4, 3)), norm(nn.Conv2d(4, 3, 1, bias=False))]
    assert chosen(nn.Sequential(*layers), images(1, 2, 16, 16), medviz.SegmentationTarget(1), method) == "2"


class Remembers(Branches):
    """Counts the channels that were ever empty, which none is for the clean images."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("empty", torch.zeros(4))
        self.empty: Tensor

    def inside(self, first: Tensor) -> Tensor:
        second = self.second(first)
        self.empty.copy_(torch.maximum(self.empty, (second.detach().abs().amax((0, 2, 3)) < 1e-9).float()))
        return second * (1 + self.empty.sum())


def test_a_memory_that_the_clean_passes_do_not_show_is_found_behind_them() -> None:
    model, image, target = Remembers(), images(1, 2, 16, 16), medviz.SegmentationTarget(1)
    automatic = medviz.explain(model, image, "ablationcam", target, batch_size=1)
    named = medviz.explain(model, image, "ablationcam:layer=second", target, batch_size=1)
    check_close(automatic.raw, named.raw)
    assert not model.empty.any()


class AttentionPool(nn.Module):
    """A convolution whose voxels are pooled as tokens; the keys of the heads are normed, `(B, heads, N, d)`."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.keys, self.values = nn.Conv2d(1, 8, 2, stride=2), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.head = norm, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        values, keys = self.values(tokens), self.keys(tokens)
        weights = self.norm(keys.unflatten(-1, (2, 4)).transpose(1, 2)).sum(-1).softmax(-1).mean(1)
        scores: Tensor = self.head((weights[..., None] * values).sum(1))
        return scores


@pytest.mark.parametrize(
    "norm", [nn.Dropout(), nn.Identity(), nn.GroupNorm(1, 2)], ids=lambda norm: type(norm).__name__
)
def test_heads_and_tokens_are_no_grid(norm: nn.Module) -> None:
    model, image = AttentionPool(norm).eval(), images(2, 1, 12, 12)
    with pytest.raises(ValueError, match="not those of heads and tokens"):
        medviz.explain(model, image, "gradcam", 1)
    assert medviz.explain(model, image, "gradcam:layer=conv", 1).raw.shape[2:] == (6, 6)


@pytest.mark.parametrize("viewed", [True, False])
def test_what_is_made_of_a_table_alone_is_no_map(viewed: bool) -> None:
    class Biased(nn.Module):
        """As Swin V2 makes the bias of its positions."""

        def __init__(self) -> None:
            super().__init__()
            self.down, self.up, self.last = nn.Conv2d(1, 4, 4, 4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
            self.bias = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
            self.register_buffer("table", torch.rand(1, 3, 2, 2))

        def forward(self, x: Tensor) -> Tensor:
            bias = self.bias(self.table[:] if viewed else self.table).mean()
            up: Tensor = F.interpolate(self.up(self.down(x)) + bias, scale_factor=4)
            return self.last(up)

    target = medviz.SegmentationTarget(1)
    assert medviz.explain(Biased(), images(1, 1, 16, 16), "gradcam", target).provenance["layers"] == ["up"]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_what_does_not_begin_with_the_images_is_no_map(batch: int) -> None:
    class Windows(nn.Module):
        """The last layers work on windows, which stand before the images."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.inside, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            windows = torch.cat(self.conv(x).split(4, 3))
            scores: Tensor = self.head(self.inside(windows).unflatten(0, (-1, len(x))).mean((0, 3, 4)))
            return scores

    made = medviz.explain(Windows().eval(), images(batch, 1, 8, 8), "gradcam", 1)
    assert made.provenance["layers"] == ["conv"]


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_linear_layer_right_inside_puts_the_channels_last_whatever_the_image_has(channels: int) -> None:
    class Merging(nn.Module):
        """As Swin joins four tokens to one."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.reduction = nn.LayerNorm(16), nn.Linear(16, 12)

        def forward(self, x: Tensor) -> Tensor:
            joined: Tensor = self.reduction(self.norm(x.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)))
            return joined

    class Swin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.merging = nn.Conv2d(channels, 4, 2, stride=2), Merging()
            self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.norm(self.merging(self.patches(x).movedim(1, -1))).mean((1, 2)))
            return scores

    model, image = Swin(), images(1, channels, 16, 16)
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 12\), channels last; give reshape='channels_last'"):
        medviz.explain(model, image, "gradcam:layer=merging", 1)
    named = medviz.explain(model, image, "gradcam:layer=merging,reshape=channels_last", 1)
    assert named.raw.shape[2:] == (4, 4)
    with pytest.raises(ValueError, match="channels last; leave `reshape` out"):
        medviz.explain(model, image, "gradcam:layer=merging,reshape=channels_first", 1)


@pytest.mark.parametrize(
    "last", [nn.BatchNorm2d(2), nn.InstanceNorm2d(2, affine=True), nn.GroupNorm(1, 2), nn.PReLU(2)]
)
def test_logits_that_are_normed_are_not_explained_by_themselves(last: nn.Module) -> None:
    """As MONAI's HighResNet ends."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1), last, nn.ReLU())
    assert chosen(model.eval(), images(1, 1, 8, 8), medviz.SegmentationTarget(1)) == "1"
