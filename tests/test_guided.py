"""Guided backpropagation: against its definition written out, on every way to call a rectifier, and on none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import DEVICES, Classifier, check_close, conv, explain, images, seeded
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import medviz
from medviz.explainers.guided import Guided


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class TwoLayers(nn.Module):
    """conv → activation → conv → activation → mean → linear."""

    def __init__(self, make: Callable[[], nn.Module], ndim: int = 2) -> None:
        super().__init__()
        self.first = conv(ndim, 2, 5, 3, padding=1)
        self.act1 = make()
        self.second = conv(ndim, 5, 4, 3, padding=1)
        self.act2 = make()
        self.fc = nn.Linear(4, 3)
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act2(self.second(self.act1(self.first(x)))).flatten(2).mean(2))


def by_hand(model: TwoLayers, image: Tensor, target: int) -> Tensor:
    """The definition: at each activation f the gradient g goes on as f'(x) · max(g, 0) where f(x) > 0, else as 0."""
    ndim = image.ndim - 2
    back = F.conv_transpose2d if ndim == 2 else F.conv_transpose3d
    with torch.no_grad():
        one = model.first(image)
        two = model.second(model.act1(one.clone()))
        gradient = (model.fc.weight[target] / two[0, 0].numel()).view(1, -1, *[1] * ndim).expand_as(two)
        gradient = gradient.relu() * (model.act2(two.clone()) > 0) * slope(model.act2, two)
        gradient = back(gradient, model.second.weight, padding=1)
        gradient = gradient.relu() * (model.act1(one.clone()) > 0) * slope(model.act1, one)
        return back(gradient, model.first.weight, padding=1)


def slope(activation: nn.Module, x: Tensor) -> Tensor:
    """The derivative of an activation, by plain autograd."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(activation(leaf.clone()).sum(), leaf)[0]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("device", DEVICES)
def test_the_definition_written_out(ndim: int, device: str) -> None:
    model, image = TwoLayers(nn.ReLU, ndim), images(2, 2, *(7, 6, 5)[:ndim])
    got = explain("guidedbackprop", model.to(device), image.to(device), 1)
    assert got.signed
    check_close(got.values, by_hand(model.cpu(), image, 1), 1e-5 if device == "cpu" else 1e-3)
    assert not torch.allclose(got.values, explain("vanillagrad", model.cpu(), image, 1).values)


def statement(x: Tensor) -> Tensor:
    """A change in place whose result nobody takes."""
    x = x * 1
    F.relu(x, inplace=True)
    return x


def positional(x: Tensor) -> Tensor:
    x = x * 1
    F.relu(x[:], True)
    return x


def by_keyword(x: Tensor) -> Tensor:
    x = x * 1
    torch.relu_(input=x[:])
    return x


def parts(x: Tensor) -> Tensor:
    """Views that are changed in place: the gradient reaches their base past what is hung on the views."""
    x = x * 1
    x[:, :2].relu_()
    torch.relu_(x[:, 2:3])
    F.relu(x[:, 3:], inplace=True)
    return x


def flat_view(x: Tensor) -> Tensor:
    x = x * 1
    x.flatten(1).relu_()
    return x


def residual(x: Tensor) -> Tensor:
    """What is changed in place after the rectifier is not gated again."""
    y = F.leaky_relu(x, 0.0)
    y += 0
    return y


def beside(x: Tensor) -> Tensor:
    """A rectifier that is told by position that it trains, and not that it works in place."""
    x = x * 1
    return torch.rrelu(x[:], 0.25, 0.25, True) + x


def without_values(x: Tensor) -> Tensor:
    """A maximum of one tensor that has a shape and no values."""
    torch.max(x.detach().to("meta"))
    return F.relu(x)


FORMS: dict[str, Callable[[], nn.Module]] = {
    "nn.ReLU": nn.ReLU,
    "nn.ReLU in place": lambda: nn.ReLU(inplace=True),
    "F.relu": lambda: Call(F.relu),
    "F.relu by keyword": lambda: Call(lambda x: F.relu(input=x)),
    "F.relu in place": lambda: Call(lambda x: F.relu(x * 1, inplace=True)),
    "F.relu_": lambda: Call(lambda x: F.relu_(x * 1)),
    "torch.relu": lambda: Call(torch.relu),
    "torch.relu_": lambda: Call(lambda x: torch.relu_(x * 1)),
    "Tensor.relu": lambda: Call(lambda x: x.relu()),
    "Tensor.relu_": lambda: Call(lambda x: (x * 1).relu_()),
    "clamp": lambda: Call(lambda x: torch.clamp(x, min=0)),
    "clamp by position": lambda: Call(lambda x: x.clamp(0)),
    "clamp by a tensor": lambda: Call(lambda x: torch.clamp(x, torch.zeros(()))),
    "clamp_": lambda: Call(lambda x: (x * 1).clamp_(min=0.0)),
    "clamp_min": lambda: Call(lambda x: x.clamp_min(0)),
    "maximum": lambda: Call(lambda x: torch.maximum(x, torch.zeros_like(x))),
    "maximum the other way": lambda: Call(lambda x: x.new_zeros(()).maximum(x)),
    "max": lambda: Call(lambda x: torch.max(x, other=torch.zeros(()).to(x))),
    "clamp_min_": lambda: Call(lambda x: (x * 1).clamp_min_(0)),
    "clip": lambda: Call(lambda x: x.clip(min=0)),
    "torch.clip": lambda: Call(lambda x: torch.clip(x, 0)),
    "threshold": lambda: nn.Threshold(0.0, 0.0),
    "PReLU without a slope": lambda: nn.PReLU(init=0.0),
    "LeakyReLU without a slope": lambda: nn.LeakyReLU(0.0),
    "hard tanh without a top": lambda: nn.Hardtanh(0.0, 1e6),
    "a statement": lambda: Call(statement),
    "a statement, by position": lambda: Call(positional),
    "a statement, by keyword": lambda: Call(by_keyword),
    "views in place": lambda: Call(parts),
    "a flat view in place": lambda: Call(flat_view),
    "a sum in place after it": lambda: Call(residual),
    "a maximum of one tensor before it": lambda: Call(without_values),
    "twice": lambda: Call(lambda x: F.relu(F.relu(x))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_relu_gives_one_map(form: str) -> None:
    image = images(2, 2, 7, 6)
    expected = explain("guidedbackprop", TwoLayers(nn.ReLU), image, 1).values
    model = TwoLayers(FORMS[form])
    slopes = {f"{act}.weight": torch.zeros(1) for act in ("act1", "act2")} if "PReLU" in form else {}
    model.load_state_dict(TwoLayers(nn.ReLU).state_dict() | slopes)
    assert torch.allclose(model(image), TwoLayers(nn.ReLU)(image), atol=1e-6)
    check_close(explain("guidedbackprop", model, image, 1).values, expected, 1e-6)
    smooth = explain("guidedbackpropsmooth", model, image, 1, n_samples=3, seed=0).values
    check_close(smooth, explain("guidedbackpropsmooth", TwoLayers(nn.ReLU), image, 1, n_samples=3, seed=0).values, 1e-5)


def test_one_module_shared_by_two_layers_and_under_two_names() -> None:
    image = images(2, 2, 7, 6)
    expected = explain("guidedbackprop", TwoLayers(nn.ReLU), image, 1).values
    for inplace in (False, True):
        shared = nn.ReLU(inplace=inplace)
        model = TwoLayers(lambda shared=shared: shared)  # type: ignore[misc]
        check_close(explain("guidedbackprop", model, image, 1).values, expected, 1e-6)
        assert shared.inplace is inplace


ACTIVATIONS: list[Callable[[], nn.Module]] = [
    *(nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.ReLU6, nn.Hardtanh),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus),
]


@pytest.mark.parametrize("make", ACTIVATIONS, ids=lambda m: m.__name__)
def test_smooth_and_leaky_rectifiers(make: Callable[[], nn.Module]) -> None:
    """The documented generalisation, written out; the forward output is never changed."""
    model, image = TwoLayers(make), images(2, 2, 7, 6)
    got = explain("guidedbackprop", model, image, 1)
    expected = by_hand(model, image, 1)
    check_close(got.values, expected, 1e-5)
    assert not torch.allclose(got.values, explain("vanillagrad", model, image, 1).values)
    if "inplace" in vars(make()):
        inside = explain("guidedbackprop", TwoLayers(lambda: make(inplace=True)), image, 1)  # type: ignore[call-arg]
        check_close(inside.values, expected, 1e-5)


@pytest.mark.parametrize(
    "make", [nn.ReLU, lambda: nn.ReLU(True), *ACTIVATIONS, lambda: Call(parts), lambda: Call(beside)]
)
def test_the_forward_output_is_never_changed(make: Callable[[], nn.Module]) -> None:
    model, image = TwoLayers(make), images(2, 2, 7, 6)
    expected, outputs = model(image), []
    handle = model.fc.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    with medviz.Probe(model, image, batch_size=2) as probe:
        guided = Guided(probe)
        guided.checked(probe.input_gradient(1, rule=guided.rule))
    handle.remove()
    assert len(outputs) == 5  # for the target, three to ask whether images change each other, under the rule
    for output in (outputs[0], outputs[-1]):
        assert torch.equal(output, expected)


def above_a_slope(x: Tensor) -> Tensor:
    """A bound that is zero in one column, and below it in the others."""
    return x.clamp(min=torch.linspace(-1, 0, x.shape[-1]))


def above_what_happens_to_be_zero(x: Tensor) -> Tensor:
    return torch.maximum(x, 0 * x)


@pytest.mark.parametrize(
    "make",
    [
        *(nn.Tanh, nn.Sigmoid, nn.Identity, lambda: Call(lambda x: x.clamp(min=-1)), lambda: Call(above_a_slope)),
        lambda: Call(above_what_happens_to_be_zero),
    ],
)
@pytest.mark.parametrize("method", ["guidedbackprop", "guidedbackpropsmooth"])
def test_a_network_without_rectifiers_is_refused(method: str, make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="calls no rectifier, so that guided backpropagation is the plain gradient"):
        explain(method, TwoLayers(make), images(1, 2, 7, 6), 1)


def test_a_rectifier_beside_the_way_from_the_image_does_not_count() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(images(2, 6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bchw,nhw->bn", x, F.relu(self.weight))

    with pytest.raises(ValueError, match="calls no rectifier"):
        explain("guidedbackprop", Beside(), images(1, 1, 6, 6), 1)


class Swish(nn.Module):
    """Put together from other operations: torch is never asked for the activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class QuickGELUActivation(Swish):
    """As above, by another name."""


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (ctx.saved_tensors[0] > 0)


class MemoryReLU(nn.Module):
    """A function of its own, with a backward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return _Function.apply(x)


class HonestSwish(nn.Module):
    """The same name, and torch's own function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


@pytest.mark.parametrize("make", [Swish, QuickGELUActivation])
@pytest.mark.parametrize("method", ["guidedbackprop", "guidedbackpropsmooth"])
def test_hidden_activations_are_refused_by_name(method: str, make: type[nn.Module]) -> None:
    model, image = TwoLayers(nn.ReLU), images(1, 2, 7, 6)
    model.act2 = nn.Sequential(make(), make())
    message = rf"act2\.0 \({make.__name__}\), act2\.1 \({make.__name__}\); replace them by torch's own"
    with pytest.raises(ValueError, match=message):
        explain(method, model, image, 1)
    assert not model.act2[0]._forward_hooks
    assert not model.act2[0]._forward_pre_hooks


def test_a_name_alone_is_no_reason_to_refuse() -> None:
    image = images(2, 2, 7, 6)
    expected = explain("guidedbackprop", TwoLayers(nn.SiLU), image, 1).values
    check_close(explain("guidedbackprop", TwoLayers(HonestSwish), image, 1).values, expected, 1e-6)


class ConvReLU(nn.Sequential):
    """A block that is called like an activation and holds what its maker put there."""


class AsideSwish(Swish):
    """An activation of which nothing goes back."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


def test_what_has_no_activation_of_its_own_to_hide_is_not_refused() -> None:
    image = images(2, 2, 7, 6)
    model = TwoLayers(nn.ReLU)
    model.first = ConvReLU(model.first)  # type: ignore[assignment]
    expected = explain("guidedbackprop", TwoLayers(nn.ReLU), image, 1).values
    check_close(explain("guidedbackprop", model, image, 1).values, expected, 1e-6)
    model.side = AsideSwish()
    model.first.register_forward_hook(lambda module, args, output: output + 0 * model.side(output))
    check_close(explain("guidedbackprop", model, image, 1).values, expected, 1e-6)


@pytest.mark.parametrize("form", ["nn.ReLU", "clamp", "clamp by a tensor", "clamp_min_", "maximum", "max"])
def test_behind_a_rectifier_that_gives_zero_nothing_goes_back(form: str) -> None:
    model = TwoLayers(FORMS[form])
    for bias in (model.first.bias, model.second.bias):
        nn.init.zeros_(bias)
    assert not explain("guidedbackprop", model, torch.zeros(1, 2, 7, 6), 1).values.any()


def test_an_activation_with_a_backward_pass_of_its_own_is_refused() -> None:
    """The clamp inside of its function is called through torch, yet its gradient goes another way."""
    model = TwoLayers(nn.ReLU)
    model.act1 = MemoryReLU()
    with pytest.raises(ValueError, match=r"act1 \(MemoryReLU\)"):
        explain("guidedbackprop", model, images(2, 2, 7, 6), 1)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("method", ["guidedbackprop", "guidedbackpropsmooth"])
def test_scripted_models_are_refused(method: str) -> None:
    image = images(1, 2, 7, 6)
    model = TwoLayers(nn.ReLU)
    whole = torch.jit.trace(model, image)
    with pytest.raises(ValueError, match="cannot reach into scripted or traced modules"):
        explain(method, whole, image, 1)
    model.act2 = torch.jit.script(nn.ReLU())
    with pytest.raises(ValueError, match=r"scripted or traced modules: \['act2'\]"):
        explain(method, model, image, 1)


def test_compiled_and_checkpointed_networks() -> None:
    class Checkpointed(TwoLayers):
        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(lambda y: self.act1(self.first(y)), x, use_reentrant=False)
            return self.fc(self.act2(self.second(x)).flatten(2).mean(2))

    image = images(2, 2, 7, 6)
    expected = explain("guidedbackprop", TwoLayers(nn.ReLU), image, 1).values
    assert torch.equal(explain("guidedbackprop", Checkpointed(nn.ReLU), image, 1).values, expected)
    compiled = torch.compile(TwoLayers(nn.ReLU), backend="eager")
    assert torch.equal(explain("guidedbackprop", compiled, image, 1).values, expected)  # type: ignore[arg-type]
    part = TwoLayers(nn.ReLU)
    part.act1 = torch.compile(part.act1, backend="eager")  # type: ignore[assignment]
    assert torch.equal(explain("guidedbackprop", part, image, 1).values, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    image = images(2, 2, 9, 8).to(dtype)
    full = explain("guidedbackprop", TwoLayers(nn.ReLU), image.float(), 1).values
    half = explain("guidedbackprop", TwoLayers(nn.ReLU).to(dtype), image, 1).values
    assert half.dtype == torch.float32
    assert torch.corrcoef(torch.stack([half.flatten(), full.flatten()]))[0, 1] > 0.99


def test_the_rule_ends_with_the_call_and_leaves_no_hook() -> None:
    model, image = Classifier(2), images(1, 2, 8, 8)
    before = explain("vanillagrad", model, image, 1).values
    explain("guidedbackprop", model, image, 1)
    assert torch.equal(explain("vanillagrad", model, image, 1).values, before)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


class _GivesNoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


@pytest.mark.parametrize("method", ["guidedbackprop", "guidedbackpropsmooth:n_samples=2"])
def test_a_rectifier_that_gets_no_gradient(method: str) -> None:
    class Gated(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            features = self.stem(x)
            gate = torch.relu(features.flip(1))
            return self.fc(self.deep(_GivesNoGradient.apply(features, gate)).flatten(2).mean(2))

    model, image = Gated(2), images(1, 2, 9, 8)
    assert explain(method, model, image, 1).values.any()
