"""Maps that are known on paper, and the papers' formulas written out over plain autograd."""

from __future__ import annotations

import pytest
import torch
from networks import Classifier, Linear, check_close, conv, explain, images
from torch import Tensor, nn

IMAGE = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
X = IMAGE[0, 0]


@pytest.fixture
def paper() -> Linear:
    """Feature maps x, 2x and −x; the weights of class 0 are 3, −½ and 1, so that Σ w A = 3x − x − x = x."""
    return Linear([1, 2, -1], [[3, -0.5, 1], [1, 1, 1]], [0.25, -7])


@pytest.mark.parametrize(
    ("method", "parameters", "factor"),
    [
        ("cam", {}, 1),  # Σ w A
        ("gradcam", {}, 1 / 4),  # each gradient is w / 4 voxels
        ("hirescam", {}, 1 / 4),
        ("hirescam", {"relu": False}, 1 / 4),
        ("xgradcam", {}, 1 / 4),  # a constant gradient is its own weighted mean
        ("layercam", {}, (3 - 1) / 4),  # without the negative weight: 3x − x
        ("gradcampp", {}, 3 / (2 + 3 * 2.5) - 1 / (2 - 1 * 2.5)),  # w / (2 + w · mean A) of the positive weights
        ("eigencam", {}, 6**0.5),  # (1, 2, −1) is the only component
        ("ablationcam", {}, 2.5 * (3 - 2 + 1) / 2.75),  # falls 7.5, −2.5, −2.5 of the score 2.75: (7.5 − 5 + 2.5) x
    ],
)
def test_a_linear_network(paper: Linear, method: str, parameters: dict[str, bool], factor: float) -> None:
    attribution = explain(method, paper, IMAGE, 0, layer="conv", **parameters)
    assert attribution.raw is not None
    check_close(attribution.raw[0, 0], factor * X, 1e-6)
    check_close(attribution.values[0, 0], factor * X, 1e-6)
    assert attribution.scores == (2.75,)


def test_scorecam_of_the_linear_network(paper: Linear) -> None:
    mask = (X - 1) / 3  # of the maps x and 2x; the third, −x, lets through the opposite
    masked = [(X * mask).mean(), (X * mask).mean(), (X * (1 - mask)).mean()]
    weights = torch.stack(masked).softmax(0)  # the score of an image is its mean, and the bias cancels
    expected = (weights[0] + 2 * weights[1] - weights[2]) * X
    check_close(explain("scorecam", paper, IMAGE, 0, layer="conv").values[0, 0], expected, 1e-6)


def test_what_speaks_against_a_class_is_zero_or_negative(paper: Linear) -> None:
    paper.fc.weight.data[0] *= -1
    assert explain("gradcam", paper, IMAGE, 0, layer="conv").values.eq(0).all()
    assert explain("hirescam", paper, IMAGE, 0, layer="conv").values.eq(0).all()
    signed = explain("hirescam", paper, IMAGE, 0, layer="conv", relu=False)
    assert signed.signed
    check_close(signed.values[0, 0], -X / 4, 1e-6)
    check_close(explain("cam", paper, IMAGE, 0, layer="conv").values[0, 0], -X, 1e-6)


def parts(model: Classifier, image: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the activation of `deep`, the scores and their gradient, by plain autograd."""
    activation = model.deep(model.stem(image)).detach().requires_grad_()
    scores = model.head(activation).gather(1, classes[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(scores.sum(), activation)
    return activation.detach(), scores.detach(), gradient


class Curved(Classifier):
    """The same, with a head that is not linear, so that gradients differ from voxel to voxel."""

    def head(self, features: Tensor) -> Tensor:
        return self.fc(torch.tanh(features).flatten(2).pow(2).mean(2) + features.flatten(2).amax(2))


CASES = [(Classifier(2), (2, 9, 7)), (Classifier(3, seed=1), (2, 5, 7, 6)), (Curved(2), (2, 9, 7))]
CASES.append((Curved(3, seed=2), (2, 6, 5, 7)))
CLASSES = torch.tensor([2, 0, 3])


def over(weights: Tensor, activation: Tensor) -> Tensor:
    return (weights * activation).sum(1, keepdim=True)


def mean(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("model", "shape"), CASES, ids=["2d", "3d", "curved-2d", "curved-3d"])
def test_formulas_over_plain_autograd(model: Classifier, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model, image = model.to(dtype), images(3, *shape, dtype=dtype)
    a, _, g = parts(model, image, CLASSES)
    voxels = a[0, 0].numel()
    share = g**2 / (2 * g**2 + g**3 * voxels * mean(a))  # zero gradients do not occur here
    expected = {
        "gradcam": over(mean(g), a).relu(),
        "hirescam": over(g, a).relu(),
        "layercam": over(g.relu(), a).relu(),
        "xgradcam": over(mean(a * g) / mean(a).clamp(min=1e-30), a).relu(),
        "gradcampp": over(voxels * mean(torch.nan_to_num(share) * g.relu()), a).relu(),
    }
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for method, raw in expected.items():
        attribution = explain(method, model, image, CLASSES, layer="deep")
        assert attribution.raw is not None
        assert attribution.raw.dtype == dtype
        check_close(attribution.raw, raw, tolerance)
        mode = "bilinear" if len(shape) == 3 else "trilinear"
        check_close(attribution.values, nn.functional.interpolate(raw, size=shape[1:], mode=mode), tolerance)
    model.float()


def test_gradcampp_is_the_papers_formula_with_derivatives_of_the_exponential() -> None:
    """Y = exp(S): second and third derivatives by autograd, voxel by voxel; proportional by exp(S) of each image."""
    model, image = Classifier(2, classes=3, width=3).double(), images(2, 2, 4, 4, dtype=torch.float64)
    classes = torch.tensor([1, 0])
    a = model.deep(model.stem(image)).detach().requires_grad_()
    scores = model.head(a).gather(1, classes[:, None])[:, 0]
    y = scores.exp().sum()

    def diagonal(first: Tensor) -> Tensor:
        """The derivative of each element with respect to the same voxel of `a`."""
        flat = first.flatten()
        rows = [torch.autograd.grad(flat[i], a, create_graph=True)[0].flatten()[i] for i in range(len(flat))]
        return torch.stack(rows).reshape(first.shape)

    (y1,) = torch.autograd.grad(y, a, create_graph=True)
    y2 = diagonal(y1)
    y3 = diagonal(y2)
    alpha = y2 / (2 * y2 + a.sum((2, 3), keepdim=True) * y3)
    paper = over((alpha * y1.relu()).sum((2, 3), keepdim=True), a).relu()
    raw = explain("gradcampp", model, image, classes, layer="deep").raw
    assert raw is not None
    check_close(raw * scores.detach().exp().view(-1, 1, 1, 1), paper, 1e-10)


@pytest.mark.parametrize("bias", [100.0, 1e4, -1e4])
def test_gradcampp_knows_no_overflow(bias: float) -> None:
    model = Classifier(2)
    expected = explain("gradcampp", model, images(2, 2, 8, 8), 1, layer="deep").values
    model.fc.bias.data += bias
    got = explain("gradcampp", model, images(2, 2, 8, 8), 1, layer="deep")
    assert abs(got.scores[0] - bias) < 50  # type: ignore[index]
    check_close(got.values, expected)


@pytest.mark.parametrize("scale", [1e-18, 1e15])
def test_gradcampp_neither_under_nor_overflows_with_small_and_large_gradients(scale: float) -> None:
    """The cube of these gradients is no float32; for tiny ones α is one half."""
    model, image = Classifier(2), images(2, 2, 8, 8)
    model.fc.weight.data *= scale
    raw = explain("gradcampp", model, image, 1, layer="deep").raw
    assert raw is not None
    a, _, g = parts(model.double(), image.double(), torch.tensor([1, 1]))
    total = a.sum((2, 3), keepdim=True)
    check_close(raw, over((g.relu() / (2 + g * total)).sum((2, 3), keepdim=True), a).relu())


def test_a_voxel_whose_share_has_no_denominator_counts_for_nothing_in_gradcampp() -> None:
    """Maps x and −x, whose sums are 8 and −8, and gradients of ¼: for the second, 2 + g Σ A is 0."""
    model, image = Linear([1, -1], [[1, 1]], [0]), torch.tensor([[[[1.0, 2.0], [3.0, 2.0]]]])
    check_close(explain("gradcampp", model, image, 0, layer="conv").values, image / 4, 1e-6)


def test_ablationcam_of_a_network_without_gradients_takes_a_dead_map() -> None:
    class Detached(Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    model = Detached([1, 2, 0], [[3, 1, 1]], [0])  # falls 7.5, 5 and 0 of the score 12.5
    check_close(explain("ablationcam", model, IMAGE, 0, layer="conv").values[0, 0], (0.6 + 2 * 0.4) * X, 1e-6)


def test_ablationcam_written_out() -> None:
    model, image, classes = Classifier(3), images(2, 2, 6, 5, 7), torch.tensor([3, 1])
    with torch.no_grad():
        a = model.deep(model.stem(image))
        clean = model.head(a).gather(1, classes[:, None])
        weights = torch.zeros(a.shape[:2])
        for k in range(a.shape[1]):
            without = a.clone()
            without[:, k] = 0
            weights[:, k] = ((clean - model.head(without).gather(1, classes[:, None])) / clean.abs())[:, 0]
    expected = torch.einsum("bk,bkxyz->bxyz", weights, a)[:, None].relu()
    raw = explain("ablationcam", model, image, classes, layer="deep").raw
    assert raw is not None
    check_close(raw, expected)


@pytest.mark.parametrize("ndim", [2, 3])
def test_scorecam_written_out(ndim: int) -> None:
    shape = (9, 7, 5)[:ndim]
    model, image, classes = Classifier(ndim), images(2, 2, *shape), torch.tensor([3, 1])
    expected = []
    with torch.no_grad():
        features = model.deep(model.stem(image))
        for b in range(2):
            up = nn.functional.interpolate(
                features[b : b + 1], size=shape, mode="bilinear" if ndim == 2 else "trilinear"
            )
            scores = []
            for k in range(up.shape[1]):
                mask = (up[0, k] - up[0, k].min()) / (up[0, k].max() - up[0, k].min())
                scores.append(model(image[b : b + 1] * mask)[0, classes[b]])
            weights = torch.stack(scores).softmax(0).view(-1, *[1] * ndim)
            expected.append((weights * features[b]).sum(0).relu())
    raw = explain("scorecam", model, image, classes, layer="deep").raw
    assert raw is not None
    check_close(raw[:, 0], torch.stack(expected))


def test_a_constant_map_gets_no_weight_in_scorecam() -> None:
    """The second map is constant: without it, one map is left, whose weight is 1."""
    model = Linear([1, 0], [[1, 5]], [0])
    check_close(explain("scorecam", model, IMAGE, 0, layer="conv").values[0, 0], X, 1e-6)
    both = Linear([0, 0], [[1, 5]], [0])
    assert explain("scorecam", both, IMAGE, 0, layer="conv").values.eq(0).all()


@pytest.mark.parametrize("shape", [(2, 12, 10), (2, 3, 2), (2, 4, 5, 6)], ids=["voxels", "maps", "3d"])
def test_eigencam_is_the_first_singular_vector(shape: tuple[int, ...]) -> None:
    """For more maps than voxels too; its sign is such that the map's sum is positive."""
    model, image = Classifier(len(shape) - 1, width=8), images(3, *shape)
    raw = explain("eigencam", model, image, layer="stem").raw
    assert raw is not None
    for b, features in enumerate(model.stem(image).detach().double().flatten(2)):
        _, values, vectors = torch.linalg.svd(features, full_matrices=False)
        projection = values[0] * vectors[0]
        projection = -projection if projection.sum() < 0 else projection
        check_close(raw[b].flatten(), projection.relu())


@pytest.mark.parametrize("ndim", [2, 3])
def test_identities_of_a_network_with_global_average_pooling(ndim: int) -> None:
    model, image = Classifier(ndim), images(4, 2, *(8, 9, 5)[:ndim])
    classes = torch.tensor([0, 1, 2, 3])
    maps = {
        name: explain(name, model, image, classes, layer="deep", **parameters)
        for name, parameters in [("cam", {}), ("gradcam", {}), ("xgradcam", {}), ("hirescam", {"relu": False})]
    }
    raw = {name: attribution.raw for name, attribution in maps.items()}
    scores = torch.tensor(maps["cam"].scores)
    bias = model.fc.bias.detach()[classes]
    voxels = raw["cam"][0].numel()
    check_close(raw["hirescam"].flatten(1).sum(1) + bias, scores)
    check_close(raw["cam"].flatten(1).mean(1) + bias, scores)
    check_close(raw["gradcam"], raw["cam"].relu() / voxels)
    check_close(raw["hirescam"], raw["cam"] / voxels)
    check_close(raw["xgradcam"], raw["gradcam"])


def test_xgradcam_conserves_the_score_of_a_relu_network_without_biases() -> None:
    """Σ over space of Σ w A = Σ A · g, which is the score where everything above is piecewise linear."""
    torch.manual_seed(0)
    model = nn.Sequential(
        conv(2, 1, 6, 3), nn.ReLU(), conv(2, 6, 5, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3, bias=False)
    )
    image = images(4, 1, 9, 8)
    model(image)
    model.eval()
    a = model[:2](image).detach()
    for target in range(3):
        attribution = explain("hirescam", model, image, target, layer="1", relu=False)
        assert attribution.raw is not None
        check_close(attribution.raw.flatten(1).sum(1), torch.tensor(attribution.scores))
        leaf = a.clone().requires_grad_()
        (g,) = torch.autograd.grad(model[2:](leaf)[:, target].sum(), leaf)
        weights = (a * g).sum((2, 3)) / a.sum((2, 3)).clamp(min=1e-30)
        signed = torch.einsum("bk,bkxy->bxy", weights, a)
        check_close(signed.flatten(1).sum(1), torch.tensor(attribution.scores))
        raw = explain("xgradcam", model, image, target, layer="1").raw
        assert raw is not None
        check_close(raw[:, 0], signed.relu())


def test_xgradcam_gives_no_weight_to_a_dead_map() -> None:
    model = Linear([1, 0], [[2, 3]], [0])
    check_close(explain("xgradcam", model, IMAGE, 0, layer="conv").values[0, 0], X / 2, 1e-6)


def test_cam_of_a_convolution_of_one_voxel_and_of_a_named_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(2, 1, 3, 3), nn.AdaptiveAvgPool2d(1), conv(2, 3, 2, 1)).eval()
    image = images(2, 1, 6, 6)
    attribution = explain("cam", model, image, 1, layer="0")
    assert attribution.raw is not None
    expected = torch.einsum("k,bkxy->bxy", model[2].weight[1, :, 0, 0], model[0](image))
    check_close(attribution.raw[:, 0], expected)
    check_close(explain("cam", model, image, 1, layer="0", fc="2").raw, attribution.raw)  # type: ignore[arg-type]
    check_close(explain("cam", model, image, 1, layer="0", fc=2).raw, attribution.raw)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not in the model"):
        explain("cam", model, image, 1, layer="0", fc="3")


def test_cam_refuses_networks_that_it_is_not_valid_for() -> None:
    model, image = Curved(2), images(2, 2, 8, 8)
    with pytest.raises(ValueError, match="CAM is not valid for `layer` 'deep'"):
        explain("cam", model, image, 1, layer="deep")
    with pytest.raises(ValueError, match="needs one linear layer from 6 features to 4 logits"):
        explain("cam", model, image, 1, layer="stem")
    with pytest.raises(ValueError, match="CAM explains one output of a linear layer"):
        explain("cam", Classifier(2), image, lambda out: out[:, 0], layer="deep")


def test_cam_finds_two_linear_layers_that_fit_and_asks() -> None:
    class Two(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(7, 4)

        def head(self, features: Tensor) -> Tensor:
            return self.fc(features.flatten(2).mean(2)) + 0 * self.other(features.flatten(2).mean(2))

    with pytest.raises(ValueError, match=r"these fit: \['fc', 'other'\].*Name it with `fc`"):
        explain("cam", Two(), images(1, 2, 8, 8), 1, layer="deep")
    assert explain("cam", Two(), images(1, 2, 8, 8), 1, layer="deep", fc="fc").values.ne(0).any()
