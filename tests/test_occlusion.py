"""Occlusion against its definition written out: window by window, voxel by voxel."""

from __future__ import annotations

import itertools
import logging
import re
import sys
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ASKED, DEVICES, Classifier, UNet, check_close, explain, images
from torch import Tensor, nn

import medviz

SEVEN = ["gaussian", "constant", "mean_img", "mean_patch", "blur", "noise", "shuffle"]
SIZES = {2: (11, 8), 3: (7, 5, 6)}
MASKS = {2: (4, 3), 3: (3, 2, 4)}


def starts(extent: int, size: int, overlap: float) -> list[int]:
    step, places = max(1, int(size * (1 - overlap) + 1e-6)), [0]
    while places[-1] + size < extent:
        places.append(min(places[-1] + step, extent - size))
    return places


@torch.no_grad()
def by_hand(
    model: nn.Module, image: Tensor, score: Any, size: Sequence[int], overlap: float, occluder: Any, channel: Any = None
) -> Tensor:
    """The map `(*S)` of one image (C, *S): at each voxel the weighted mean, over the windows there, of the fall."""
    weight = occluder.weight(tuple(size)).double()
    total = torch.zeros(image.shape[1:], dtype=torch.float64)
    weights = torch.zeros_like(total)
    for corner in itertools.product(*(starts(e, s, overlap) for e, s in zip(image.shape[1:], size, strict=True))):
        box = tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
        patch = occluder(image[(slice(None), *box)][None], image, torch.tensor([corner]))[0]
        changed = image.clone()
        for k in range(len(image)) if channel is None else [channel]:
            changed[(k, *box)] = patch[k]
        fall = (score(model(image[None])) - score(model(changed[None]))).double()[0]
        total[box] += fall * weight.clamp(min=1e-3 * float(weight.max()))
        weights[box] += weight.clamp(min=1e-3 * float(weight.max()))
    return total / weights


@pytest.mark.parametrize("name", SEVEN)
@pytest.mark.parametrize("ndim", SIZES)
def test_the_definition_written_out(ndim: int, name: str) -> None:
    model, image = Classifier(ndim).double(), images(2, 2, *SIZES[ndim], dtype=torch.float64)
    occluder = medviz.get_occluder(f"medviz-xai/{name}")
    for overlap in (0.0, 0.3, 0.6):
        got = explain("occlusion", model, image, torch.tensor([2, 0]), mask_size=MASKS[ndim], overlap=overlap,
                      occluder=occluder)  # fmt: skip
        assert got.signed
        assert got.values.shape == (2, 1, *SIZES[ndim])
        for i, c in enumerate((2, 0)):
            score = lambda out, c=c: out[:, c]  # noqa: E731
            expected = by_hand(model, image[i], score, MASKS[ndim], overlap, occluder)
            check_close(got.values[i, 0], expected, 1e-9)


@pytest.mark.parametrize("ndim", SIZES)
def test_one_channel_at_a_time(ndim: int) -> None:
    model, image = Classifier(ndim).double(), images(1, 2, *SIZES[ndim], dtype=torch.float64)
    occluder = medviz.get_occluder("medviz-xai/mean_img")
    got = explain("occlusion", model, image, 1, mask_size=MASKS[ndim], occluder=occluder, per_channel=True).values
    assert got.shape == image.shape
    for channel in range(2):
        score = lambda out: out[:, 1]  # noqa: E731
        check_close(got[0, channel], by_hand(model, image[0], score, MASKS[ndim], 0.6, occluder, channel), 1e-9)


class Reads(nn.Module):
    """Two logits, of the sum over one corner of one channel and of its negative."""

    def __init__(self, channel: int, *corner: slice) -> None:
        super().__init__()
        self.where = (slice(None), channel, *corner)

    def forward(self, x: Tensor) -> Tensor:
        read = x[self.where].flatten(1).sum(1, keepdim=True)
        return torch.cat([read, -read], 1)


def test_a_network_that_reads_one_channel() -> None:
    image = images(2, 3, 9, 8).abs() + 1
    values = explain("occlusion", Reads(1, slice(9), slice(8)), image, 0, mask_size=3, per_channel=True).values
    assert not values[:, 0].any()
    assert not values[:, 2].any()
    assert (values[:, 1] > 0).all()


@pytest.mark.parametrize("ndim", SIZES)
def test_high_means_important_and_the_mass_lies_where_the_network_looks(ndim: int) -> None:
    corner = (slice(0, 4),) * ndim
    model, image = Reads(0, *corner), images(2, 1, *(13, 12, 11)[:ndim]).abs() + 1
    for c, sign in ((0, 1), (1, -1)):
        values = sign * explain("occlusion", model, image, c, mask_size=3, occluder="constant").values
        assert (values >= 0).all()
        assert (values[(..., *corner)] > 0).all()
        assert (values[(..., *corner)].sum() / values.sum()) > 0.7
        assert not values[(..., *[slice(6, None)] * ndim)].any()


def test_a_mask_that_is_larger_than_the_image(caplog: pytest.LogCaptureFixture) -> None:
    """One window that hides all: the map is one value, the fall of the score."""
    model, image = Classifier(2), images(1, 2, 7, 6)
    with caplog.at_level(logging.INFO, logger="medviz"):
        values = explain("occlusion", model, image, 1, mask_size=50, occluder="constant").values
    assert "cut to (7, 6)" in caplog.text
    assert caplog.text.count("cut to") == 1
    assert "occlusion needs 1 forward passes of one image" in caplog.text
    fall = (model(image) - model(torch.zeros_like(image)))[0, 1].detach()
    check_close(values, fall.expand_as(values))


def test_a_region_is_mapped_as_in_the_whole_map_and_is_zero_elsewhere() -> None:
    model, image = Classifier(2), images(2, 2, 15, 12)
    whole = explain("occlusion", model, image, 1, mask_size=5, overlap=0.8).values  # a step of one voxel
    for region in ([(4, 12), (0, 8)], [(0, 15), (0, 12)], [(0, 15), (3, 9)], [(14, 15), (11, 12)]):
        part = explain("occlusion", model, image, 1, mask_size=5, overlap=0.8, region=region).values
        inside = (..., *(slice(first, end) for first, end in region))
        deep = (  # half a window inside: there, all the windows over a voxel have their middle in the region
            ...,
            *(
                slice(first + 2 * (first > 0), end - 2 * (end < size))
                for (first, end), size in zip(region, (15, 12), strict=True)
            ),
        )
        if part[deep].numel():
            check_close(part[deep], whole[deep])
        assert part[inside].all()
        part[inside] = 0
        assert not part.any()


CALLS: list[int] = []


class Counting(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(len(x))
        return super().forward(x)


class CountingUNet(UNet):
    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("region", [None, [(2, 5), (0, 4)]])
def test_the_forecast_is_what_is_run_and_the_batch_size_is_kept(per_channel: bool, region: Any) -> None:
    image = images(2, 2, 11, 8)
    explainer: Any = medviz.get_explainer("medviz-xai/occlusion", mask_size=3, per_channel=per_channel, region=region)
    CALLS.clear()
    explainer(Counting(2), image[:1], 0, batch_size=7)
    assert CALLS[0] == 1  # the clean image
    assert sum(CALLS[1:]) - ASKED == explainer.passes((1, 2, 11, 8))
    assert max(CALLS) <= 7
    assert explainer.passes((5, 2, 11, 8)) == 5 * (sum(CALLS[1:]) - ASKED)
    CALLS.clear()
    explainer(Counting(2), image, 0, batch_size=2)
    assert sum(CALLS) == 2 + explainer.passes((2, 2, 11, 8)) + ASKED


def test_more_targets_cost_no_further_passes() -> None:
    model, image = Counting(2), images(2, 2, 11, 8)
    explainer = medviz.get_explainer("medviz-xai/occlusion", mask_size=4)
    counts, maps = [], []
    for targets in ([1], [0, 1, None, 3]):
        CALLS.clear()
        maps.append(medviz.explain(model, image, explainer, targets, batch_size=5))
        counts.append(sum(CALLS))
    assert counts[0] == counts[1]
    assert torch.equal(maps[0][0].values, maps[1][1].values)  # type: ignore[index]
    assert not torch.equal(maps[1][0].values, maps[1][3].values)  # type: ignore[index]


@pytest.mark.parametrize("ndim", SIZES)
def test_segmentation_outputs(ndim: int) -> None:
    model, image = CountingUNet(ndim).double(), images(2, 1, *SIZES[ndim], dtype=torch.float64)
    occluder = medviz.get_occluder("medviz-xai/mean_patch")
    got = explain("occlusion", model, image, medviz.SegmentationTarget(1), mask_size=MASKS[ndim], occluder=occluder)
    score = lambda out: out[:, 1].flatten(1).mean(1)  # noqa: E731
    for i in range(2):
        check_close(got.values[i, 0], by_hand(model, image[i], score, MASKS[ndim], 0.6, occluder), 1e-9)


@pytest.mark.parametrize("ndim", SIZES)
def test_the_scores_of_all_classes_agree_with_the_maps(ndim: int) -> None:
    model, image = Classifier(ndim), images(2, 2, *SIZES[ndim])
    region = [(1, s - 1) for s in SIZES[ndim]]
    explainer: Any = medviz.get_explainer("medviz-xai/occlusion", mask_size=3, region=region)
    with medviz.Probe(model, image) as probe:
        scores, clean = explainer.scores(probe), probe.output
        probabilities = explainer.scores(probe, lambda out: out.softmax(1))
    assert scores.shape == (2, 4, *SIZES[ndim])
    inside = (..., *(slice(1, s - 1) for s in SIZES[ndim]))
    for c in range(4):
        values = explainer(model, image, c).values
        expected = clean[:, c].view(-1, 1, *[1] * ndim) - scores[:, c : c + 1]
        check_close(values[inside], expected[inside])
    assert scores[inside].isfinite().all()
    assert scores.isnan().sum() == scores.numel() - scores[inside].numel()
    assert torch.allclose(probabilities[inside].sum(1), torch.ones(()))


def test_scores_say_what_they_cannot_do() -> None:
    explainer: Any = medviz.get_explainer("medviz-xai/occlusion", mask_size=3)
    with medviz.Probe(UNet(2), images(1, 1, 8, 8)) as probe, pytest.raises(ValueError, match=r"output \(B, N\)"):
        explainer.scores(probe)
    with medviz.Probe(Classifier(2), images(1, 2, 8, 8)) as probe, pytest.raises(ValueError, match="all channels"):
        attrs.evolve(explainer, per_channel=True).scores(probe)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_places_are_exact_in_wide_half_precision_images(dtype: torch.dtype) -> None:
    """bfloat16 counts to 256: the network reads one voxel beyond that, and only windows over it matter."""
    for column in (255, 257, 399, 599):
        model = Reads(0, slice(0, 2), slice(column, column + 1)).to(dtype)
        image = torch.ones(1, 1, 2, 600, dtype=dtype)
        values = explain("occlusion", model, image, 0, mask_size=(2, 3), overlap=0, occluder="constant").values
        assert values.nonzero()[:, 3].unique().tolist() == [c for c in range(600) if c // 3 == column // 3]
        assert (values[..., column] == 2).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SEVEN)
def test_half_precision_networks(name: str, dtype: torch.dtype, device: str) -> None:
    image = images(1, 2, 9, 8).to(dtype)
    full = explain("occlusion", Classifier(2), image.float(), 1, mask_size=4, occluder=name).values
    half = explain("occlusion", Classifier(2).to(device, dtype), image.to(device), 1, mask_size=4, occluder=name)
    assert half.values.dtype == torch.float32
    assert torch.corrcoef(torch.stack([half.values.flatten(), full.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("name", SEVEN)
@settings(derandomize=True, deadline=None, max_examples=10)
@given(
    size=st.lists(st.integers(3, 9), min_size=2, max_size=3),
    mask=st.integers(1, 10),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    batch=st.integers(1, 3),
    per_channel=st.booleans(),
)
def test_a_batch_equals_single_images_and_no_batch_size_matters(
    name: str, size: list[int], mask: int, overlap: float, batch: int, per_channel: bool
) -> None:
    parameters: dict[str, Any] = {"mask_size": max(mask, 2), "overlap": overlap, "occluder": name}
    parameters["per_channel"] = per_channel
    model = Classifier(len(size), 2, width=3).double()
    image = images(batch, 2, *size, dtype=torch.float64)
    classes = torch.arange(batch) % 4
    together = explain("occlusion", model, image, classes, **parameters).values
    for batch_size in (1, 2, 5):
        values = explain("occlusion", model, image, classes, batch_size=batch_size, **parameters).values
        assert torch.allclose(values, together, rtol=0, atol=1e-12)
    last = explain("occlusion", model, image[-1:], int(classes[-1]), **parameters).values
    assert torch.allclose(together[-1:], last, rtol=0, atol=1e-12)


def test_a_constant_network_has_a_map_of_zeros() -> None:
    for dtype in (torch.float32, torch.float64):
        model = Classifier(2).to(dtype)
        nn.init.zeros_(model.fc.weight)
        nn.init.constant_(model.fc.bias, 1 / 3)
        for method, few in (("occlusion", {"mask_size": 3}), ("rise", {"n_masks": 13, "seed": 0})):
            assert not explain(method, model, images(2, 2, 8, 7, dtype=dtype), 1, **few).values.any()


def zero(patches: Tensor, image: Tensor, corners: Tensor) -> Tensor:
    return torch.zeros_like(patches)


def spoil(patches: Tensor, image: Tensor, corners: Tensor) -> Tensor:
    """Works in place on everything that it is given."""
    image.fill_(99)
    return patches.zero_()


def double(patches: Tensor, image: Tensor, corners: Tensor) -> Tensor:
    """Works in another precision."""
    return torch.zeros_like(patches).double()


@pytest.mark.parametrize("function", [zero, spoil, double])
def test_a_plain_function_is_an_occluder(function: Any) -> None:
    model, image = Classifier(2), images(2, 2, 9, 8)
    kept = image.clone()
    expected = explain("occlusion", model, image, 1, mask_size=4, occluder="constant").values
    got = explain("occlusion", model, image, 1, mask_size=4, occluder=function, batch_size=2)
    check_close(got.values, expected)
    assert torch.equal(image, kept)
    assert got.provenance["parameters"]["occluder"] == {"function": function.__name__}


BROKEN: dict[str, Any] = {
    "a wrong shape": lambda patches, image, corners: patches[:, :1],
    "no tensor": lambda patches, image, corners: 3,
    "nothing": lambda patches, image, corners: None,
    "infinite": lambda patches, image, corners: patches / 0,
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_occluder_that_returns_the_wrong_thing(case: str) -> None:
    with pytest.raises(medviz.PluginError, match=r"occlude returned .*; expected a finite tensor \(\d+, 2, 4, 4\)"):
        explain("occlusion", Classifier(2), images(1, 2, 9, 8), 1, mask_size=4, occluder=BROKEN[case])


def test_an_error_in_a_function_comes_out_as_it_is() -> None:
    def fails(patches: Tensor, image: Tensor, corners: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        explain("occlusion", Classifier(2), images(1, 2, 9, 8), 1, mask_size=4, occluder=fails)


@attrs.frozen(eq=False)
class Weights(medviz.Occluder):
    weights: Any = None

    @medviz.hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        return torch.zeros_like(patches)

    @medviz.hookimpl
    def blend_weight(self, mask_size: tuple[int, ...]) -> Any:
        return self.weights(mask_size)


@pytest.mark.parametrize("weights", [torch.zeros, lambda size: -torch.ones(size), lambda size: torch.ones(3), "no"])
def test_wrong_weights(weights: Any) -> None:
    occluder = Weights((lambda size: weights) if weights == "no" else weights)
    with pytest.raises(medviz.PluginError, match=r"blend_weight returned .*; expected a finite tensor \(4, 4\), ≥ 0"):
        explain("occlusion", Classifier(2), images(1, 2, 9, 8), 1, mask_size=4, occluder=occluder)


def test_weights_of_none_are_ones() -> None:
    model, image = Classifier(2), images(1, 2, 9, 8)
    expected = explain("occlusion", model, image, 1, mask_size=4, occluder="constant").values
    got = explain("occlusion", model, image, 1, mask_size=4, occluder=Weights(lambda size: None)).values
    assert torch.equal(got, expected)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"mask_size": 0}, "`mask_size` is a positive number of voxels, or one for each axis; got 0"),
    ({"mask_size": (4, 0)}, "`mask_size` is a positive number of voxels"),
    ({"mask_size": 2.5}, "`mask_size` is a positive number of voxels"),
    ({"mask_size": ()}, "`mask_size` is a positive number of voxels"),
    ({"mask_size": True}, "`mask_size` is a positive number of voxels"),
    ({"overlap": 1.0}, "`overlap` is a finite number ≥ 0 and < 1; got 1.0"),
    ({"overlap": -0.1}, "`overlap` is a finite number ≥ 0 and < 1; got -0.1"),
    ({"overlap": "half"}, "`overlap` is a finite number ≥ 0 and < 1; got 'half'"),
    ({"region": [(3, 3), (0, 4)]}, "`region` is [(first, after the last), …] in voxels for each axis"),
    ({"region": [(-1, 3), (0, 4)]}, "`region` is [(first, after the last), …]"),
    ({"region": [0, 4, 0, 4]}, "`region` is [(first, after the last), …]"),
    ({"region": [(0.5, 4), (0, 4)]}, "`region` is [(first, after the last), …]"),
    ({"region": []}, "`region` is [(first, after the last), …]"),
    ({"per_channel": "yes"}, "per_channel"),
]


@pytest.mark.parametrize(("parameters", "message"), WRONG)
def test_wrong_parameters_say_what_is_wrong(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(medviz.PluginError, match=re.escape(message)):
        medviz.get_explainer("medviz-xai/occlusion", **parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mask_size": (3, 3, 3)}, "`mask_size` (3, 3, 3) and `region` ((0, 9), (0, 8)) must fit the image's 2 axes"),
        ({"region": [(0, 9)]}, "must fit the image's 2 axes"),
        ({"region": [(0, 10), (0, 8)]}, "`region` ((0, 10), (0, 8)) leaves the image, whose size is (9, 8)"),
    ],
)
def test_what_does_not_fit_the_image(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        explain("occlusion", Classifier(2), images(1, 2, 9, 8), 1, **parameters)


def test_an_unknown_occluder_lists_what_there_is() -> None:
    with pytest.raises(medviz.PluginError, match="gaussian"):
        medviz.get_explainer("medviz-xai/occlusion", occluder="gausian")


def test_a_plugin_string_configures_the_occluder() -> None:
    model, image = Classifier(2), images(1, 2, 9, 8)
    got = medviz.explain(model, image, "medviz-xai/occlusion:mask_size=[4,3],occluder=constant(value=2.5)", 1)
    expected = explain(
        "occlusion", model, image, 1, mask_size=(4, 3), occluder=medviz.get_occluder("constant", value=2.5)
    )
    assert torch.equal(got.values, expected.values)  # type: ignore[union-attr]


SEEN: list[str] = []


@attrs.frozen(eq=False)
class Watch(medviz.Wrapper):
    @medviz.hookimpl(wrapper=True)
    def explain(self) -> Any:
        SEEN.append("explain")
        return (yield)

    @medviz.hookimpl(wrapper=True)
    def occlude(self, patches: Tensor) -> Any:
        SEEN.append("occlude")
        return (yield) * 0

    @medviz.hookimpl(wrapper=True)
    def blend_weight(self) -> Any:
        SEEN.append("blend_weight")
        return (yield)


def test_wrappers() -> None:
    SEEN.clear()
    model, image = Classifier(2), images(1, 2, 9, 8)
    explainer, zeros = (
        medviz.get_explainer("medviz-xai/occlusion", mask_size=4, occluder=hidden)
        for hidden in ("mean_img", "constant(value=0.0)")
    )
    got = explainer(model, image, 1, wrappers=[Watch()])
    assert SEEN[:3] == ["explain", "blend_weight", "occlude"]
    assert set(SEEN[3:]) <= {"occlude"}
    assert torch.equal(got.values, zeros(model, image, 1).values)  # type: ignore[union-attr]
    SEEN.clear()
    occluder = medviz.get_occluder("medviz-xai/constant", value=3)
    patches, corners = image[0][None, :, :4, :4], torch.zeros(1, 2, dtype=torch.long)
    assert not occluder(patches, image[0], corners, wrappers=[Watch()]).any()
    assert torch.equal(occluder.weight((4, 4), wrappers=[Watch()]), torch.ones(4, 4))
    assert SEEN == ["occlude", "blend_weight"]


class Tty:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["occlusion:mask_size=3", "rise:n_masks=9", "smoothgrad", "integratedgradients"])
@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("progress", [False, True])
def test_the_progress_bar_is_off_unless_asked_for_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, progress: bool, tty: bool, name: str
) -> None:
    stream = Tty()
    monkeypatch.setattr(stream, "isatty", lambda: tty)
    monkeypatch.setattr(sys, "stderr", stream)
    medviz.explain(Classifier(2), images(1, 2, 9, 8), name, 1, progress=progress, batch_size=4)
    assert bool(stream.text) is (progress and tty)
    assert ("row" in stream.text) is (progress and tty)


def test_the_occluder_is_asked_as_often_for_any_batch_size() -> None:
    asked: list[int] = []

    def count(patches: Tensor, image: Tensor, corners: Tensor) -> Tensor:
        asked.append(len(patches))
        assert patches[0, 0].numel() * len(patches) <= image[0].numel()
        return torch.zeros_like(patches)

    calls = []
    for batch_size in (1, 3, 64):
        asked.clear()
        explain("occlusion", Classifier(2), images(1, 2, 16, 16), 1, mask_size=4, occluder=count, batch_size=batch_size)
        calls.append(list(asked))
    assert calls[0] == calls[1] == calls[2]
    assert len(calls[0]) == -(-sum(calls[0]) // 16)
