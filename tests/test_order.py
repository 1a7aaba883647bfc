"""Passes with the channels last in memory: the same maps, and the usual order where a network needs it."""

from __future__ import annotations

import gc
import logging
import random
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import check_close, explain, images, seeded
from torch import Tensor, nn

import medviz
from medviz.probe import order, watch
from medviz.probe.order import usual_order

EDGE = {2: 128, 3: 32}  # of the smallest images, about, that are worth a question
PASSES: list[tuple[bool, int]] = []  # of each pass: whether channels came last, and the edge of the image


@pytest.fixture(autouse=True)
def passes() -> None:
    PASSES.clear()


def _is_last(maps: Tensor) -> bool:
    with torch._C.DisableTorchFunction():  # to ask for it is what a network must not do
        return order.order(maps) != torch.contiguous_format


def _whole() -> list[bool]:
    """Return of each pass over images that were not made smaller whether channels came last."""
    return [last for last, edge in PASSES if edge in EDGE.values()]


class Net(nn.Module):
    """A small network that notes in which order it is given its images.

    Args:
        nd: spatial axes.
        middle: what it does to its maps `(B, 8, *s)`.
        channels: of its images.
    """

    def __init__(self, nd: int = 2, middle: Callable[[Tensor], Tensor] | None = None, channels: int = 2) -> None:
        super().__init__()
        conv, norm, pool, mean = {
            2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d),
            3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, nn.AdaptiveAvgPool3d),
        }[nd]
        self.first = nn.Sequential(conv(channels, 8, 5, padding=2, stride=2), norm(8), nn.ReLU(), pool(2))
        self.middle = middle or nn.Identity()
        self.last = nn.Sequential(conv(8, 6, 3, padding=1), norm(6), nn.ReLU())
        self.head = nn.Sequential(mean(1), nn.Flatten(), nn.Linear(6, 3))
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        PASSES.append((_is_last(x), x.shape[-1]))
        result: Tensor = self.head(self.last(self.middle(self.first(x))))
        return result


def _image(nd: int = 2, count: int = 1) -> Tensor:
    return images(count, 2, *[EDGE[nd]] * nd)


@pytest.fixture
def usually(monkeypatch: pytest.MonkeyPatch) -> Callable[..., medviz.Attribution]:
    """Explain in the usual order."""

    def explained(*args: object, **kwargs: object) -> medviz.Attribution:
        with monkeypatch.context() as patch:
            patch.setattr(order, "_LEAST", 10**9)
            return explain(*args, **kwargs)  # type: ignore[arg-type]

    return explained


METHODS: list[tuple[str, dict[str, object]]] = [
    ("gradcam", {}),
    ("gradcam", {"layer": "first.0"}),
    ("gradcam", {"layer": "first"}),
    ("hirescam", {"layer": "middle"}),
    ("gradcampp", {"layer": "last.0"}),
    ("eigencam", {"layer": "first"}),
    ("cam", {"layer": "last"}),
    ("scorecam", {}),
    ("rise", {"n_masks": 20, "seed": 0}),
    ("occlusion", {"mask_size": 16, "overlap": 0.0}),
    ("vanillagrad", {}),
    ("smoothgrad", {"n_samples": 4, "seed": 0}),
]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("nd", [2, 3])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_maps_are_the_same(
    method: tuple[str, dict[str, object]], nd: int, count: int, usually: Callable[..., medviz.Attribution]
) -> None:
    name, parameters = method
    model, image = Net(nd, nn.LeakyReLU(0.3)), _image(nd, count)
    got = explain(name, model, image, 1, **parameters)
    assert any(_whole()), "no pass had channels last"
    PASSES.clear()
    expected = usually(name, model, image, 1, **parameters)
    assert not any(_whole())
    # a perturbed copy's score differs little from that of the image, and rounding is a part of the score
    check_close(got.values, expected.values, 1e-4 if name in ("scorecam", "rise", "occlusion") else 1e-5)
    assert got.values.is_contiguous()
    assert got.scores == pytest.approx(expected.scores, rel=1e-5)


@pytest.mark.parametrize("nd", [2, 3])
def test_perturbed_copies_have_channels_last_and_gradients_of_images_have_not(nd: int) -> None:
    with medviz.Probe(Net(nd), _image(nd), batch_size=4) as probe:
        assert probe.output.is_contiguous()
        PASSES.clear()
        probe.forward(_image(nd, 8), torch.zeros(8, dtype=torch.long))
        assert _whole() == [True, True]
        PASSES.clear()
        probe.input_gradient(1)
        assert _whole() == [False]


def test_each_call_makes_one_pass_and_leaves_nothing_behind() -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            self.largest = x
            return super().forward(x)

    model, image = Counting().train(), _image()
    kept, state = image.clone(), torch.get_rng_state()
    for _ in range(3):
        explain("gradcam", model, image)
    assert PASSES == [(True, 128)] * 3
    assert model.count == 0
    assert not hasattr(model, "largest")
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(image, kept)
    assert image.is_contiguous()


def _as_if_contiguous(x: Tensor) -> Tensor:
    """Every map's neighbour to the right, by steps in memory."""
    rows, columns = x.shape[2:]
    return x.as_strided(x.shape, (x.shape[1] * rows * columns, rows * columns, columns, 1))


def _view(x: Tensor) -> Tensor:
    return (x.view(len(x), -1) - 0.1).view(x.shape)


def _view_of_large(x: Tensor) -> Tensor:
    return _view(x) if x.shape[-1] > 16 else x - 0.1


def _groups(x: Tensor) -> Tensor:
    """Attention by group, as some networks have it where their maps are small: a single cell can be seen as any."""
    small = F.avg_pool2d(x, 4)
    means = small.view(len(x), 2, -1).softmax(-1).view(small.shape)
    return x * F.interpolate(means, size=x.shape[2:])


def _noise(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def _stored(x: Tensor) -> Tensor:
    """Weights by where numbers lie."""
    flat = torch.empty(0).set_(x.untyped_storage())[: x.numel()]
    return x + flat.cumsum(0).view(x.shape) / x.numel()


def _view_of_several(x: Tensor) -> Tensor:
    return _view_of_large(x) if len(x) > 1 else x - 0.1


def _written_copy(x: Tensor) -> Tensor:
    """A copy, but of maps with channels last, of which this is a view."""
    y = x.permute(0, 2, 3, 1).contiguous()
    y.mul_(0.5)
    y.add_(0.3)
    return x + 2 * y.permute(0, 3, 1, 2)


def _written_reshaped(x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])
    y += 0.1
    return x + y.mean()


def _written_view(x: Tensor) -> Tensor:
    """A view, but of maps with channels last, of which this is a copy."""
    x.flatten(1).clamp_(max=0.05)
    return x


def _written_source(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    F.hardtanh(x, 0.0, 0.2, True)
    return x + flat.mean()


def _written_after_a_view(x: Tensor) -> Tensor:
    x.flatten(1)[:, :100] = 0.5
    return x


def _grouped(x: Tensor) -> Tensor:
    """PyTorch's kernel is less precise for channels last."""
    return F.group_norm(x + 1, 4)


def _normed(x: Tensor) -> Tensor:
    return F.batch_norm(x + 1, None, None, training=True)


def _caught(x: Tensor) -> Tensor:
    try:
        return _as_if_contiguous(x)
    except BaseException:
        return x * 0.5


PARTICULAR: dict[str, Callable[[Tensor], Tensor]] = {
    "a copy that is written": _written_copy,
    "a reshaped copy that is written": _written_reshaped,
    "a view that is written": _written_view,
    "a part of a view that is written": _written_after_a_view,
    "what a view is of is written": _written_source,
    "group norm": _grouped,
    "statistics of the images": _normed,
    "what catches everything": _caught,
    "as_strided": _as_if_contiguous,
    "view": _view,
    "view where maps are large": _view_of_large,
    "view of more than one cell": _groups,
    "storage": _stored,
}


@pytest.mark.parametrize(
    "method", ["gradcam:layer=last", "scorecam", "occlusion:mask_size=32,overlap=0", "vanillagrad"]
)
@pytest.mark.parametrize("name", PARTICULAR)
def test_a_network_that_counts_on_the_usual_order_gets_it(
    name: str, method: str, usually: Callable[..., medviz.Attribution], caplog: pytest.LogCaptureFixture
) -> None:
    model, image = Net(middle=PARTICULAR[name]), _image(count=2)
    kind, _, rest = method.partition(":")
    parameters = dict(part.split("=") for part in rest.split(",") if part)
    numbers = {key: int(value) if value.isdigit() else value for key, value in parameters.items()}
    expected = usually(kind, model, image, 1, **numbers)
    for _ in range(2):
        with caplog.at_level(logging.INFO, "medviz"):
            PASSES.clear()
            caplog.clear()
            assert torch.equal(explain(kind, model, image, 1, **numbers).values, expected.values)
    assert not any(_whole()), "the second time it is known"
    assert "order in memory" not in caplog.text


@pytest.mark.parametrize("name", ["rise", "scorecam"])
def test_where_a_pass_of_perturbed_copies_fails_it_is_made_again(
    name: str, usually: Callable[..., medviz.Attribution]
) -> None:
    model, image = Net(middle=_view_of_several), _image()
    parameters = {"n_masks": 20, "seed": 0} if name == "rise" else {}
    got = explain(name, model, image, 1, **parameters)
    assert _whole()[0]
    assert not _whole()[-1]
    check_close(got.values, usually(name, model, image, 1, **parameters).values, 1e-4)


def test_a_volume_alone_says_nothing_of_several(usually: Callable[..., medviz.Attribution]) -> None:
    """PyTorch runs some convolutions of a single volume in a way of its own, which returns the usual order."""

    class Thin(Net):
        def __init__(self) -> None:
            super().__init__(3, _volumes_as_if_contiguous)
            self.first = nn.Sequential(nn.Conv3d(2, 8, 3, padding=1), nn.ReLU())

    seeded(model := Thin())
    got = explain("gradcam", model, _image(3, 2), 1)
    check_close(got.values, usually("gradcam", model, _image(3, 2), 1).values)


def _volumes_as_if_contiguous(x: Tensor) -> Tensor:
    return x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride())


@pytest.mark.parametrize("step", [_noise, lambda x: F.dropout(x, 0.5, True)], ids=["noise", "dropout"])
def test_a_random_network_keeps_the_usual_order(step: Callable[[Tensor], Tensor]) -> None:
    """Its draws would fall on other voxels."""

    def seeded_step(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return step(x)

    model = Net(middle=seeded_step)
    got = explain("gradcam", model, _image(), layer="last")
    assert _whole() == [True, False]
    assert torch.equal(explain("gradcam", model, _image(), layer="last").values, got.values)
    assert _whole() == [True, False, False]


@pytest.mark.parametrize("cut", ["first", "middle", "last", None])
def test_where_a_pass_fails_layers_are_watched_anew(
    cut: str | None, usually: Callable[..., medviz.Attribution]
) -> None:
    model, image = Net(middle=_view_of_large), _image()
    parameters = {} if cut is None else {"layer": "first.0" if cut == "middle" else cut}
    got = explain("gradcam", model, image, 1, **parameters)
    # the graph begins, and the usual order with it, before the view or after; of itself at the first layers of the tail
    assert _whole() == ([True, False] if cut == "last" else [True])
    check_close(got.values, usually("gradcam", model, image, 1, **parameters).values)


def test_what_fails_in_both_orders_is_the_users_error() -> None:
    def broken(x: Tensor) -> Tensor:
        if x.shape[-1] > 16:
            raise ValueError("this network takes no such image")
        return x

    model, image = Net(middle=broken), _image()
    for _ in range(2):
        PASSES.clear()
        with pytest.raises(ValueError, match="this network takes no such image"):
            explain("gradcam", model, image)
        assert _whole() == [True, False]
    model.middle = nn.Identity()
    explain("gradcam", model, image)
    assert _whole()[-1], "an error of another kind says nothing of the order"


def test_after_an_error_of_the_network_a_probe_goes_on_as_before() -> None:
    with medviz.Probe(model := Net(), _image()) as probe:
        assert probe.output.isfinite().all()
        model.middle = Broken()
        with pytest.raises(ValueError, match="not today"):
            probe.forward(_image())
        model.middle = nn.Identity()
        probe.forward(_image())
    assert _whole() == [True, True, False, True]


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not today")


def test_the_pass_that_lists_layers_is_made_again_too() -> None:
    with medviz.Probe(Net(middle=_view_of_large), _image()) as probe:
        assert [layer.name for layer in probe.layers()][-1] == "head.2"
    assert _whole() == [True, False, False]


def test_the_question_is_not_remembered_by_the_network() -> None:
    class Remembering(Net):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) + self.calls

    with medviz.Probe(model := Remembering(), _image()) as probe:
        assert torch.equal(probe.forward(_image()), probe.output)
        first = probe.output
    assert model.calls == 0
    with torch.no_grad():
        check_close(first, model.eval()(_image()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own parts
def test_what_is_compiled_has_the_usual_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    explain("rise", Net(), _image(), 1, n_masks=16, seed=0, batch_size=4, compiled=True)
    assert _whole()[0], "the clean pass is not compiled"
    assert not any(_whole()[1:])


def test_memory_that_does_not_suffice_says_nothing_of_the_order() -> None:
    def greedy(x: Tensor) -> Tensor:
        if len(x) > 1 and x.shape[-1] > 16:
            raise torch.OutOfMemoryError("not enough memory")
        return x

    model, image = Net(middle=greedy), _image()
    with medviz.Probe(model, image, batch_size=4) as probe:
        PASSES.clear()
        probe.forward(_image(count=2), torch.zeros(2, dtype=torch.long))
    assert _whole() == [True, True, True]


@pytest.mark.parametrize(
    "model",
    [
        Net(middle=nn.GroupNorm(2, 8)),
        Net(middle=nn.InstanceNorm2d(8)),
        Net().double(),
        Net().bfloat16(),
        nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(2 * 16 * 16, 3)),
    ],
    ids=["group norm", "instance norm", "double", "bfloat16", "no convolution"],
)
def test_others_are_not_asked(model: nn.Module) -> None:
    image = _image().to(next(model.parameters()))
    for _ in range(2):
        calls: list[bool] = []
        handle = model.register_forward_pre_hook(lambda _, given, calls=calls: calls.append(_is_last(given[0])))
        explain("gradcam", model, image, layer="0" if isinstance(model, nn.Sequential) else None)
        handle.remove()
        assert calls == [False]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
def test_what_is_scripted_cannot_be_watched() -> None:
    model = Net(middle=torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())))
    explain("gradcam", model, _image(), 1, layer="last")
    assert _whole() == [False]


def test_under_autocast_and_for_small_images_nothing_is_asked() -> None:
    model = Net()
    with torch.autocast("cpu"):
        explain("gradcam", model, _image())
    explain("gradcam", model, _image()[..., :64, :64])
    assert [last for last, _ in PASSES] == [False, False]


class _Scaled(nn.Parameter):
    """A weight of a kind of its own, which may do anything."""


def test_what_the_watch_is_not_told_of_has_the_usual_order() -> None:
    model, image = Net(), _image()
    with torch._C.DisableTorchFunction():
        explain("gradcam", model, image, layer="last")
    model.last[0].weight = _Scaled(model.last[0].weight.detach())
    explain("gradcam", model, image, layer="last")
    assert _whole() == [False, False]


def test_a_second_pass_draws_what_the_first_one_drew(usually: Callable[..., medviz.Attribution]) -> None:
    def step(x: Tensor) -> Tensor:
        return _as_if_contiguous(x * random.random() + float(np.random.random()))

    made = []
    for one in (explain, usually):
        random.seed(0)
        np.random.seed(0)
        made.append(one("gradcam", Net(middle=step), _image(), 1, layer="last").values)
    assert torch.equal(*made)


class _Backwards(torch.autograd.Function):
    """Counts, on the way back, on numbers that lie as usual."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad.as_strided(grad.shape, torch.empty(grad.shape, device="meta").stride())


class Returning(nn.Module):
    """Differentiates in a way of its own, after a layer with one channel.

    Args:
        channels: of that layer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, channels, 3, padding=1), nn.Conv2d(channels, 8, 3, padding=1)
        self.last, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        x = _Backwards.apply(self.last(_Backwards.apply(self.conv(self.stem(x)).relu())))  # type: ignore[no-untyped-call]
        result: Tensor = self.head(F.adaptive_max_pool2d(x, 1).flatten(1))
        return result


@pytest.mark.parametrize("layer", [None, "stem", "last"])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_gradients_come_back_through_maps_in_the_usual_order(
    method: str, channels: int, layer: str | None, usually: Callable[..., medviz.Attribution]
) -> None:
    model, image = Returning(channels), _image()
    got = explain(method, model, image, 1, layer=layer)
    check_close(got.values, usually(method, model, image, 1, layer=layer).values)


def test_layers_with_large_weights_have_the_usual_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LARGE", 8 * 6 * 9)
    model, image = Net(middle=nn.Conv2d(8, 8, 1)), _image()
    seen: dict[str, bool] = {}
    for name in ("first.0", "middle", "last.0"):
        module = model.get_submodule(name)
        # PyTorch calls hooks in their order: this one comes before that which changes the order, for the layer's input
        module.register_forward_hook(lambda _, given, out, name=name: seen.update({name: _is_last(out)}))
    explain("gradcam", model, image, layer="last")
    assert seen == {"first.0": True, "middle": True, "last.0": False}


def test_plugins_get_activations_and_gradients_in_the_usual_order() -> None:
    layers = ["first", "middle", "last"]
    for graph in (False, True):
        with medviz.Probe(Net(), _image(count=2), layers=layers, graph=graph) as probe:
            assert all(probe.activation(layer).is_contiguous() for layer in layers)
            assert _whole()[-1]
            if graph:
                assert all(probe.gradient(layer, 1).is_contiguous() for layer in layers)


def test_targets_get_outputs_in_the_usual_order() -> None:
    class Segmenting(Net):
        def forward(self, x: Tensor) -> Tensor:
            PASSES.append((_is_last(x), x.shape[-1]))
            result: Tensor = self.last(self.first(x))
            return result

    def target(output: Tensor) -> Tensor:
        return output.view(len(output), -1)[:, :1024].mean(1)

    with medviz.Probe(Segmenting(), _image(), graph=False) as probe:
        assert probe.output.is_contiguous()
        assert probe.forward(_image()).is_contiguous()
    for method, parameters in (("gradcam", {"layer": "first"}), ("gradcam", {"layer": "last.0"}), ("scorecam", {})):
        PASSES.clear()
        assert explain(method, Segmenting(), _image(), target, **parameters).values.abs().max() > 0
        assert _whole()[0]


def test_a_network_may_write_into_its_image() -> None:
    class Writing(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    for image in (_image(), _image().contiguous(memory_format=torch.channels_last), _image()[:, :1].clone()):
        kept = image.clone()
        with medviz.Probe(Writing(channels=image.shape[1]), image) as probe:
            first = probe.output
            assert torch.equal(probe.inputs, kept)
            assert torch.equal(probe.forward(image), first)
        assert torch.equal(image, kept)


@pytest.mark.parametrize("nd", [2, 3])
def test_an_image_of_one_channel_is_not_copied(nd: int) -> None:
    """A volume takes megabytes, and its numbers lie in both orders alike."""
    seen: list[int] = []

    class Noting(Net):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch._C._data_address(x))
            return super().forward(x)

    image = _image(nd)[:, :1].clone()
    with medviz.Probe(Noting(nd, channels=1), image) as probe:
        assert probe.output is not None
        assert _whole() == [True]
        assert seen == [torch._C._data_address(probe.inputs)]
        probe.forward(image * 2)
        assert _whole() == [True, True]
        kept = torch.cat([image, image])  # a part of other memory
        probe.forward(kept[1:])
        assert torch.equal(kept[1:], image)


def test_what_others_hold_keeps_its_order() -> None:
    maps = torch.randn(1, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    values = maps.clone()
    view = maps[:, 1]
    assert _is_last(usual_order(maps))
    del view
    same = usual_order(maps)
    assert same is maps
    assert maps.is_contiguous()
    assert torch.equal(maps, values)


def test_a_layer_may_write_into_what_it_is_given_or_keep_it(
    monkeypatch: pytest.MonkeyPatch, usually: Callable[..., medviz.Attribution]
) -> None:
    monkeypatch.setattr(watch, "_LARGE", 1)

    class Writing(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)
            self.kept = x
            return super().forward(x) + self.kept

    model = Net(middle=Writing(8, 8, 3, padding=1))
    for method, parameters in (("gradcam", {"layer": "first"}), ("eigencam", {}), ("rise", {"n_masks": 8, "seed": 0})):
        got = explain(method, model, _image(), 1, **parameters)
        check_close(got.values, usually(method, model, _image(), 1, **parameters).values, 1e-4)
    assert any(_whole())


def test_a_convolution_without_a_weight_of_its_own() -> None:
    class Made(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(8, 8, 3, padding=1)
            self.table, self.weight = self.weight, None

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, weight=self.table * 1.0, bias=self.bias, padding=1)

    explain("gradcam", Net(middle=Made()), _image())
    assert _whole() == [True]


def test_images_that_have_channels_last_already(usually: Callable[..., medviz.Attribution]) -> None:
    model = Net(middle=_written_copy)
    for image in (torch.rand(1, 128, 128, 2).permute(0, 3, 1, 2), torch.rand(1, 128, 128, 2).movedim(-1, 1).clone()):
        check_close(explain("gradcam", model, image, 1).values, usually("gradcam", model, image, 1).values)


def test_each_method_after_an_early_layer(usually: Callable[..., medviz.Attribution]) -> None:
    """The clean pass goes on in the usual order from the layer on, others do not."""
    for method in ("rise:n_masks=8,seed=0", "scorecam", "occlusion:mask_size=32,overlap=0", "vanillagrad"):
        model = Net(middle=_view)
        both = medviz.explain(model, _image(count=2), ["gradcam:layer=first", method], 1)
        assert isinstance(both, list)
        order._usual.add(model)
        alone = medviz.explain(model, _image(count=2), method, 1)
        check_close(both[1].values, alone.values, 1e-4)


def test_nothing_holds_a_pass_that_was_stopped() -> None:
    held: list[weakref.ref[Tensor]] = []

    def step(x: Tensor) -> Tensor:
        held.append(weakref.ref(x))
        return _as_if_contiguous(x)

    gc.collect()
    gc.disable()
    try:
        explain("gradcam", model := Net(middle=step), _image())
        assert len(held) == 2
        assert [one() for one in held] == [None, None]
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


class Both(nn.Module):
    """Returns a map and a view of it, which is a copy of a map with channels last."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 1.0
        return y, y.flatten(1)


class WithBoth(Net):
    """Goes on from both.

    Args:
        writes: it changes the map first, which the view is to show.
    """

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.both, self.writes = Both(), writes

    def forward(self, x: Tensor) -> Tensor:
        y, flat = self.both(self.first(x))
        if self.writes:
            y.mul_(0.5)
        result: Tensor = self.head(self.last(y + flat.reshape(y.shape)))
        return result


def test_a_layer_that_returns_its_map_and_a_view_of_it(usually: Callable[..., medviz.Attribution]) -> None:
    for layer in ("both", "first", "last", None):
        model = WithBoth(writes=True)
        got = explain("gradcam", model, _image(), 1, layer=layer)
        check_close(got.values, usually("gradcam", model, _image(), 1, layer=layer).values)


@pytest.mark.parametrize(
    "output", [lambda o: o.view(len(o), -1), lambda o: o.flatten(1).mul_(2), "map"], ids=["view", "written", "key"]
)
def test_what_is_chosen_of_the_output_is_watched_too(
    output: Callable[[Tensor], Tensor] | str, usually: Callable[..., medviz.Attribution]
) -> None:
    class Segmenting(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor] | Tensor:
            maps: Tensor = self.last(self.first(x))
            return {"map": maps, "other": maps.mean()} if output == "map" else maps

    def target(made: Tensor) -> Tensor:
        return made.flatten(1)[:, 5]

    model, image = Segmenting(), _image()
    got = explain("rise", model, image, target, output=output, n_masks=8, seed=0)
    check_close(got.values, usually("rise", model, image, target, output=output, n_masks=8, seed=0).values, 1e-4)


def test_a_replaced_map_is_not_written_where_a_view_of_it_was_copied() -> None:
    outputs = []
    for known in (False, True):
        model = WithBoth(writes=False)
        if known:
            order._usual.add(model)
        with medviz.Probe(model, _image(), layers=["both"], graph=False) as probe:
            outputs.append(probe.forward(_image(), replace={"both": probe.activation("both") * 0.3}))
    check_close(*outputs)
