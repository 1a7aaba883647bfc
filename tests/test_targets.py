"""From an output to one score for each image, on paper."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from networks import Classifier, UNet, check_close, images
from torch import Tensor, nn

import medviz
from medviz.targets import CallableTarget, ClassTarget, FixedTarget, PredictedTarget, as_target, as_targets, fix, take

LOGITS = torch.tensor([[1.0, 5.0, 2.0], [7.0, -3.0, 0.0]])
FIRST = torch.tensor([1.0, 0.0]).view(2, 1, 1)  # of two images
SEGMENTATION = torch.arange(2 * 2 * 2 * 3, dtype=torch.float32).reshape(2, 2, 2, 3)
EVERY = torch.arange(2)


def scores(target: Any, output: Tensor) -> list[float]:
    return fix(target, output).score(output, torch.arange(len(output))).tolist()


@pytest.mark.parametrize(
    ("target", "label", "expected", "classes"),
    [
        (None, "predicted", [5, 7], [1, 0]),
        (2, "class 2", [2, 0], [2, 2]),
        (np.int64(2), "class 2", [2, 0], [2, 2]),
        (torch.tensor(1), "class 1", [5, -3], [1, 1]),
        (torch.tensor([2, 1]), "classes 2 1", [2, -3], [2, 1]),
        (torch.tensor([2, 1], dtype=torch.uint8), "classes 2 1", [2, -3], [2, 1]),
        (np.array([0, 2]), "classes 0 2", [1, 0], [0, 2]),
        (medviz.RegressionTarget(1), "value 1", [5, -3], [1, 1]),
        (medviz.RegressionTarget(), "value 0", [1, 7], [0, 0]),
        (medviz.RegressionTarget(np.int64(1)), "value 1", [5, -3], [1, 1]),
        (medviz.ClassTarget(np.array([0, 2])), "classes 0 2", [1, 0], [0, 2]),
    ],
    ids=lambda value: str(value)[:16],
)
def test_one_logit(target: Any, label: str, expected: list[float], classes: list[int]) -> None:
    fixed = fix(target, LOGITS)
    assert fixed.label == label == as_target(target).label
    assert scores(target, LOGITS) == expected
    assert fixed.classes is not None
    assert fixed.classes.tolist() == classes
    assert fixed.sign == 1


@pytest.mark.parametrize("index", [1.7, "2", True, None, np.bool_(True), np.float32(1), torch.tensor(1j)], ids=repr)
def test_a_class_is_an_int(index: Any) -> None:
    with pytest.raises(TypeError, match=r"a class is named by its index, an int|classes must be integers"):
        ClassTarget(index)


def test_a_fixed_target_reads_any_rows_of_its_images() -> None:
    """Perturbed copies: five rows, of the images 1, 0, 0, 1, 1; the predicted class stays that of the clean output."""
    fixed = fix(None, LOGITS)
    rows = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 1], [2, 9, 9]])
    assert fixed.score(rows, torch.tensor([1, 0, 0, 1, 1])).tolist() == [1, 5, 8, 0, 2]
    assert fix(fixed, rows) is fixed


def test_one_logit_is_the_logit_itself() -> None:
    output = torch.tensor([[3.0], [-2.0]])
    for target in (None, 0, medviz.BinaryTarget(), medviz.BinaryTarget(True)):
        assert scores(target, output) == [3, -2]
    negative = fix(medviz.BinaryTarget(positive=False), output)
    assert negative.score(output, EVERY).tolist() == [-3, 2]
    assert negative.sign == -1
    assert (negative.label, medviz.BinaryTarget().label) == ("negative", "positive")
    with pytest.raises(TypeError, match="positive"):
        medviz.BinaryTarget(positive=1)  # type: ignore[arg-type]


def test_a_callable_is_checked_on_the_clean_output() -> None:
    def contrast(out: Tensor) -> Tensor:
        return out[:, 1] - out[:, 0]

    assert scores(contrast, LOGITS) == [4, -10]
    assert as_target(contrast).label == "contrast"
    assert as_target(lambda out: out[:, 0]).label == "lambda"
    assert fix(contrast, LOGITS).classes is None
    with pytest.raises(ValueError, match=r"'lambda' returned \(\) for an output \(2, 3\); expected .*\(2,\)"):
        fix(lambda out: out.sum(), LOGITS)
    with pytest.raises(ValueError, match="returned float"):
        fix(CallableTarget(lambda out: 1.0), LOGITS)  # type: ignore[arg-type, return-value]


class TestSegmentation:
    def test_everywhere(self) -> None:
        assert scores(medviz.SegmentationTarget(1), SEGMENTATION) == [8.5, 20.5]

    @pytest.mark.parametrize("shape", [(2, 2, 3), (2, 1, 2, 3)])
    def test_a_mask_of_each_image(self, shape: tuple[int, ...]) -> None:
        mask = torch.zeros(2, 2, 3)
        mask[0, 0, 1] = mask[1, 1, 0] = mask[1, 1, 2] = 1
        assert scores(medviz.SegmentationTarget(0, mask.reshape(shape)), SEGMENTATION) == [1, 16]
        assert scores(medviz.SegmentationTarget(0, mask.reshape(shape).bool()), SEGMENTATION) == [1, 16]
        assert scores(medviz.SegmentationTarget(0, mask.reshape(shape).numpy()), SEGMENTATION) == [1, 16]

    @pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (1, 1, 2, 3)])
    def test_one_mask_for_all_images(self, shape: tuple[int, ...]) -> None:
        mask = torch.zeros(2, 3)
        mask[0, 2] = 1
        assert scores(medviz.SegmentationTarget(0, mask.reshape(shape)), SEGMENTATION) == [2, 14]

    def test_a_mask_is_a_weighted_mean(self) -> None:
        weights = torch.tensor([[1.0, 3, 0], [0, 0, 0]])
        assert scores(medviz.SegmentationTarget(0, weights), SEGMENTATION) == [0.75, 12.75]
        assert scores(medviz.SegmentationTarget(0, 10 * weights), SEGMENTATION) == [0.75, 12.75]

    def test_where_the_clean_output_gives_the_channel(self) -> None:
        output = SEGMENTATION.clone()
        output[0, 0, 0, 0] = output[0, 0, 1, 2] = 100
        output[1, 0, 1, 1] = 50
        target = medviz.SegmentationTarget(0, "predicted")
        assert target.label == "segmentation 0 predicted"
        fixed = fix(target, output)
        assert fixed.score(output, EVERY).tolist() == [100, 50]
        assert fixed.score(SEGMENTATION, EVERY).tolist() == [2.5, 16]  # the mask stays that of the clean output

    def test_one_channel_is_a_logit(self) -> None:
        output = torch.tensor([[[[-1.0, 2.0], [4.0, -3.0]]]])
        assert scores(medviz.SegmentationTarget(0, "predicted"), output) == [3]

    def test_three_dimensions(self) -> None:
        output = images(2, 3, 4, 5, 6)
        mask = torch.rand(2, 4, 5, 6) > 0.5
        expected = torch.stack([output[i, 2][mask[i]].mean() for i in range(2)])
        check_close(torch.tensor(scores(medviz.SegmentationTarget(2, mask), output)), expected)

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            (medviz.SegmentationTarget(2), "`target` 2 is out of range: the network has 2 outputs"),
            (medviz.SegmentationTarget(0, "predicted"), r"mask of channel 0 is empty for the images \[0, 1\]"),
            (medviz.SegmentationTarget(0, torch.eye(2, 6).view(2, 2, 3) * FIRST), r"empty for the images \[1\]"),
            (
                medviz.SegmentationTarget(0, torch.ones(4, 4)),
                r"`mask` \(4, 4\) does not fit the output's grid \(2, 2, 3",
            ),
            (medviz.SegmentationTarget(0, torch.ones(3, 2, 3)), r"`mask` \(3, 2, 3\) does not fit"),
        ],
    )
    def test_errors(self, target: medviz.SegmentationTarget, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            fix(target, SEGMENTATION)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (-torch.ones(2, 3), "negative, NaN or infinite"),
            (torch.full((2, 3), float("nan")), "negative, NaN or infinite"),
            (torch.zeros(2, 3, dtype=torch.bool), "`mask` is empty for all images; nothing to explain"),
        ],
    )
    def test_a_mask_that_can_mean_nothing_is_refused_before_the_network_runs(self, mask: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            take(medviz.SegmentationTarget(0, mask), EVERY, len(SEGMENTATION))

    @pytest.mark.parametrize("batch_size", [1, 2, 3, "auto"])
    @pytest.mark.parametrize("given", ["predicted", "a tensor"])
    def test_an_empty_mask_is_of_the_users_image(self, batch_size: Any, given: str) -> None:
        """However the batch is split."""
        batch, mask = 5 * torch.rand(4, 1, 4, 4) + 1, torch.ones(4, 4, 4)
        batch[3] *= -1
        mask[3] = 0
        target = medviz.SegmentationTarget(0, mask if given == "a tensor" else given)
        with pytest.raises(ValueError, match=r"is empty for the images \[3\]"):
            medviz.explain(nn.Identity(), batch, "vanillagrad", target, batch_size=batch_size)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.float16, bool])
    def test_a_label_map_of_any_type_is_a_mask(self, dtype: Any) -> None:
        mask = np.array([[1, 1, 0], [0, 0, 0]], dtype)
        assert scores(medviz.SegmentationTarget(0, mask), SEGMENTATION) == [0.5, 12.5]

    @pytest.mark.parametrize("change", [Tensor.to_sparse, lambda x: x.to(torch.complex64), lambda x: x.to("meta")])
    def test_a_mask_holds_real_numbers(self, change: Any) -> None:
        with pytest.raises(TypeError, match="expected real weights"):
            medviz.SegmentationTarget(0, change(torch.ones(2, 3)))

    @pytest.mark.parametrize("batch_size", [2, "auto"])
    @pytest.mark.parametrize("mask", [None, torch.rand(3, 6, 6) + 0.1])
    def test_a_target_of_ones_own_that_is_made_of_it(self, batch_size: Any, mask: Any) -> None:
        fixed: list[int] = []

        class Twice(medviz.SegmentationTarget):
            def fix(self, output: Tensor) -> FixedTarget:
                fixed.append(len(output))
                inner = super().fix(output)
                return FixedTarget("twice", lambda out, index: 2 * inner.score(out, index))

        batch = torch.rand(3, 1, 6, 6)
        model = nn.Conv2d(1, 2, 3, padding=1)
        one, two = (
            medviz.explain(model, batch, "vanillagrad", target, batch_size=batch_size).raw
            for target in (medviz.SegmentationTarget(1, mask), Twice(1, mask))
        )
        check_close(two, 2 * one)
        assert fixed == ([2, 1] if batch_size == 2 else [3])

    def test_a_target_with_arguments_of_its_own(self) -> None:
        class Own(medviz.SegmentationTarget):
            def __init__(self, channel: int) -> None:
                super().__init__(channel, torch.rand(3, 6, 6) + 0.1)

        batch, model = torch.rand(3, 1, 6, 6), nn.Conv2d(1, 2, 3, padding=1)
        target = Own(1)
        plain = medviz.SegmentationTarget(1, target.mask)
        one, two = (medviz.explain(model, batch, "vanillagrad", t, batch_size=2).raw for t in (plain, target))
        assert torch.equal(one, two)

    def test_the_error_of_an_empty_mask_can_be_sent_to_another_process(self) -> None:
        with pytest.raises(ValueError, match="is empty for the images") as caught:
            fix(medviz.SegmentationTarget(0, FIRST), SEGMENTATION)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    def test_a_part_of_a_part(self) -> None:
        target = medviz.SegmentationTarget(0, torch.arange(1.0, 5).view(4, 1, 1).expand(4, 2, 3).clone())
        part = take(take(target, torch.tensor([1, 2, 3]), 4), torch.tensor([2, 0]), 3)
        output = torch.rand(2, 2, 2, 3)
        assert scores(part, output) == pytest.approx(output[:, 0].mean((1, 2)).tolist())

    def test_where_a_channel_says_yes(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "medviz")
        output = torch.full((2, 2, 2, 3), -5.0)
        output[0, 0, 0, :2], output[1, 0, 1, 1], output[:, 1, 0, 1] = 2, 4, 9
        assert scores(medviz.SegmentationTarget(0, "positive"), output) == [2, 4]
        assert scores(medviz.SegmentationTarget(1, "positive"), output) == [9, 9]
        assert "the mask of channel 0 holds 3 of 12 voxels" in caplog.text
        assert medviz.SegmentationTarget(0, "positive").label == "segmentation 0 positive"
        with pytest.raises(ValueError, match="is empty for the images"):
            scores(medviz.SegmentationTarget(0, "positive"), output.clamp(max=-1))

    @pytest.mark.parametrize(("channels", "mask"), [(1, "predicted"), (1, "positive"), (3, "positive")])
    def test_probabilities_have_no_sign(self, channels: int, mask: Any) -> None:
        with pytest.raises(ValueError, match="lies between 0 and 1 everywhere, as probabilities do"):
            scores(medviz.SegmentationTarget(0, mask), torch.rand(2, channels, 2, 3))

    def test_a_metatensor_as_a_mask_is_a_mask_and_no_more(self) -> None:
        meta = pytest.importorskip("monai.data").MetaTensor(torch.ones(2, 3), affine=torch.eye(4) * 2)
        score = fix(medviz.SegmentationTarget(0, meta), SEGMENTATION).score(SEGMENTATION, EVERY)
        assert type(score) is torch.Tensor

    @pytest.mark.parametrize("mask", ["all", 3, [[1]]])
    def test_a_wrong_mask(self, mask: Any) -> None:
        with pytest.raises(TypeError, match="`mask` is None, 'predicted', 'positive' or a tensor"):
            medviz.SegmentationTarget(0, mask)

    def test_a_wrong_channel(self) -> None:
        with pytest.raises(TypeError, match="channel"):
            medviz.SegmentationTarget("liver")  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [None, 1, torch.tensor([0, 1]), medviz.RegressionTarget(0)])
def test_a_class_of_a_segmentation_names_the_right_target(target: Any) -> None:
    with pytest.raises(ValueError, match=r"medviz\.SegmentationTarget\(channel, mask=None\)"):
        fix(target, SEGMENTATION)


def test_a_list_means_several_targets() -> None:
    assert [t.label for t in as_targets([0, None, torch.tensor([1, 2])])] == ["class 0", "predicted", "classes 1 2"]
    assert [t.label for t in as_targets(torch.tensor([1, 2]))] == ["classes 1 2"]
    with pytest.raises(ValueError, match="`target` is an empty list"):
        as_targets([])
    with pytest.raises(TypeError, match="`target` is a list"):
        as_target([0, 1])
    with pytest.raises(TypeError, match="`target` is a dict; expected None, an int"):
        as_target({})


def test_anything_with_a_label_and_fix_is_a_target() -> None:
    class Margin:
        label = "margin"

        def fix(self, output: Tensor) -> FixedTarget:
            best = output.argmax(1)
            return FixedTarget("margin", lambda out, index: 2 * out.gather(1, best[index][:, None])[:, 0] - out.sum(1))

    attribution = medviz.explain(Classifier(2), images(2, 2, 8, 8), "gradcam", Margin())
    assert isinstance(attribution, medviz.Attribution)
    assert attribution.target == "margin"
    output = Classifier(2)(images(2, 2, 8, 8))
    check_close(torch.tensor(attribution.scores), 2 * output.amax(1) - output.sum(1))


def test_some_images_of_a_target() -> None:
    """What a target holds for each image is taken along when images are explained in parts."""
    assert take(ClassTarget(torch.tensor([4, 5, 6])), torch.tensor([2, 0]), 3).index.tolist() == [6, 4]  # type: ignore[union-attr]
    assert take(ClassTarget(2), torch.tensor([2, 0]), 3).index == 2  # type: ignore[union-attr]
    predicted = PredictedTarget()
    assert take(predicted, torch.tensor([1]), 3) is predicted


MASKS = {
    "of each image": torch.rand(4, 9, 7, generator=torch.Generator().manual_seed(0)),
    "of each image, with channel": torch.rand(4, 1, 9, 7, generator=torch.Generator().manual_seed(0)),
    "for all": torch.rand(9, 7, generator=torch.Generator().manual_seed(0)),
    "for all, with batch": torch.rand(1, 9, 7, generator=torch.Generator().manual_seed(0)),
    "predicted": "predicted",
}


@pytest.mark.parametrize("count", [4, 9])
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_in_parts_equals_the_whole(mask: str, count: int) -> None:
    """Also for a mask for all whose first axis is as long as there are images."""
    if mask.startswith("of each"):
        count = 4
    model, target = UNet(2), medviz.SegmentationTarget(0, MASKS[mask])  # type: ignore[arg-type]
    model.logits.bias.data[0] += 1  # so that each image has a part of that class
    image = images(count, 1, 9, 7)
    whole = medviz.explain(model, image, "layercam", target)
    parts = medviz.explain(model, image, "layercam", target, batch_size=2)
    assert isinstance(whole, medviz.Attribution)
    assert isinstance(parts, medviz.Attribution)
    check_close(parts.values, whole.values)
    check_close(torch.tensor(parts.scores), torch.tensor(whole.scores))


@pytest.mark.parametrize("size", ["auto", 1])
def test_a_mask_for_another_number_of_images_is_an_error_in_parts_too(size: Any) -> None:
    target = medviz.SegmentationTarget(1, torch.ones(3, 9, 7))
    with pytest.raises(ValueError, match="does not fit"):
        medviz.explain(UNet(2), images(4, 1, 9, 7), "gradcam", target, batch_size=size)


def test_a_target_fixed_for_all_images_is_taken_in_parts() -> None:
    model, image = Classifier(2), images(4, 2, 8, 8, seed=3)
    fixed = fix(torch.tensor([3, 0, 2, 1]), model(image).detach())
    whole = medviz.explain(model, image, "gradcam", fixed)
    parts = medviz.explain(model, image, "gradcam", fixed, batch_size=1)
    assert isinstance(whole, medviz.Attribution)
    assert isinstance(parts, medviz.Attribution)
    assert parts.classes == whole.classes == (3, 0, 2, 1)
    check_close(parts.values, whole.values)
    with pytest.raises(ValueError, match="fixed for 4 images"):
        medviz.explain(model, image[:2], "gradcam", fixed)


def test_of_one_output_the_other_answer_is_a_target_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"medviz.BinaryTarget\(positive=False\) for the negative"):
        medviz.ClassTarget(1).fix(torch.zeros(2, 1))


def test_a_class_of_targets_is_no_target() -> None:
    with pytest.raises(TypeError, match=r"`target` is the class BinaryTarget; write BinaryTarget\(…\)"):
        medviz.explain(nn.Flatten(), torch.rand(1, 1, 2, 2), "vanillagrad", medviz.BinaryTarget)
