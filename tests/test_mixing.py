"""Networks whose output for an image depends on the images beside it, or that take one at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import REAL, check_close, explain, images, seeded
from torch import Tensor, nn

import medviz


class Prepared(nn.Module):
    """A small network behind a step that looks at all that it is given."""

    def __init__(self, step: Callable[[Tensor], Tensor], nd: int = 2) -> None:
        super().__init__()
        conv, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if nd == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
        self.step = step
        self.body = nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU(), conv(4, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(pool(1), nn.Flatten(), nn.Linear(4, 3))
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(self.step(x)))
        return result


def _attending(x: Tensor) -> Tensor:
    """A mean of all images, weighted by how alike they are: attention between the images of a batch."""
    flat = x.flatten(1)
    return (F.softmax(flat @ flat.T / flat.shape[1], dim=-1) @ flat).view_as(x)


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "largest": lambda x: x / x.max(),
    "range": lambda x: (x - x.min()) / (x.max() - x.min()),
    "mean": lambda x: x - x.mean(),
    "deviation": lambda x: x / x.std(),
    "statistics of the batch": lambda x: F.batch_norm(x, None, None, training=True),
    "attention": _attending,
    "first": lambda x: x / x[0].max(),
    "order": lambda x: x.flatten(1).sort(0).values.view_as(x),
}
ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "largest of each": lambda x: x / x.amax((1, 2, 3), keepdim=True),
    "instance norm": F.instance_norm,
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "noise": lambda x: x + torch.randn_like(x),
}


def _mixes(probe: medviz.Probe) -> bool:
    probe.rows_at_once()
    return probe.found_mixed


METHODS = ["occlusion:mask_size=4,overlap=0.5", "scorecam", "rise:n_masks=20,seed=0", "smoothgrad:n_samples=6,seed=0"]


def _image(device: str = "cpu", count: int = 1) -> Tensor:
    return (images(count, 1, 16, 16).abs() + 0.1).to(device)


@pytest.mark.parametrize("device", REAL)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MIXING)
def test_copies_are_run_one_by_one_where_they_change_each_other(name: str, method: str, device: str) -> None:
    model, image = Prepared(MIXING[name]).to(device), _image(device)
    single = medviz.explain(model, image, method, 1, batch_size=1)
    check_close(medviz.explain(model, image, method, 1, batch_size=8).values, single.values, 1e-4)


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("methods", [["vanillagrad"], ["occlusion:mask_size=4"], ["gradcam", "scorecam"]], ids=str)
def test_a_batch_gives_what_single_images_give(methods: list[str], name: str) -> None:
    model, image = Prepared(MIXING[name]), _image(count=3) * torch.tensor([1.0, 3.0, 1.5]).view(3, 1, 1, 1)
    assert not torch.allclose(model(image)[2:], model(image[2:]), rtol=1e-3), "they are not mixed"
    maps = medviz.explain(model, image, methods, [2])
    assert isinstance(maps, list)
    for method, together in zip(methods, maps, strict=True):
        assert together.index == (0, 1, 2)
        for i in range(3):
            alone = medviz.explain(model, image[i : i + 1], method, 2, batch_size=1)
            check_close(together[i].values, alone.values, 1e-4)
            assert together.scores[i] == pytest.approx(alone.scores[0], rel=1e-5)


@pytest.mark.parametrize("device", REAL)
@pytest.mark.parametrize("name", ALONE)
def test_images_that_leave_each_other_alone_share_a_pass(name: str, device: str) -> None:
    with medviz.Probe(Prepared(ALONE[name]).to(device), _image(device), batch_size=8) as probe:
        assert probe.rows_at_once() == 8
        assert not probe.found_mixed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nd", [2, 3])
@pytest.mark.parametrize("name", ["largest", "nothing"])
def test_in_any_precision_and_of_volumes(name: str, nd: int, dtype: torch.dtype) -> None:
    model = Prepared((MIXING | ALONE)[name], nd).to(dtype)
    with medviz.Probe(model, images(1, 1, *(12, 10, 8)[:nd]).to(dtype)) as probe:
        assert _mixes(probe) == (name in MIXING)


@pytest.mark.parametrize("values", [(0.0, 1.0), (0.0, 1.0, 2.0, 3.0)])
def test_images_of_few_values_tell_too(values: tuple[float, ...]) -> None:
    chosen = torch.tensor(values)[torch.arange(256) % len(values)].view(1, 1, 16, 16).roll(3, -1)
    with medviz.Probe(Prepared(lambda x: 4 * x.mean() - x), chosen) as probe:
        assert _mixes(probe)
    with medviz.Probe(Prepared(ALONE["nothing"]), chosen) as probe:
        assert not _mixes(probe)


def test_only_values_of_the_image_are_tried() -> None:
    """A channel may hold labels that pick rows of a table: any other value would end a process on a GPU."""
    image = torch.cat([_image(), (torch.arange(256) % 4).float().view(1, 1, 16, 16)], 1)
    seen: list[Tensor] = []

    def step(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x[:, :1] + F.one_hot(x[:, 1].long(), 4).float().mean(-1)[:, None]

    with medviz.Probe(Prepared(step), image) as probe:
        assert not _mixes(probe)
    assert seen
    for channel in range(2):
        assert all(torch.isin(x[:, channel], image[:, channel]).all() for x in seen)


def test_an_image_of_one_value_tells_nothing() -> None:
    with medviz.Probe(Prepared(MIXING["largest"]), torch.ones(1, 1, 16, 16), batch_size=8) as probe:
        assert probe.rows_at_once() == 8


def test_it_costs_little_where_the_network_takes_smaller_images() -> None:
    model, image, sizes = Prepared(ALONE["nothing"]), images(1, 1, 127, 127), []
    model.body.register_forward_pre_hook(lambda _, given: sizes.append(given[0].numel()))
    with medviz.Probe(model, image, batch_size=8) as probe:
        for _ in range(2):
            assert probe.rows_at_once() == 8
    assert sum(sizes) == 4 * 16 * 16


class Fixed(nn.Module):
    """Takes images of 16² only."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step
        self.conv, self.linear = nn.Conv2d(1, 2, 3), nn.Linear(2 * 14 * 14, 3)
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(self.conv(self.step(x)).relu().flatten(1))
        return result


@pytest.mark.parametrize("name", [*MIXING, *ALONE])
def test_a_network_for_one_size_of_images_is_asked_with_that(name: str) -> None:
    with medviz.Probe(Fixed((MIXING | ALONE)[name]), _image()) as probe:
        assert _mixes(probe) == (name in MIXING)


class OneByOne(nn.Module):
    """Takes a single image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 2, 3, stride=2), nn.Linear(2, 3)
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).relu()
        result: Tensor = self.linear(maps.mean((2, 3)).view(1, 2))
        return result


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_takes_a_single_image_can_be_explained(method: str, caplog: Any) -> None:
    model, image = OneByOne(), _image()
    with caplog.at_level(logging.INFO, logger="medviz"):
        got = medviz.explain(model, image, method, 1)
    assert "the network takes no two images at once" in caplog.text
    check_close(got.values, medviz.explain(model, image, method, 1, batch_size=1).values)


class Table(nn.Module):
    """Makes a table of places for the first image, and adds it to all."""

    def __init__(self, kept: bool) -> None:
        super().__init__()
        self.body, self.kept = nn.Conv2d(1, 3, 3), kept
        self.table: Tensor | None = None
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or not self.kept:
            self.table = torch.linspace(0, 1, x.shape[-1], device=x.device)
        result: Tensor = self.body(x + self.table).mean((2, 3))
        return result


def test_what_a_network_keeps_of_the_smaller_images_is_taken_back() -> None:
    image = _image()
    expected = explain("occlusion", Table(kept=False), image, 1, mask_size=4, batch_size=1)
    model = Table(kept=True)
    with medviz.Probe(model, image, batch_size=8) as probe:
        assert not _mixes(probe)
        assert model.table is None
    check_close(explain("occlusion", model, image, 1, mask_size=4, batch_size=8).values, expected.values, 1e-4)
    assert model.table is None


def test_random_numbers_are_those_of_before() -> None:
    model, image = Prepared(ALONE["noise"]), _image()
    with medviz.Probe(model, image, batch_size=8) as probe:
        torch.manual_seed(3)
        assert not _mixes(probe)
        after = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(4))


def test_memory_that_does_not_suffice_for_two_says_nothing() -> None:
    def step(x: Tensor) -> Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    with medviz.Probe(Prepared(step), _image()) as probe:
        assert not _mixes(probe)


WINDOW: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "last": (lambda x: x / x[-1].max(), lambda u: u),
    "smallest of the largest": (lambda x: x / x.amax((1, 2, 3)).min(), lambda u: u),
    "sum": (lambda x: 100 * x / x.sum(), lambda u: u),
    "CT window": (lambda x: x.clamp(0, 400) / x.clamp(0, 400).mean().clamp_min(1e-6), lambda u: 2000 * u - 1000),
    "foreground": (lambda x: (x - x[x > 0].mean()) / x[x > 0].std(), lambda u: 4 * u - 2),
    "above": (lambda x: (x - 500).relu() / (x - 500).relu().max().clamp_min(1e-6), lambda u: 1000 * u),
    "deviation of a mask": (lambda x: x / x.std(), lambda u: (u > 0.7).float()),
    "largest of a mask": (lambda x: x / x.max(), lambda u: (u > 0.7).float()),
}


@pytest.mark.parametrize("name", WINDOW)
def test_whichever_row_decides_and_whatever_the_copy_is_to_the_network(name: str) -> None:
    step, made = WINDOW[name]
    image = made(torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    with medviz.Probe(Prepared(step), image) as probe:
        assert _mixes(probe)


def test_the_image_with_the_widest_range_is_asked() -> None:
    image = torch.cat([torch.ones(1, 1, 16, 16), _image()])
    with medviz.Probe(Prepared(MIXING["mean"]), image) as probe:
        assert _mixes(probe)


def test_one_large_output_hides_nothing() -> None:
    model = Prepared(MIXING["deviation"])
    model.head[2].bias.data[0] = 1e4
    with medviz.Probe(model, _image()) as probe:
        assert _mixes(probe)


def test_memory_for_one_row_is_not_spent_on_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medviz.probe.batching.free_memory", lambda device: 1000)
    rows: list[int] = []
    model = Fixed(lambda x: (rows.append(len(x)), x)[1])
    with medviz.Probe(model, _image()) as probe:
        assert probe.rows_at_once() == 1
    assert max(rows) == 1


def test_an_unmarked_argument_does_not_go_to_the_wrong_image() -> None:
    class Scaled(Prepared):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x * scale[: len(x)].view(-1, 1, 1, 1))

    image, scale = _image(count=3), torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"depends on those beside it.*mark it"):
        medviz.explain(Scaled(MIXING["mean"]), image, "vanillagrad", 1, model_args=(scale,))


def test_an_argument_with_a_row_for_each_image_keeps_them_together() -> None:
    class Scaled(Prepared):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x * scale[: len(x)].view(-1, 1, 1, 1))

    model, image, scale = Scaled(ALONE["nothing"]), _image(count=2), torch.tensor([1.0, -5.0])
    got = medviz.explain(model, image, "vanillagrad", 1, model_args=(scale,))
    expected = medviz.explain(model, image, "vanillagrad", 1, model_args=(medviz.per_image(scale),))
    check_close(got.values, expected.values)
    assert got.scores == pytest.approx(expected.scores)
