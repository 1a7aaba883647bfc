"""What a model's own error becomes: something that says what to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import medviz
from medviz.model_arguments import ModelArguments
from medviz.probe.failures import clearer


def network(ndim: int, channels: int = 1, norm: bool = True) -> nn.Module:
    kinds = {name: getattr(nn, f"{name}{ndim}d") for name in ("Conv", "BatchNorm", "AdaptiveAvgPool")}
    inside = [kinds["BatchNorm"](4)] if norm else []
    return nn.Sequential(
        kinds["Conv"](channels, 4, 3), *inside, kinds["AdaptiveAvgPool"](1), nn.Flatten(), nn.Linear(4, 3)
    )


@pytest.mark.parametrize("method", ["gradcam", "vanillagrad", "occlusion"])
@pytest.mark.parametrize(
    ("model", "shape", "says"),
    [
        (
            network(3),
            (1, 8, 8, 8),
            r"are 3-D, and `image` \(1, 8, 8, 8\) is a batch of 2-D .* image\[None\], or .* own",
        ),
        (
            network(3, norm=False),
            (1, 8, 8, 8),
            r"are 3-D, .* image\[None\], or .* image\[:, None\]. .* cannot be multip",
        ),
        (network(2), (1, 1, 8, 6, 6), r"are 2-D, and .* is a batch of 3-D images. Explain .* image\[:, :, 4\]"),
        (
            network(2),
            (1, 3, 8, 8),
            r"takes images of 1 channel, and `image` \(1, 3, 8, 8\) has 3. The model's own error",
        ),
        (network(3, 2), (2, 8, 8, 8, 2), r"of 2 channels, and `image` .* has 8. Put .* image.movedim\(-1, 1\)"),
    ],
)
def test_images_that_do_not_suit_the_model(method: str, model: nn.Module, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        medviz.explain(model, torch.rand(shape), method)


def test_what_a_model_takes_beside_the_image_is_asked_for() -> None:
    class Aged(nn.Module):
        def forward(self, x: Tensor, age: Tensor) -> Tensor:
            return x.mean((2, 3)) * age

    with pytest.raises(TypeError, match=r"argument: 'age'; hand over what .* with `model_args` or `model_kwargs`"):
        medviz.explain(Aged(), torch.rand(1, 1, 8, 8), "vanillagrad")


class Shifted(nn.Module):
    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return (x + shift[:, None, None, None]).mean((2, 3))


@pytest.mark.parametrize("size", [2, 5])
def test_a_row_for_each_image_is_to_be_marked_where_images_go_in_parts(size: int) -> None:
    image, shift = torch.rand(6, 1, 8, 8), torch.arange(6.0)
    says = r"argument 0 has 6 rows, and \d of 6 images are in this pass; .* mark it: medviz.per_image.* own error"
    with pytest.raises(ValueError, match=says):
        medviz.explain(Shifted(), image, "vanillagrad", batch_size=size, model_args=(shift,))
    marked = (medviz.per_image(shift),)
    assert len(medviz.explain(Shifted(), image, "vanillagrad", batch_size=size, model_args=marked)) == 6


def test_an_argument_of_another_length_is_not_blamed() -> None:
    with pytest.raises(RuntimeError, match="must match the size"):
        medviz.explain(Shifted(), torch.rand(6, 1, 8, 8), "vanillagrad", batch_size=2, model_args=(torch.ones(5),))


@pytest.mark.parametrize(
    "err",
    [
        TypeError("unsupported operand"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_an_error_of_another_reason_stays_as_it_is(err: Exception) -> None:
    assert clearer(err, network(3), torch.rand(1, 1, 8, 8), ModelArguments()) is None


def test_an_error_further_down_is_none_of_the_images() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(5, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)).mean((2, 3))

    with pytest.raises(RuntimeError, match=r"expected input\[1, 4, 6, 6\] to have 5 channels") as caught:
        medviz.explain(Wrong(), torch.rand(1, 1, 8, 8), "vanillagrad")
    assert caught.type is RuntimeError


def test_an_error_of_medviz_is_not_put_on_the_images() -> None:
    class Slab(nn.Module):
        """Takes the channels of a 2-D image for slices, without gradients."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.conv(x[:, None]).mean((2, 3, 4))

    with pytest.raises(ValueError, match=r"^`layer` 'conv' runs without gradients"):
        medviz.explain(Slab(), torch.rand(1, 4, 8, 8), "gradcam(layer=conv)")
