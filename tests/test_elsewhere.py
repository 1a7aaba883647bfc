"""On a device that does not mix with the CPU, every method says what it says on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import faraway
import numpy as np
import pytest
import torch
from networks import DEVICES, OURS, TOLERANCE, Classifier, Tokens, UNet, check_close, images
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import medviz
from medviz import tensors
from medviz.probe import perturbed
from medviz.visualize import blend_images

ELSEWHERE = [device for device in DEVICES if device != "cpu"]
FEW = {
    "rise": ":n_masks=20,cells=3,seed=1",
    "smoothgrad": ":n_samples=4,seed=1",
    "guidedbackpropsmooth": ":n_samples=4,seed=1",
    "integratedgradients": ":steps=8",
}
METHODS = [
    *(entry.name + FEW.get(entry.name, "") for entry in OURS),
    "gradcam:layer=[stem,deep]",
    "gradcam:layer=deep,aligned=true",
    "integratedgradients:steps=8,baseline=mean",
    "integratedgradients:steps=2,tolerance=0.01",
    "smoothgrad:n_samples=4,seed=1,statistic=variance",
    "occlusion:mask_size=4,overlap=0.5,per_channel=true",
    "occlusion:mask_size=4,overlap=0.5,incremental=false",
    "occlusion:mask_size=4,overlap=0.5,growth=0.5",
    "occlusion:mask_size=4,overlap=0.5,refine=1",
    "occlusion:mask_size=4,region=[[2,8],[0,9]]",
]
SUMMING = {"eigencam", "integratedgradients", "smoothgrad", "guidedbackpropsmooth", "occlusion", "rise"}
OCCLUDERS = [entry.name for entry in medviz.registry.entries("occluders") if entry.package == "medviz-xai"]


@pytest.fixture(params=ELSEWHERE)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def narrow() -> Iterator[str]:
    """A device without float64."""
    if not faraway.DEVICES:
        pytest.skip("this PyTorch cannot be told of a device")
    tensors._has_float64.cache_clear()
    with faraway.there(float64=False):
        yield faraway.NAME
    tensors._has_float64.cache_clear()


@pytest.fixture(autouse=True)
def _by_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what can be run incrementally so, without clocks."""
    monkeypatch.setattr(perturbed, "is_timed", lambda device: False)


def check_same(device: str, model: nn.Module, image: Tensor, method: str, target: Any = None, **options: Any) -> None:
    """Explain on the CPU and on the device, and hold the maps against each other."""
    expected = medviz.explain(model, image, method, target, **options)
    result = medviz.explain(model.to(device), image.to(device), method, target, **options)
    assert {tensor.device.type for tensor in (result.values, result.raw, result.image) if tensor is not None} == {"cpu"}
    assert [type(score) for score in result.scores] == [float] * len(image)
    check_close(result.values, expected.values, 3 * TOLERANCE[device])  # more rows at once than on a CPU


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, ndim: int, device: str) -> None:
    if "region" in method and ndim == 3:
        method = method.replace("[0,9]", "[0,9],[1,6]")
    image = images(2, 2, *((12, 13) if ndim == 2 else (8, 9, 7)))
    check_same(device, Classifier(ndim), image, f"medviz-xai/{method}", torch.tensor([2, 0]))


@pytest.mark.parametrize("method", [method for method in METHODS if method.partition(":")[0] in SUMMING])
def test_sums_where_there_is_no_float64(method: str, narrow: str) -> None:
    check_same(narrow, Classifier(2), images(2, 2, 12, 13), f"medviz-xai/{method}", torch.tensor([2, 0]))


@pytest.mark.parametrize("occluder", OCCLUDERS)
def test_every_occluder(occluder: str, device: str) -> None:
    check_same(
        device,
        Classifier(2),
        images(2, 2, 12, 13),
        f"medviz-xai/occlusion:mask_size=4,overlap=0.5,occluder={occluder}",
        1,
    )


@pytest.mark.parametrize("mask", ["predicted", "positive", None, "here", "there"])
@pytest.mark.parametrize(
    "method", ["gradcam:layer=bottom", "vanillagrad", "occlusion:mask_size=6,overlap=0.5,refine=1"]
)
def test_masks_on_either_side(method: str, mask: Any, device: str) -> None:
    if mask in ("here", "there"):
        mask = images(2, 12, 13, seed=3).gt(0).to(device if mask == "there" else "cpu")
    check_same(device, UNet(2), images(2, 1, 12, 13), f"medviz-xai/{method}", medviz.SegmentationTarget(1, mask))


@pytest.mark.parametrize("method", METHODS)
def test_an_output_on_the_cpu(method: str, device: str) -> None:
    """As that of a network that puts a large volume together from parts."""
    image, options = images(2, 2, 12, 13), {"output": lambda output: output.cpu()}
    check_same(device, Classifier(2), image, f"medviz-xai/{method}", 1, **options)


@pytest.mark.parametrize("mask", ["predicted", None, "here", "there"])
@pytest.mark.parametrize("method", ["gradcam:layer=bottom", "vanillagrad", "occlusion:mask_size=6,overlap=0.5"])
def test_a_segmentation_on_the_cpu(method: str, mask: Any, device: str) -> None:
    if mask in ("here", "there"):
        mask = images(2, 12, 13, seed=3).gt(0).to(device if mask == "there" else "cpu")
    target, options = medviz.SegmentationTarget(1, mask), {"output": lambda output: output.cpu()}
    check_same(device, UNet(2), images(2, 1, 12, 13), f"medviz-xai/{method}", target, **options)


@pytest.mark.parametrize("first", ["here", "there"])
@pytest.mark.parametrize("method", [method for method in METHODS if "growth" not in method])  # the rest is exact
def test_a_model_on_two_devices(method: str, first: str, device: str) -> None:
    class Split(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.deep(self.stem(x).to(self.fc.weight.device)))

    image, split = images(2, 2, 12, 13), Split(2)
    split.stem.to(device if first == "there" else "cpu")
    for part in (split.deep, split.fc):
        part.to("cpu" if first == "there" else device)
    expected = medviz.explain(Classifier(2), image, f"medviz-xai/{method}", 1)
    result = medviz.explain(split, image, f"medviz-xai/{method}", 1)
    check_close(result.values, expected.values, 3 * TOLERANCE[device])


def test_images_on_two_devices_are_no_batch(device: str) -> None:
    image = medviz.Image(images(1, 2, 12, 13)[0])
    with pytest.raises(ValueError, match="must be on one device"):
        medviz.explain(Classifier(2).to(device), [image, medviz.Image(image.data.to(device))], "gradcam", 1)


@pytest.mark.parametrize("side", ["here", "there"])
def test_classes_and_what_the_model_takes_beside_the_image(side: str, device: str) -> None:
    class Shifted(Classifier):
        def forward(self, x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
            return super().forward(x + shift.view(-1, 1, 1, 1)) * factor

    there = device if side == "there" else "cpu"
    image, shift, factor = images(3, 2, 12, 13), torch.tensor([0.0, 1.0, -1.0]), torch.tensor(2.0)
    for method in ("medviz-xai/layercam", "medviz-xai/occlusion:mask_size=4,overlap=0.5", "medviz-xai/scorecam"):
        results = []
        for where, placed in (("cpu", "cpu"), (device, there)):
            options: dict[str, Any] = {"model_args": [medviz.per_image(shift.to(placed))]}
            options["model_kwargs"] = {"factor": factor.to(where)}
            classes = torch.tensor([2, 0, 1]).to(placed)
            results.append(medviz.explain(Shifted().to(where), image.to(placed), method, classes, **options).values)
        check_close(results[1], results[0], TOLERANCE[device])


@pytest.mark.parametrize("method", ["gradcam:layer=block", "scorecam:layer=block", "vanillagrad"])
def test_tokens(method: str, device: str) -> None:
    check_same(device, Tokens(), images(2, 1, 16, 16), f"medviz-xai/{method}", 1)


@pytest.mark.parametrize("layer", ["stem", "deep"])
def test_a_checkpoint_is_run_again_in_another_thread(layer: str, device: str) -> None:
    class Checkpointed(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(lambda x: self.deep(self.stem(x)), x, use_reentrant=False))

    check_same(device, Checkpointed(2), images(2, 2, 12, 13), f"medviz-xai/gradcam:layer={layer}", 1)


def test_what_a_model_keeps_from_pass_to_pass(device: str) -> None:
    class Averaging(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.mean += x.mean()
            self.seen.append(x.mean())
            return super().forward(x + self.mean) * len(self.seen)

    image = images(2, 2, 12, 13)
    for method in ("medviz-xai/occlusion:mask_size=4,overlap=0.5", "medviz-xai/smoothgrad:n_samples=4,seed=1"):
        model = Averaging().to(device)
        values = medviz.explain(model, image, method, 1, batch_size=3).values
        expected = medviz.explain(Averaging(), image, method, 1, batch_size=3).values
        check_close(values, expected, TOLERANCE[device])
        assert model.mean.device.type == torch.device(device).type
        assert float(model.mean.cpu()) == 0
        assert not model.seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["gradcam", "eigencam", "integratedgradients:steps=4", "rise:n_masks=20,seed=1"])
def test_half_precision(method: str, dtype: torch.dtype, device: str) -> None:
    model, image = Classifier(2).to(dtype), images(1, 2, 12, 13, dtype=dtype)
    expected = medviz.explain(model, image, f"medviz-xai/{method}", 1).values
    values = medviz.explain(model.to(device), image.to(device), f"medviz-xai/{method}", 1).values
    check_close(values, expected, 2e-2)


KINDS = [torch.float32, torch.bfloat16, torch.uint8, torch.int64]


@pytest.mark.parametrize("kind", KINDS)
def test_blending(kind: torch.dtype, device: str) -> None:
    check_blending(device, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_blending_where_there_is_no_float64(kind: torch.dtype, narrow: str) -> None:
    check_blending(narrow, kind)


def check_blending(device: str, kind: torch.dtype) -> None:
    image = (images(3, 12, 13, 5) * 40 + 100).to(kind)
    label = images(1, 12, 13, 5, seed=1).clamp(min=0)
    heat = blend_images(image.to(device), label.to(device), cmap="jet")
    assert heat.device.type == torch.device(device).type
    torch.testing.assert_close(heat.cpu(), blend_images(image, label, cmap="jet"))
    labels = blend_images(image.to(device), (label * 3).long().to(device))
    torch.testing.assert_close(labels.cpu(), blend_images(image, (label * 3).long()))


def test_float64(device: str) -> None:
    model, image = Classifier(2).double(), images(2, 2, 12, 13, dtype=torch.float64)
    expected = medviz.explain(model, image, ["medviz-xai/gradcam", "medviz-xai/occlusion:mask_size=4,overlap=0.5"], 1)
    results = medviz.explain(
        model.to(device), image, ["medviz-xai/gradcam", "medviz-xai/occlusion:mask_size=4,overlap=0.5"], 1
    )
    for result, other in zip(results, expected, strict=True):
        assert result.values.dtype == torch.float64
        check_close(result.values, other.values, 1e-9)


REFUSED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda far, near: far + near,
    "matmul": lambda far, near: near @ far,
    "cat": lambda far, near: torch.cat([far, near]),
    "in place": lambda far, near: near.add_(far),
    "numpy": lambda far, near: np.asarray(far),
    "index": lambda far, near: near[far.long()],
    "values at an index": lambda far, near: far.index_put_((torch.tensor([0]),), near[:1].long()),
    "a single number, in place": lambda far, near: near.sum().add_(far.sum()),
    "generator": lambda far, near: torch.rand(3, generator=torch.Generator(), device=far.device),
}


@pytest.mark.parametrize("device", faraway.DEVICES)
@pytest.mark.parametrize("mixture", REFUSED)
def test_the_pretended_device_refuses_mixtures(mixture: str, device: str) -> None:
    """Else the tests above would show nothing."""
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[mixture](torch.ones(2, 2, device=device), torch.ones(2, 2))


def test_a_device_without_float64(narrow: str) -> None:
    with pytest.raises(TypeError, match="no float64"):
        torch.ones(2, device=narrow).double()
