"""What a probe answers: outputs, activations and gradients against plain autograd, and clear errors."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from networks import DEVICES, Classifier, images
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import medviz
from medviz import per_image
from medviz.model_arguments import ModelArguments
from medviz.probe import batching, clean


class Net(nn.Module):
    """`(B, 1, *S)` to three logits; `after` happens to the features of `layer`."""

    def __init__(self, ndim: int = 2, after: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        conv = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.stem = nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.layer = conv(4, 5, 3, padding=1, stride=2)
        self.after = after
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.layer(self.stem(x))).flatten(2).mean(2))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def by_hand(model: nn.Module, layer: str, image: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Activation and gradient by plain autograd on a copy whose layer cannot be changed in place."""
    kept = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()

    handle = model.get_submodule(layer).register_forward_hook(keep)
    output = model.eval()(image)
    handle.remove()
    (gradient,) = torch.autograd.grad(output.gather(1, classes[:, None]).sum(), kept[-1])
    return kept[-1].detach(), gradient


# ---------------------------------------------------------------- activations and gradients


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("layer", ["stem.0", "stem", "layer"])
@pytest.mark.parametrize(
    "after", [torch.relu, torch.relu_, lambda x: F.relu(x, inplace=True), lambda x: x.sub_(1).abs()]
)
def test_equals_plain_autograd(ndim: int, layer: str, after: Callable[[Tensor], Tensor], device: str) -> None:
    model = Net(ndim, after).to(device)
    image = torch.rand(3, 1, *(7, 9, 6)[:ndim], device=device)
    classes = torch.tensor([2, 0, 1])
    activation, gradient = by_hand(model, layer, image, classes.to(device))
    with medviz.Probe(model, image, layers=[layer]) as probe:
        assert torch.equal(probe.activation(layer), activation)
        torch.testing.assert_close(probe.gradient(layer, classes), gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("after", [torch.relu, torch.relu_], ids=["relu", "in place"])
def test_the_rolling_cut_equals_the_named_one_to_the_bit(after: Callable[[Tensor], Tensor]) -> None:
    model, image = Net(after=after), torch.rand(3, 1, 8, 8)
    with medviz.Probe(model, image, layers=[None]) as probe:
        rolling = probe.activation(), probe.gradient(None, 1)
        assert probe.layer_name(None) == "layer"
    with medviz.Probe(model, image, layers=["layer"]) as probe:
        named = probe.activation("layer"), probe.gradient("layer", 1)
    assert all(torch.equal(a, b) for a, b in zip(rolling, named, strict=True))


@pytest.mark.parametrize("named", [["stem.0"], ["stem"], ["layer"], ["head"], ["stem.0", "layer"], ["stem.1", "stem"]])
@pytest.mark.parametrize("after", [torch.relu, torch.relu_, lambda x: x.sub_(1).abs()], ids=["relu", "relu_", "sub_"])
@pytest.mark.parametrize("graph", [True, False], ids=["graph", "no graph"])
def test_an_automatic_layer_beside_named_ones_changes_neither(
    named: list[str], after: Callable[[Tensor], Tensor], graph: bool
) -> None:
    model, image = Net(after=after), torch.rand(3, 1, 8, 8)

    def asked(layers: list[str | None], ask: list[str | None]) -> list[Tensor]:
        with medviz.Probe(model, image, layers=layers, graph=graph) as probe:
            assert probe.layer_name(None) == "layer" or None not in layers
            activations = [probe.activation(layer) for layer in ask]
            return activations + ([probe.gradient(layer, 1) for layer in ask] if graph else [])

    together = asked([*named, None], [*named, None])
    n = len(named) + 1
    apart, automatic = asked([*named], [*named]), asked([None], [None])
    expected = [*apart[: n - 1], automatic[0]] + ([*apart[n - 1 :], automatic[1]] if graph else [])
    assert len(together) == len(expected)
    for got, one in zip(together, expected, strict=True):
        assert torch.equal(got, one)


class OutOfOrder(nn.Module):
    """Defines its last spatial layer long before the layers that it calls first."""

    def __init__(self, between: int) -> None:
        super().__init__()
        self.last = nn.Conv2d(2, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.first = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *[nn.Tanh() for _ in range(between)])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.first(x)).flatten(2).mean(2))


@pytest.mark.parametrize("between", [3, 150])
def test_the_automatic_layer_is_found_wherever_the_model_defines_it(between: int) -> None:
    torch.manual_seed(0)
    model, image = OutOfOrder(between), torch.rand(2, 1, 8, 8)
    activation, gradient = by_hand(model, "last", image, torch.tensor([1, 1]))
    with medviz.Probe(model, image, layers=[None]) as probe:
        assert probe.layer_name(None) == "last"
        assert torch.equal(probe.activation(), activation)
        torch.testing.assert_close(probe.gradient(None, 1), gradient, rtol=1e-6, atol=0)


def test_an_automatic_layer_that_a_long_model_defines_first_costs_one_more_pass() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 2, 3)
            self.head = nn.Sequential(nn.Linear(2, 3), *[nn.Identity() for _ in range(150)])

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x).flatten(2).mean(2))

    model, image = Counted(Long()), torch.rand(2, 1, 6, 6)
    with medviz.Probe(model, image, layers=[None]) as probe:
        automatic = probe.gradient(None, 1)
        assert probe.layer_name(None) == "inner.layer"
    assert len(model.passes.rows) == 2
    with medviz.Probe(model, image, layers=["inner.layer"]) as probe:
        assert torch.equal(probe.gradient("inner.layer", 1), automatic)


class Counted(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.passes: Any = Passes()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.passes.rows.append(len(args[0]))
        return self.inner(*args, **kwargs)


class Passes:
    def __init__(self) -> None:
        self.rows: list[int] = []


@pytest.mark.parametrize(
    ("layers", "passes"),
    [
        ([None], 1),
        (["inner.layer", "inner.stem"], 1),
        (["inner.layer", None], 1),
        (["inner.stem", None, "inner.layer"], 1),
    ],
)
def test_one_pass_for_all_layers_and_targets(layers: list[str | None], passes: int) -> None:
    model = Counted(Net())
    with medviz.Probe(model, torch.rand(2, 1, 8, 8), layers=layers) as probe:
        for layer in layers:
            for target in (0, 1, None):
                probe.gradient(layer, target)
    assert len(model.passes.rows) == passes


def test_a_layer_asked_for_later_costs_one_more_pass_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = Counted(Net())
    caplog.set_level("INFO", "medviz")
    with medviz.Probe(model, torch.rand(2, 1, 8, 8), layers=["inner.layer"]) as probe:
        first = probe.gradient("inner.layer", 0)
        probe.activation("inner.stem")
        again = probe.gradient("inner.layer", 0)
    assert len(model.passes.rows) == 2
    assert "one more pass" in caplog.text
    assert torch.equal(first, again)


def test_nothing_below_the_layer_has_a_graph() -> None:
    seen: dict[str, bool] = {}

    class Spy(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            seen[self.name] = x.requires_grad
            return x * 1

    model = nn.Sequential(
        Spy("a"), nn.Conv2d(1, 2, 3), Spy("b"), nn.Conv2d(2, 2, 3), Spy("c"), nn.Flatten(), nn.LazyLinear(2)
    )
    image = torch.rand(1, 1, 8, 8)
    model(image)
    with medviz.Probe(model, image, layers=["3"]) as probe:
        probe.gradient("3", 0)
    assert seen == {"a": False, "b": False, "c": True}


def test_a_module_called_twice_gives_activation_and_gradient_of_its_last_call() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.again(self.stem[0](x))
            return self.head(self.again(self.layer(x) - 0.2).flatten(2).mean(2))

    model = Twice()
    model.again = nn.ReLU(inplace=True)
    image, classes = torch.rand(2, 1, 8, 8), torch.tensor([1, 0])
    activation, gradient = by_hand(model, "again", image, classes)
    with medviz.Probe(model, image, layers=["again"]) as probe:
        assert torch.equal(probe.activation("again"), activation)
        assert torch.equal(probe.gradient("again", classes), gradient)
        halved = probe.forward(image, replace={"again": activation * 2})
        expected = model.head(activation.flatten(2).mean(2) * 2)
    torch.testing.assert_close(halved, expected)


def test_skip_connections_and_concatenations() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            a = self.relu(self.a(x))
            b = self.relu(self.b(a)) + a
            return self.head(torch.cat([a, b], 1).mean((2, 3)))

    model, image, classes = Dense(), torch.rand(2, 1, 6, 6), torch.tensor([0, 1])
    for layer in (None, "a", "b", "relu"):
        with medviz.Probe(model, image, layers=[layer]) as probe:
            name = probe.layer_name(layer)
            result = probe.activation(layer), probe.gradient(layer, classes)
        torch.testing.assert_close(result, by_hand(model, name, image, classes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, device: str) -> None:
    model, image = Net(after=F.softplus).to(device), torch.rand(2, 1, 8, 8, device=device)
    with medviz.Probe(model, image, layers=["layer"]) as probe:
        expected = probe.gradient("layer", 1)
    with medviz.Probe(model.to(dtype), image, layers=["layer"]) as probe:
        assert probe.inputs.dtype == dtype
        result = probe.gradient("layer", 1)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (result - expected).abs().max() <= 2e-2 * expected.abs().max()


def test_float16_gradients_of_a_large_volume_do_not_underflow() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    with torch.no_grad():
        model[4].weight.mul_(0.05)
    image = torch.rand(1, 1, 96, 96, 96)
    with medviz.Probe(model, image) as probe:
        expected = probe.input_gradient(0).flatten()
    model.half()
    leaf = image.half().requires_grad_()
    plain = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0].flatten().float()
    with medviz.Probe(model, image) as probe:
        result = probe.input_gradient(0).flatten()
    assert torch.corrcoef(torch.stack([result, expected]))[0, 1] > 0.99
    # not of the worst voxel: rounding turns single ReLUs over, and which ones depends on the processor
    assert (result - expected).norm() < 0.1 * (plain - expected).norm()


def test_input_gradient_equals_autograd_row_by_row(device: str) -> None:
    model, image = Net().to(device), torch.rand(3, 1, 8, 8, device=device)
    rows = torch.rand(7, 1, 8, 8, device=device)
    index = torch.tensor([0, 2, 1, 1, 0, 2, 0])
    classes = torch.tensor([2, 0, 1])
    entered = []

    @contextlib.contextmanager
    def rule() -> Any:
        entered.append(True)
        yield

    leaf = rows.clone().requires_grad_()
    score = model(leaf).gather(1, classes[index][:, None].to(device)).sum()
    (expected,) = torch.autograd.grad(score, leaf)
    with medviz.Probe(model, image, batch_size=3) as probe:
        result = probe.input_gradient(classes, rows, index, rule)
    torch.testing.assert_close(result, expected)
    assert len(entered) == 3


# ---------------------------------------------------------------- models of all sorts


def wrapped(model: nn.Module, how: str) -> nn.Module:
    if how == "torch.compile":
        return torch.compile(model, backend="eager")  # type: ignore[return-value]
    if how == "model.compile":
        model.compile(backend="eager")
    if how == "part":
        model.stem = torch.compile(model.stem, backend="eager")
        model.layer.compile(backend="eager")
    return nn.DataParallel(model) if how == "DataParallel" else model


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch 2.14 asks for it while it compiles
@pytest.mark.parametrize("how", ["torch.compile", "model.compile", "part", "DataParallel"])
@pytest.mark.parametrize("layer", ["layer", None])
def test_wrappers_are_taken_off(how: str, layer: str | None) -> None:
    image = torch.rand(2, 1, 8, 8)
    plain = Net()
    with medviz.Probe(plain, image, layers=["layer"]) as probe:
        expected = probe.gradient("layer", 1)
    model = Net()
    model.load_state_dict(plain.state_dict())
    model = wrapped(model, how)
    model(image)  # so that it has really been compiled before
    with medviz.Probe(model, image, layers=[layer]) as probe:
        assert torch.equal(probe.gradient(layer, 1), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float64])
def test_what_nothing_is_cast_to_is_no_autocast(device: str, dtype: torch.dtype) -> None:
    """PyTorch goes on without it, and the provenance would say what was not done."""
    with pytest.raises(ValueError, match=f"`autocast` is {dtype}, to which PyTorch casts nothing on"):
        medviz.explain(Net().to(device), torch.rand(1, 1, 8, 8), "vanillagrad", autocast=dtype)


def test_autocast_is_a_switch_or_a_dtype() -> None:
    with pytest.raises(TypeError, match="`autocast` is 'float16'; expected None, True, False or a dtype"):
        medviz.explain(Net(), torch.rand(1, 1, 8, 8), "vanillagrad", autocast="float16")  # type: ignore[arg-type]


OUTPUTS: list[tuple[Callable[[Tensor], Any], Any]] = [
    (lambda out: (out, out * 2), None),
    (lambda out: [out, 1], None),
    (lambda out: {"a": out, "n": 3}, None),
    (lambda out: {"logits": out, "aux": out * 2}, None),
    (lambda out: {"out": out, "aux": out * 2}, None),
    (lambda out: {"x": out * 2, "y": out}, "y"),
    (lambda out: (out * 2, out), 1),
    (lambda out: {"x": (out * 2, {"y": out})}, lambda raw: raw["x"][1]["y"]),
    (lambda out: out[:, :, None, None], None),
]


@pytest.mark.parametrize(("shape", "output"), OUTPUTS)
def test_outputs_of_all_shapes(shape: Callable[[Tensor], Any], output: Any) -> None:
    class Shaped(Net):
        def forward(self, x: Tensor) -> Any:
            return shape(super().forward(x))

    model, image = Shaped(), torch.rand(2, 1, 8, 8)
    with medviz.Probe(model, image, layers=["layer"], output=output) as probe:
        assert torch.equal(probe.output, Net.forward(model.eval(), image).detach())
        assert probe.gradient("layer", None).abs().sum() > 0


def test_one_logit_without_an_axis() -> None:
    class One(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, 0]

    model, image = One(), torch.rand(2, 1, 8, 8)
    with medviz.Probe(model, image, layers=["layer"]) as probe:
        assert probe.output.shape == (2, 1)
        gradient = probe.gradient("layer", None)
        assert torch.equal(gradient, probe.gradient("layer", 0))
        assert torch.equal(-gradient, probe.gradient("layer", medviz.BinaryTarget(positive=False)))


class Conditioned(Net):
    def forward(self, x: Tensor, age: Tensor, scale: Tensor, *, flip: bool) -> Tensor:
        scale.add_(0)
        return super().forward(x) * age[:, None] * scale * (-1 if flip else 1)


def test_model_arguments_belong_to_their_images() -> None:
    model, image = Conditioned().eval(), torch.rand(3, 1, 8, 8)
    age, scale = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(0.5)
    arguments = ModelArguments((per_image(age), scale), {"flip": True})
    index = torch.tensor([2, 0, 0, 1, 2])
    rows = torch.rand(5, 1, 8, 8)
    with medviz.Probe(model, image, arguments=arguments, batch_size=2) as probe:
        result = probe.forward(rows, index)
    torch.testing.assert_close(result, model(rows, age[index], scale, flip=True).detach())
    whole = medviz.explain(model, image, "gradcam", 1, model_args=[per_image(age), scale], model_kwargs={"flip": True})
    for i in range(3):
        one = medviz.explain(
            model, image[i : i + 1], "gradcam", 1, model_args=[age[i : i + 1], scale], model_kwargs={"flip": True}
        )
        torch.testing.assert_close(whole.values[i], one.values[0])


def test_an_argument_with_a_row_for_each_image_must_be_marked_where_copies_are_run() -> None:
    class Aged(Net):
        def forward(self, x: Tensor, age: Tensor) -> Tensor:
            return super().forward(x) * age[:, None]

    model, image, age = Aged().eval(), torch.rand(3, 1, 8, 8), torch.rand(3)
    medviz.explain(model, image, "gradcam", 1, model_args=[age])  # each image with its own row
    with pytest.raises(ValueError, match=r"model argument 0 has as many rows.*medviz\.per_image"):
        medviz.explain(model, image, "rise:n_masks=9", 1, model_args=[age], batch_size=3)
    with pytest.raises(TypeError, match="`model_args` is a PerImage; expected a list or tuple"):
        medviz.explain(model, image, "gradcam", 1, model_args=per_image(age))


def test_arguments_in_containers_are_copied_and_marked_too() -> None:
    class Record(Net):
        def forward(self, x: Tensor, record: dict[str, Any]) -> Tensor:
            return super().forward(x) * record.pop("age")[:, None] * record["more"][0].mul_(2)

    model, image, age, scale = Record().eval(), torch.rand(3, 1, 8, 8), torch.rand(3) + 1, torch.tensor(0.5)
    record = {"age": per_image(age), "more": [scale]}
    whole = medviz.explain(model, image, "rise:n_masks=9,seed=0", 1, model_args=[record])
    assert list(record) == ["age", "more"]
    assert scale == 0.5
    for i in range(3):
        only = {"age": age[i : i + 1], "more": [scale]}
        one = medviz.explain(model, image[i : i + 1], "rise:n_masks=9,seed=0", 1, model_args=[only])
        torch.testing.assert_close(whole.values[i], one.values[0])
    with pytest.raises(ValueError, match="model argument 0 has 2 rows for 3 images"):
        medviz.explain(model, image, "gradcam", 1, model_args=[{"age": per_image(age[:2]), "more": [scale]}])


def test_batch_norm_without_statistics_goes_image_by_image() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU(), nn.Conv2d(3, 2, 1)
    )
    model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    image = torch.rand(3, 1, 8, 8)
    for name in ("gradcam", "scorecam"):
        batch = medviz.explain(model, image, name, 1)
        for i in range(3):
            one = medviz.explain(model, image[i : i + 1], name, 1, batch_size=1)
            torch.testing.assert_close(batch.values[i], one.values[0])


def test_layers_lists_what_is_called_and_marks_the_automatic_one() -> None:
    model = Net()
    model.unused = nn.Conv2d(1, 1, 1)
    with medviz.Probe(model, torch.rand(1, 1, 8, 8)) as probe:
        found = probe.layers()
    assert [(layer.name, layer.shape, layer.automatic) for layer in found] == [
        ("stem", (1, 4, 8, 8), False),
        ("stem.0", (1, 4, 8, 8), False),
        ("stem.1", (1, 4, 8, 8), False),
        ("layer", (1, 5, 4, 4), True),
        ("head", (1, 3), False),
    ]


def test_the_outermost_name_stands_for_one_tensor() -> None:
    block = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout()), nn.Identity())
    model = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with medviz.Probe(model, torch.rand(1, 1, 8, 8)) as probe:
        assert probe.layer_name(None) == "0"


def test_one_token_before_the_head_is_no_model_of_tokens() -> None:
    class OneToken(Classifier):
        def head(self, features: Tensor) -> Tensor:
            return self.fc(features.flatten(2).mean(2)[:, None])[:, 0]

    with medviz.Probe(OneToken(2), images(1, 2, 9, 8)) as probe:
        assert probe.layer_name(None) == "deep"


def test_a_segmentation_network_gets_its_coarsest_grid() -> None:
    class Unet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv3d(1, 4, 3, stride=2, padding=1)
            self.bottom = nn.Sequential(nn.Conv3d(4, 4, 3, stride=2, padding=1), nn.ReLU())
            self.up = nn.ConvTranspose3d(4, 4, 4, stride=4)
            self.logits = nn.Conv3d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.logits(self.up(self.bottom(self.down(x))))

    model, image = Counted(Unet()), torch.rand(2, 1, 8, 8, 8)
    with medviz.Probe(model, image, layers=[None]) as probe:
        gradient = probe.gradient(None, medviz.SegmentationTarget(1))
        assert probe.layer_name(None) == "inner.bottom"
    assert gradient.shape == (2, 4, 2, 2, 2)
    assert len(model.passes.rows) == 2


def test_a_layer_that_returns_a_tuple() -> None:
    class Pair(nn.Conv2d):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), "note"

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Pair(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            features, _ = self.layer(x)
            return features.relu_().mean((2, 3))

    with medviz.Probe(Holder(), torch.rand(1, 1, 6, 6), layers=["layer"]) as probe:
        assert probe.gradient("layer", 0).shape == (1, 2, 4, 4)


@pytest.mark.parametrize("wrap", [lambda y: (y, [y]), lambda y: (y, {"skips": (y,)}), lambda y: {"f": y, "s": [y]}])
@pytest.mark.parametrize("layer", ["layer", None])
def test_a_layer_that_returns_one_tensor_in_several_places(wrap: Callable[[Tensor], Any], layer: str | None) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> Any:
            return wrap(self.conv(x).relu())

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.fc = Encoder(), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            first, second = leaves(self.layer(x))
            return self.fc(torch.cat([first.mean((2, 3)), second.mean((2, 3))], 1))

    def leaves(output: Any) -> list[Tensor]:
        if isinstance(output, Tensor):
            return [output]
        items = output.values() if isinstance(output, dict) else output
        return [leaf for item in items for leaf in leaves(item)]

    model, image = Holder(), torch.rand(2, 1, 8, 8)
    if layer is None:  # the convolution inside comes before the last spatial output, the encoder's
        assert medviz.explain(model, image, "gradcam").provenance["layers"] == ["layer"]
    signed = medviz.get_explainer("hirescam", layer=layer, relu=False)(model, image, 1)
    expected = torch.tensor(signed.scores) - model.fc.bias[1].detach()
    torch.testing.assert_close(signed.raw.flatten(1).sum(1), expected)


# ---------------------------------------------------------------- perturbed copies


def test_forward_is_batched_and_replaces(device: str) -> None:
    model = Counted(Net()).to(device).eval()
    image, rows = torch.rand(2, 1, 8, 8, device=device), torch.rand(7, 1, 8, 8, device=device)
    index = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    with medviz.Probe(model, image, batch_size=3) as probe:
        result = probe.forward(rows, index)
        assert model.passes.rows == [1, 1, 2, 3, 3, 1]  # the first three ask whether it mixes rows
        torch.testing.assert_close(result, model(rows).detach())
        zeros = probe.forward(rows, index, replace={"inner.layer": torch.zeros(7, 5, 4, 4, device=device)})
    torch.testing.assert_close(zeros, model.inner.head.bias.detach().expand(7, 3))


class Small(Net):
    """Has memory for two rows."""

    limit = 2
    error: Callable[[], Exception] = staticmethod(lambda: torch.OutOfMemoryError("CUDA out of memory"))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limit:
            raise self.error()
        return super().forward(x)


@pytest.mark.parametrize("text", ["", "DefaultCPUAllocator: can't allocate memory: you tried", "not enough memory"])
def test_out_of_memory_halves_the_batch(text: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "medviz")
    model = Small().eval()
    if text:
        model.error = lambda: RuntimeError(text)
    rows = torch.rand(9, 1, 8, 8)
    with medviz.Probe(model, rows[:1], batch_size=8) as probe:
        result = probe.forward(rows, torch.zeros(9).long())
    torch.testing.assert_close(result, Net.forward(model, rows).detach())
    assert "going on with" in caplog.text


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    model = Small()
    model.error = lambda: RuntimeError("shapes do not fit")
    with medviz.Probe(model, torch.rand(1, 1, 8, 8)) as probe, pytest.raises(RuntimeError, match="do not fit"):
        probe.forward(torch.rand(9, 1, 8, 8), torch.zeros(9).long())
    model.limit, model.error = 0, Small.error
    with medviz.Probe(model, torch.rand(1, 1, 8, 8)) as probe, pytest.raises(torch.OutOfMemoryError):
        probe.forward(torch.rand(1, 1, 8, 8))


def test_the_automatic_batch_size_fits_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert batching.free_memory(cpu) > 0
    monkeypatch.setattr(batching, "free_memory", lambda device: 8_000)
    cuda = torch.device("cuda")
    assert batching.automatic([50, 100], cpu, graph=False) == 5
    assert batching.automatic([50, 100], cuda, graph=True) == 13
    assert [batching.automatic([1], device, graph) for device in (cpu, cuda) for graph in (False, True)] == [
        8,
        2,
        64,
        64,
    ]
    assert batching.automatic([10**9], cpu, graph=False) == 1
    monkeypatch.setattr(batching, "free_memory", lambda device: 1 << 40)
    assert [batching.automatic([size << 20], cpu, graph=False) for size in (1, 8, 100)] == [8, 4, 2]
    # its largest output is the stem's, 4 × 8 × 8 floats: 1,024 bytes, four alive, a quarter free
    model = Counted(Net())
    monkeypatch.setattr(batching, "free_memory", lambda device: 3 * 4 * 4 * 1024)
    with medviz.Probe(model, torch.rand(1, 1, 8, 8)) as probe:
        probe.forward(torch.rand(7, 1, 8, 8), torch.zeros(7).long())
    assert model.passes.rows[-3:] == [3, 3, 1]


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "all"])
def test_a_wrong_batch_size(size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        medviz.Probe(Net(), torch.rand(1, 1, 8, 8), batch_size=size)


# ---------------------------------------------------------------- errors


def gradcam(model: nn.Module, layer: Any = "layer", image: Tensor | None = None, **options: Any) -> Any:
    return medviz.get_explainer("gradcam", layer=layer)(
        model, torch.rand(2, 1, 8, 8) if image is None else image, **options
    )


def test_an_unknown_layer_names_the_near_misses() -> None:
    with pytest.raises(ValueError, match="'layr' is not in the model; did you mean 'layer'"):
        gradcam(Net(), "layr")


def test_a_layer_that_was_not_called() -> None:
    model = Net()
    model.unused = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="'unused' was not called"):
        gradcam(model, "unused")


def test_a_name_of_the_wrapper_is_named_without_it() -> None:
    with pytest.raises(ValueError, match=r"'module\.layer' is not in the model; there it is 'layer'"):
        medviz.explain(nn.DataParallel(Net()), torch.rand(1, 1, 8, 8), "gradcam:layer=module.layer", 0)


def test_layers_are_a_list() -> None:
    with pytest.raises(TypeError, match=r"`layers` is a list of names; got 'layer': write \['layer'\]"):
        medviz.Probe(Net(), torch.rand(1, 1, 8, 8), layers="layer").__enter__()


def test_arguments_by_keyword_are_a_dict() -> None:
    with pytest.raises(TypeError, match="`model_kwargs` is a list; expected a dict"):
        medviz.explain(Net(), torch.rand(1, 1, 8, 8), "vanillagrad", model_kwargs=[1])  # type: ignore[arg-type]


def test_an_affine_of_letters() -> None:
    with pytest.raises(ValueError, match=r"`affine` is an array of numbers \(1, 4, 4\)|got 'RAS'"):
        medviz.explain(Net(), torch.rand(1, 1, 8, 8), "vanillagrad", affine="RAS")


def test_a_layer_without_spatial_extent() -> None:
    with pytest.raises(ValueError, match="'head' has no spatial extent"):
        gradcam(Net(), "head")


def test_a_norm_along_columns_deep_inside_of_a_layer_does_not_put_channels_last() -> None:
    layer = nn.Sequential(nn.Sequential(nn.LayerNorm(9)), nn.Conv2d(4, 4, 1))
    model = nn.Sequential(nn.Conv2d(1, 4, 1), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert gradcam(model, "1", torch.rand(1, 1, 8, 9)).raw.shape == (1, 1, 8, 9)


def test_a_layer_that_the_score_does_not_depend_on() -> None:
    class Side(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), self.side(x)

    model = Side()
    model.side = nn.Conv2d(1, 1, 3)
    with pytest.raises(ValueError, match="does not depend on `layer` 'side'"):
        gradcam(model, "side")
    with pytest.raises(ValueError, match="does not depend on `layer` 'layer'"):
        gradcam(model, "layer", target=lambda out: torch.ones(len(out)))


class Keeper(nn.Module):
    """Keeps what it returns, in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 5, 3)
        self.dict: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.kept, self.list, self.dict["x"] = x, [x], x
        return x


@pytest.mark.parametrize("read", [lambda block: block.kept, lambda block: block.list[0], lambda block: block.dict["x"]])
@pytest.mark.parametrize("layer", ["block", None])
def test_a_model_that_goes_on_from_features_kept_on_self(read: Callable[[Keeper], Tensor], layer: str | None) -> None:
    class Reads(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.block = nn.Identity(), Keeper()
            self.returned = False

        def forward(self, x: Tensor) -> Tensor:
            x = self.block(self.stem(x))
            return self.head((x if self.returned else read(self.block)).flatten(2).mean(2))

    model, image = Reads(), torch.rand(2, 1, 8, 8)
    with medviz.Probe(model, image, layers=[layer]) as probe:
        result = probe.gradient(layer, 1)
    model.returned = True
    with medviz.Probe(model, image, layers=["block"]) as probe:
        assert torch.equal(result, probe.gradient("block", 1))
    assert not hasattr(model.block, "kept")


class Branching(nn.Module):
    """Returns features, and a view of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x) + 0
        return x, x.flatten(2)


class Routes(Net):
    """Goes on from what its layer returns, and from what it has got by another route."""

    def __init__(self, route: str) -> None:
        super().__init__()
        self.layer, self.held = Branching(), SimpleNamespace()
        self.route = route

        def keep(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
            self.held.skip, self.kept = output[0], (output[0], 1)
            if self.route == "a view of what is kept":
                module.kept = output[0]

        self.layer.register_forward_hook(keep)

    def forward(self, x: Tensor) -> Tensor:
        x, view = self.layer(self.stem(x))
        skip = {"an object": self.held.skip, "a tuple on self": self.kept[0]}.get(self.route, view)
        return self.head((x * 2).flatten(2).mean(2) + skip.flatten(2).mean(2).square())


@pytest.mark.parametrize(
    ("route", "layer"),
    list(itertools.product(["an object", "a tuple on self", "a view", "a view of what is kept"], ["layer", None])),
)
def test_a_layers_output_is_followed_on_every_route(route: str, layer: str | None) -> None:
    model, image = Routes(route).eval(), torch.rand(2, 1, 8, 8)
    with medviz.Probe(model, image, layers=[layer]) as probe:
        name = probe.layer_name(layer)
        result, activation = probe.gradient(name, 1), probe.activation(name)
        zeros = probe.forward(image, replace={name: torch.zeros_like(activation)})
    mean = activation.flatten(2).mean(2).requires_grad_()
    model.head(mean * 2 + mean.square())[:, 1].sum().backward()
    voxels = activation[0, 0].numel()
    assert mean.grad is not None
    torch.testing.assert_close(result, (mean.grad / voxels)[..., None, None].expand_as(result))
    torch.testing.assert_close(zeros, model.head.bias.detach().expand(2, 3))
    assert not model.held.skip.requires_grad


class First(nn.Module):
    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return x


@pytest.mark.parametrize("passes_on", [nn.Identity(), nn.Dropout(), nn.Flatten(2), nn.ReLU(inplace=True), First()])
def test_what_a_layer_was_given_is_not_its_output(passes_on: nn.Module) -> None:
    class Skips(Net):
        def __init__(self) -> None:
            super().__init__()
            self.passes_on = passes_on

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(self.stem(x)).relu()
            given = (x, x.new_zeros(1)) if isinstance(self.passes_on, First) else (x,)
            return self.head(3 * self.passes_on(*given).flatten(2).mean(2) + x.flatten(2).mean(2))

    model, image = Skips().eval(), torch.rand(2, 1, 8, 8)
    with medviz.Probe(model, image, layers=["passes_on"]) as probe:
        result, activation = probe.gradient("passes_on", 1), probe.activation("passes_on")
        zeros = probe.forward(image, replace={"passes_on": torch.zeros_like(activation)})
        expected = model.head(activation.flatten(2).mean(2)).detach()
    voxels = activation[0, 0].numel()
    torch.testing.assert_close(result.flatten(2)[0, :, 0], 3 * model.head.weight[1].detach() / voxels)
    torch.testing.assert_close(zeros, expected)


class Table(nn.Module):
    def __init__(self, held: str) -> None:
        super().__init__()
        table = torch.rand(1, 5, 4, 4)
        self.table = nn.Parameter(table) if held == "parameter" else nn.Buffer(table)

    def forward(self, x: Tensor) -> Tensor:
        return self.table.detach()


@pytest.mark.parametrize("held", ["parameter", "buffer"])
def test_what_a_layer_holds_is_not_its_output(held: str) -> None:
    class Reads(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Table(held)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((3 * self.layer(self.stem(x)) + self.layer.table).flatten(2).mean(2))

    model, image = Reads().eval(), torch.rand(1, 1, 4, 4)
    expected = model.head(model.layer.table.flatten(2).mean(2)).detach()
    with medviz.Probe(model, image, layers=["layer"]) as probe:
        result = probe.gradient("layer", 1)
        zeros = probe.forward(image, replace={"layer": torch.zeros(1, 5, 4, 4)})
    torch.testing.assert_close(result[0, :, 0, 0], 3 * model.head.weight[1].detach() / 16)
    torch.testing.assert_close(zeros, expected)


def test_an_output_whose_voxels_share_their_memory_can_be_replaced() -> None:
    model, image = Net(), torch.rand(2, 1, 8, 8)
    model.layer.register_forward_hook(lambda module, args, output: output[..., :1].expand_as(output).detach())
    new = torch.rand(2, 5, 4, 4)
    with medviz.Probe(model, image, layers=["layer"]) as probe:
        torch.testing.assert_close(
            probe.forward(image, replace={"layer": new}), model.head(new.flatten(2).mean(2)).detach()
        )


@pytest.mark.parametrize("layer", ["halves", None])
def test_parts_of_an_output_that_cannot_be_followed_are_not(layer: str | None) -> None:
    class Halves(Net):
        def __init__(self) -> None:
            super().__init__()
            self.halves = self.layer
            self.halves.register_forward_hook(lambda module, args, output: (output, *output.chunk(2, 1)))

        def forward(self, x: Tensor) -> Tensor:
            whole, first, _ = self.halves(self.stem(x))
            return self.head((whole * 2).flatten(2).mean(2) + first.mean())

    model, image = Halves().eval(), torch.rand(2, 1, 8, 8)
    with medviz.Probe(model, image, layers=[layer]) as probe:
        gradient = probe.gradient(layer, 1)
    voxels = gradient[0, 0].numel()
    expected = (2 * model.head.weight[1].detach() / voxels)[:, None, None].expand_as(gradient[0])
    torch.testing.assert_close(gradient[0], expected)


class Encoder(Net):
    """Returns features of two levels, as many encoders do; the finer ones lead to the coarser inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Module()
        self.layer.fine, self.layer.coarse = nn.Conv2d(4, 5, 3), nn.Conv2d(5, 5, 3)
        self.layer.forward = self.levels  # type: ignore[method-assign]

    def levels(self, x: Tensor) -> list[Tensor]:
        fine = self.layer.fine(x)
        return [fine, self.layer.coarse(fine.relu())]

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.layer(self.stem(x))
        return self.head(fine.flatten(2).mean(2) + coarse.flatten(2).mean(2).square())


@pytest.mark.parametrize("layers", [["layer.fine", "layer"], ["layer", "layer.fine"], ["layer", None]])
def test_a_layers_gradient_does_not_depend_on_what_else_is_asked_for(layers: list[str | None]) -> None:
    model, image = Encoder().eval(), torch.rand(2, 1, 10, 10)
    with medviz.Probe(model, image, layers=["layer"]) as probe:
        alone = probe.gradient("layer", 1)
    with medviz.Probe(model, image, layers=layers) as probe:
        torch.testing.assert_close(probe.gradient("layer", 1), alone)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.attention = nn.Conv2d(4, 5, 3), nn.Conv2d(5, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        half = features.chunk(2, 1)[0].mean() * 0
        return features * self.attention(features).sigmoid() + half


@pytest.mark.parametrize("layers", [["layer.attention", "layer"], ["layer.features", "layer.attention", "layer"]])
def test_what_was_saved_for_the_backward_pass_stays_good(layers: list[str]) -> None:
    model, image = Net().eval(), torch.rand(2, 1, 8, 8)
    model.layer = Gate()  # type: ignore[assignment]
    with medviz.Probe(model, image, layers=layers) as probe:
        together = {name: probe.gradient(name, 1) for name in layers}
    for name in layers:
        with medviz.Probe(model, image, layers=[name]) as probe:
            torch.testing.assert_close(together[name], probe.gradient(name, 1))


class Gives(nn.Module):
    """Returns a tensor that was there before."""

    def __init__(self, made: Tensor) -> None:
        super().__init__()
        self.made = [made]

    def forward(self, x: Tensor) -> Tensor:
        return self.made[0]


@pytest.mark.parametrize("layer", ["gives", None])
@pytest.mark.parametrize("kind", ["cached", "optimised", "a buffer", "a parameter's data"])
def test_a_tensor_that_was_there_before_is_left_as_it_was(kind: str, layer: str | None) -> None:
    class Prompted(Net):
        def __init__(self) -> None:
            super().__init__()
            self.gives = Gives(torch.rand(1, 1, 8, 8, requires_grad=kind == "optimised"))
            if kind == "a buffer":
                self.gives.register_buffer("kept", self.gives.made[0])
            if kind == "a parameter's data":
                self.gives.own = nn.Parameter(torch.rand(1, 1, 8, 8))
                self.gives.made = [self.gives.own.data]

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.gives(x).exp() + self.gives.made[0])

    model, image = Prompted(), torch.rand(1, 1, 8, 8)
    given = model.gives.made[0]
    before, wanted = given.detach().clone(), given.requires_grad
    loss = model(image).sum()
    with medviz.Probe(model, image, layers=[layer]) as probe:
        name = probe.layer_name(layer)
        probe.gradient(name, 1)
        probe.forward(image, replace={name: torch.zeros_like(probe.activation(name))})
    loss.backward()
    assert model.gives.made[0] is given
    assert (given.requires_grad, given.grad_fn) == (wanted, None)
    assert torch.equal(given, before)


def test_nested_layers_are_put_back_in_the_order_in_which_they_were_replaced() -> None:
    ones = torch.ones(1, 1, 8, 8)

    class Nested(Net):
        def __init__(self) -> None:
            super().__init__()
            self.outer = nn.Sequential(Gives(ones))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.outer(x))

    model, image = Nested().eval(), torch.rand(1, 1, 8, 8)
    with medviz.Probe(model, image, layers=["outer", "outer.0"]) as probe:
        seven = probe.forward(image, replace={"outer.0": ones * 5, "outer": ones * 7})
    assert torch.equal(ones, torch.ones(1, 1, 8, 8))
    torch.testing.assert_close(seven, Net.forward(model, image * 7).detach())


def test_a_replaced_output_that_changes_its_shape_is_put_back() -> None:
    class Turned(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(self.stem(x))
            self.kept = x.transpose_(2, 3)
            return self.head(self.kept.flatten(2).mean(2))

    model, image = Turned().eval(), torch.rand(1, 1, 8, 6)
    with medviz.Probe(model, image, layers=["layer"]) as probe:
        zeros = probe.forward(image, replace={"layer": torch.zeros_like(probe.activation("layer"))})
    assert torch.equal(zeros, model.head.bias[None])


def test_what_is_replaced_reaches_the_output_of_the_last_layer() -> None:
    model, image = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 1)), torch.rand(2, 1, 6, 6)
    wanted = torch.rand(2, 3, 4, 4)
    with medviz.Probe(model, image, layers=["1"]) as probe:
        assert torch.equal(probe.forward(image, replace={"1": wanted}), wanted)
        assert torch.equal(probe.forward(image), model(image))


def test_a_target_may_run_the_model() -> None:
    model, image = Net(), torch.rand(2, 1, 8, 8)

    def score(output: Tensor) -> Tensor:
        with torch.no_grad():
            model(image)
        return output[:, 1]

    expected = medviz.explain(model, image, "gradcam:layer=layer", 1).values
    assert torch.equal(medviz.explain(model, image, "gradcam:layer=layer", score).values, expected)


def test_a_layer_in_a_thread_of_the_models_own_is_said() -> None:
    class Threaded(Net):
        def forward(self, x: Tensor) -> Tensor:
            with ThreadPoolExecutor(1) as pool:
                return self.head(pool.submit(self.layer, self.stem(x)).result().flatten(2).mean(2))

    with pytest.raises(ValueError, match="threads of the model's own are not seen"):
        gradcam(Threaded(), "layer")


def test_a_model_that_keeps_what_it_returned_for_later_keeps_no_graph() -> None:
    kept: list[Tensor] = []
    model = Net()
    model.layer.register_forward_hook(lambda module, args, output: kept.append(output))
    for layer in ("layer", None):
        with medviz.Probe(model, torch.rand(1, 1, 8, 8), layers=[layer]) as probe:
            probe.gradient(layer, 1)
    assert kept
    assert not any(tensor.requires_grad for tensor in kept)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("layer", ["layer", "stem", None])
def test_reentrant_checkpoints(layer: str) -> None:
    class Checkpointed(Net):
        reentrant = True

        def forward(self, x: Tensor) -> Tensor:
            features = checkpoint(lambda x: self.layer(x).relu(), self.stem(x), use_reentrant=self.reentrant)
            return self.head(features.flatten(2).mean(2))

    model, image = Checkpointed(), torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="reentrant"):
        gradcam(model, layer, image)
    model.reentrant = False
    torch.testing.assert_close(gradcam(model, layer, image).values, plain(model, layer or "layer", image))


def plain(model: Net, layer: str, image: Tensor) -> Tensor:
    other = Net()
    other.load_state_dict(model.state_dict())
    return gradcam(other, layer, image).values  # type: ignore[no-any-return]


def test_a_model_that_runs_in_inference_mode() -> None:
    class Inference(Net):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model, plain, image = Inference(), Net(), torch.rand(2, 1, 8, 8)
    plain.load_state_dict(model.state_dict())
    for method in ("rise:n_masks=8,seed=0", "scorecam:layer=layer", "ablationcam:layer=layer", "eigencam", "occlusion"):
        expected = medviz.explain(plain, image, method, 1)
        torch.testing.assert_close(medviz.explain(model, image, method, 1).values, expected.values)
    for method in ("gradcam:layer=layer", "gradcam", "vanillagrad"):
        with pytest.raises(ValueError, match=r"gradient|depend"):
            medviz.explain(model, image, method, 1)


def test_a_model_built_in_inference_mode() -> None:
    with torch.inference_mode():
        model = Net()
    with pytest.raises(ValueError, match=r"built under torch\.inference_mode"):
        gradcam(model)
    with pytest.raises(ValueError, match=r"built under torch\.inference_mode"):
        medviz.explain(model, torch.rand(2, 1, 8, 8), "vanillagrad")
    assert medviz.explain(model, torch.rand(2, 1, 8, 8), "scorecam").values.shape == (2, 1, 8, 8)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("layer", ["layer", None])
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.rand(2, 1, 8, 8))])
def test_scripted_models_refuse_layers_and_take_everything_else(layer: str | None, make: Any) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).relu().mean((2, 3))

    plain, image = Plain().train(), torch.rand(2, 1, 8, 8)
    model = make(plain)
    with pytest.raises(ValueError, match="scripted or traced"):
        gradcam(model, layer, image)
    with medviz.Probe(model, image) as probe:
        torch.testing.assert_close(probe.forward(image), plain(image).detach())
        assert probe.input_gradient(1).shape == image.shape
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda out: out * float("nan"), "output holds 6 values of 6 that are NaN"),
        (lambda out: out.argmax(1), "expected floating-point logits"),
        (lambda out: out.sum(), "expected floating-point logits"),
        (lambda out: out[:1], "does not have a row for each of 2 images"),
        (lambda out: {"x": out, "y": out}, "keys"),
        (lambda out: "text", "say which tensor is meant"),
    ],
)
def test_outputs_that_cannot_be_explained(break_it: Callable[[Tensor], Any], message: str) -> None:
    class Broken(Net):
        def forward(self, x: Tensor) -> Any:
            return break_it(super().forward(x))

    with pytest.raises(ValueError, match=message):
        gradcam(Broken())


def test_an_output_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="'logit' is not in the model's output"):
        gradcam(Net(), output="logit")


def test_a_number_may_be_a_key() -> None:
    class Keyed(Net):
        def forward(self, x: Tensor) -> Any:
            return {"0": super().forward(x), "aux": x.mean((2, 3))}

    net, image = Keyed(), torch.rand(2, 1, 8, 8)
    assert torch.equal(gradcam(net, "layer", image, output=0).values, gradcam(net, "layer", image, output="0").values)


def test_a_position_in_what_has_keys_and_positions() -> None:
    """As the outputs of Hugging Face have both."""

    class Both(dict[str, Tensor]):
        def __getitem__(self, key: Any) -> Tensor:
            return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)

    class Keyed(Net):
        def forward(self, x: Tensor) -> Any:
            return Both(hidden=x.mean((2, 3)), scores=super().forward(x))

    net, image = Keyed(), torch.rand(2, 1, 8, 8)
    found = [gradcam(net, "layer", image, output=output).values for output in (1, -1, "scores")]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    with pytest.raises(ValueError, match=r"`output` 'logit' is not in .* the keys \['hidden', 'scores'\]"):
        gradcam(net, "layer", image, output="logit")


def test_the_field_of_a_named_tuple_is_meant_by_its_name() -> None:
    class Both(NamedTuple):
        embedding: Tensor
        logits: Tensor

    class Named(Net):
        def forward(self, x: Tensor) -> Any:
            return Both(x.mean((2, 3)), super().forward(x))

    net, image = Named(), torch.rand(2, 1, 8, 8)
    by_name, by_place = (gradcam(net, "layer", image, output=output) for output in ("logits", 1))
    assert torch.equal(by_name.values, by_place.values)
    with pytest.raises(ValueError, match=r"a Both with the fields \['embedding', 'logits'\]"):
        gradcam(net, "layer", output="logit")


def test_a_position_in_a_tensor_is_no_output() -> None:
    """Networks with deep supervision return a list while they are trained, and a tensor in eval mode."""
    for output in (0, "logits"):
        with pytest.raises(ValueError, match=f"{output!r} is not in the model's output, a Tensor"):
            gradcam(Net(), "layer", output=output)


def test_things_that_are_no_model() -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        gradcam(lambda x: x)  # type: ignore[arg-type]
    for layer in (nn.LazyConv2d(2, 3), nn.LazyBatchNorm2d(affine=False)):
        with pytest.raises(ValueError, match="lazy"):
            gradcam(nn.Sequential(layer))
    sharded = type("FullyShardedDataParallel", (Net,), {})()
    with pytest.raises(ValueError, match="sharded"):
        gradcam(sharded)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.ones(2, 1, 8, 8, dtype=torch.int), TypeError, "floating point"),
        (torch.ones(0, 1, 8, 8), ValueError, "empty"),
        (torch.full((2, 1, 8, 8), float("nan")), ValueError, "NaN or infinite"),
        (torch.ones(1, 8, 8), ValueError, "expected"),
        (None, TypeError, "expected a tensor"),
    ],
)
def test_images_that_a_probe_refuses(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        medviz.Probe(Net(), image)


def test_a_device_that_the_model_is_not_on() -> None:
    with pytest.raises(ValueError, match=r"move it with model\.to"):
        gradcam(Net(), device="meta")


def test_rows_that_belong_to_nothing() -> None:
    with medviz.Probe(Net(), torch.rand(2, 1, 8, 8)) as probe:
        with pytest.raises(ValueError, match="3 rows for 2 images"):
            probe.forward(torch.rand(3, 1, 8, 8))
        with pytest.raises(ValueError, match="0 to 1"):
            probe.forward(torch.rand(1, 1, 8, 8), torch.tensor([2]))
        with pytest.raises(ValueError, match="no rows"):
            probe.forward(torch.rand(0, 1, 8, 8), torch.zeros(0).long())
        with pytest.raises(ValueError, match=r"`replace` gives `layer` 'layer' \(2, 1\)"):
            probe.forward(torch.rand(2, 1, 8, 8), replace={"layer": torch.zeros(2, 1)})
        with pytest.raises(ValueError, match="did you mean"):
            probe.parameters_of("heads")
    with pytest.raises(RuntimeError, match="inside of its block"):
        _ = probe.output
    with pytest.raises(ValueError, match="2 rows for 3 images"):
        medviz.explain(Net(), torch.rand(3, 1, 8, 8), "gradcam", model_args=[per_image(torch.rand(2))])
    with pytest.raises(TypeError, match="takes a tensor"):
        per_image([1, 2])  # type: ignore[arg-type]


def test_parameters_of_a_module() -> None:
    model = Net()
    with medviz.Probe(model, torch.rand(1, 1, 8, 8)) as probe:
        found = probe.parameters_of("head")
        assert probe.module_names() == ["stem", "stem.0", "stem.1", "layer", "head"]
    assert torch.equal(found["weight"], model.head.weight)
    assert not found["weight"].requires_grad


@pytest.mark.parametrize("autocast", [True, torch.bfloat16])
def test_autocast(autocast: Any) -> None:
    model, image = Net(), torch.rand(2, 1, 8, 8)
    full = gradcam(model, image=image, target=1)
    cast = gradcam(model, image=image, target=1, autocast=autocast)
    assert cast.values.dtype == torch.float32
    assert not torch.equal(cast.values, full.values)
    assert (cast.values - full.values).abs().max() <= 5e-2 * full.values.abs().max()
    with torch.autocast("cpu"):
        around = gradcam(model, image=image, target=1)
        off = gradcam(model, image=image, target=1, autocast=False)
    assert torch.equal(around.values, cast.values)
    assert torch.equal(off.values, full.values)


def test_an_open_probe_is_not_opened_again() -> None:
    probe = medviz.Probe(Classifier(2), images(2, 2, 8, 8))
    with probe:
        with pytest.raises(RuntimeError, match="open already"):
            probe.__enter__()
        assert probe.output.shape[0] == 2
    with probe:  # afterwards it may be
        assert probe.output.shape[0] == 2


def test_a_class_costs_one_backward_pass_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    backward = clean.CleanPass._backward

    def counting(self: clean.CleanPass, target: Any) -> Any:
        counted.append(target)
        return backward(self, target)

    monkeypatch.setattr(clean.CleanPass, "_backward", counting)
    with medviz.Probe(Classifier(2), images(2, 2, 8, 8), layers=["stem", "deep"]) as probe:
        for target in (1, None, 1, None):
            for layer in ("stem", "deep"):
                probe.gradient(layer, target)
    assert len(counted) == 2


@pytest.mark.parametrize("where", ["parameter", "buffer", "attribute", "list", "object"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_replaced_output_is_not_written_into_a_table_of_the_model(where: str, whole: bool) -> None:
    """A layer may return, cut off from the graph, a part of what somebody else reads too."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = torch.rand(1 if whole else 3, 2, 4, 4)
            self.layer, self.held = Reader(self.read), SimpleNamespace(table=table)
            if where == "parameter":
                self.table = nn.Parameter(table)
            elif where == "buffer":
                self.register_buffer("table", table)
            elif where == "attribute":
                self.table = table
            elif where == "list":
                self.tables = [table]

        def read(self) -> Tensor:
            if where == "list":
                return self.tables[0]
            table: Tensor = self.held.table if where == "object" else self.table
            return table

        def forward(self, x: Tensor) -> Tensor:
            return (3 * self.layer(x) + self.read()[: len(x)]).mean((2, 3))

    model, image = Table().eval(), torch.rand(1, 1, 4, 4)
    before = model.read().detach().clone()
    with torch.no_grad(), medviz.Probe(model, image, layers=["layer"]) as probe:
        replaced = probe.forward(image, replace={"layer": torch.zeros(1, 2, 4, 4)})
    torch.testing.assert_close(replaced, before[:1].mean((2, 3)))
    if not whole:  # it needs a row for each channel
        medviz.explain(model, image, "ablationcam:layer=layer", 1)
    assert torch.equal(model.read(), before)


class Reader(nn.Module):
    """Returns what `read` gives, as far as there are images, without its graph."""

    def __init__(self, read: Callable[[], Tensor]) -> None:
        super().__init__()
        self.read = [read]

    def forward(self, x: Tensor) -> Tensor:
        return self.read[0]()[: len(x)].detach()
