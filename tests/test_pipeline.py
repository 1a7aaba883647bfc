"""What `explain` does around the explainers: order, parts of a batch, affines, provenance, wrappers, passes."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from networks import ASKED, LAYERED, Classifier, UNet, check_close, explain, images
from torch import Tensor, nn

import medviz
from medviz import Attribution, PluginError
from medviz.hookspecs import Explainer, Wrapper, hookimpl
from medviz.targets import FixedTarget

SIX = ["gradcam", "gradcampp", "layercam", "hirescam", "xgradcam", "eigencam"]
AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0.5, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1.0]])


def several(*args: Any, **kwargs: Any) -> list[Attribution]:
    results = medviz.explain(*args, **kwargs)
    assert isinstance(results, list)
    return results


def one(*args: Any, **kwargs: Any) -> Attribution:
    result = medviz.explain(*args, **kwargs)
    assert isinstance(result, Attribution)
    return result


class Counted(Classifier):
    """Writes the number of rows of each forward pass into a list that is no part of the model."""

    def __init__(self, passes: list[int], **parameters: Any) -> None:
        super().__init__(2, **parameters)
        self.count = lambda x: passes.append(len(x))

    def forward(self, x: Tensor) -> Tensor:
        self.count(x)
        return super().forward(x)


class TestResults:
    model, image = Classifier(2), images(2, 2, 8, 7)

    def test_one_and_one_is_one(self) -> None:
        assert one(self.model, self.image, "gradcam").method == "gradcam"
        assert one(self.model, self.image, medviz.get_explainer("gradcam"), 1).target == "class 1"
        assert isinstance(medviz.get_explainer("gradcam")(self.model, self.image, torch.tensor([1, 0])), Attribution)

    def test_a_list_of_one_is_a_list(self) -> None:
        assert len(several(self.model, self.image, ["gradcam"])) == 1
        assert len(several(self.model, self.image, "gradcam", [1])) == 1
        assert len(several(self.model, self.image, "gradcam", (1, 0))) == 2
        assert len(medviz.get_explainer("gradcam")(self.model, self.image, [2, 1, 0])) == 3

    def test_explainers_are_outermost(self) -> None:
        results = several(self.model, self.image, ["hirescam", medviz.get_explainer("cam"), "eigencam"], [1, None])
        assert [(r.method, r.target) for r in results] == [
            (method, target) for method in ("hirescam", "cam", "eigencam") for target in ("class 1", "predicted")
        ]
        for result in results:
            alone = explain(result.method, self.model, self.image, 1 if result.target == "class 1" else None)
            check_close(result.values, alone.values)
            assert result.scores == alone.scores
            assert result.classes == alone.classes

    def test_a_method_without_target_still_says_what_was_asked(self) -> None:
        first, second = several(self.model, self.image, "eigencam", [0, 1])
        assert torch.equal(first.values, second.values)
        assert (first.classes, second.classes) == ((0, 0), (1, 1))
        expected = self.model(self.image).detach()
        check_close(torch.tensor([first.scores, second.scores]), expected[:, :2].T)

    def test_plugin_strings_and_unknown_names(self) -> None:
        assert one(self.model, self.image, "gradcam:layer=stem").provenance["layers"] == ["stem"]
        with pytest.raises(PluginError, match="did you mean 'gradcam"):
            medviz.explain(self.model, self.image, "grdcam")
        with pytest.raises(ValueError, match="`explainers` is empty"):
            medviz.explain(self.model, self.image, [])
        with pytest.raises(PluginError, match=r"is not a medviz\.Explainer"):
            medviz.explain(self.model, self.image, [3])  # type: ignore[list-item]

    @pytest.mark.parametrize(
        ("given", "message"), [(type(medviz.get_explainer("gradcam")), r"write GradCAM\(…\)"), (3, "`explainers` is 3")]
    )
    def test_what_is_no_explainer(self, given: Any, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            medviz.explain(self.model, self.image, given)

    def test_targets_share_no_memory(self) -> None:
        first, second = several(self.model, self.image, "eigencam", [0, 1])
        assert first.raw is not None
        assert second.raw is not None
        first.raw.mul_(0)
        assert second.raw.any()

    def test_results_do_not_share_memory_with_what_was_given(self) -> None:
        image = self.image.clone()
        result = one(self.model, image, "gradcam")
        kept = result.image.clone()
        image.zero_()
        assert torch.equal(result.image, kept)
        assert not result.values.requires_grad
        assert result.raw is not None
        before = result.raw.clone()
        result.values.zero_()
        assert torch.equal(result.raw, before)


class TestParts:
    model, image = Classifier(2), images(5, 2, 8, 7)

    @pytest.mark.parametrize("method", LAYERED)
    @pytest.mark.parametrize("size", [1, 2, 5, 9])
    def test_in_parts_as_in_one_pass(self, method: str, size: int) -> None:
        targets = [torch.tensor([3, 0, 1, 2, 1]), None, 2]
        whole = several(self.model, self.image, method, targets)
        parts = several(self.model, self.image, method, targets, batch_size=size, affine=AFFINE)
        for a, b in zip(parts, whole, strict=True):
            check_close(a.values, b.values)
            check_close(a.raw, b.raw)
            check_close(torch.tensor(a.scores), torch.tensor(b.scores))
            assert torch.equal(a.image, b.image)
            assert (a.classes, a.target, a.index) == (b.classes, b.target, (0, 1, 2, 3, 4))
            assert a.provenance == b.provenance
            assert a.affine is not None
            assert a.affine.shape == (5, 4, 4)
            assert (a.affine == AFFINE).all()

    def test_the_batch_size_bounds_every_pass(self) -> None:
        passes: list[int] = []
        several(Counted(passes), self.image, ["gradcam", "scorecam", "ablationcam"], 1, batch_size=2)
        assert max(passes) == 2

    def test_affines_go_with_their_images(self) -> None:
        affines = np.stack([AFFINE + np.diag([0, 0, i, 0]) for i in range(5)])
        result = one(self.model, self.image, "gradcam", affine=affines, batch_size=2)
        assert (result.affine == affines).all()
        assert (result[3].affine == affines[3:4]).all()

    def test_model_arguments_go_with_their_images(self) -> None:
        class Shifted(Classifier):
            def forward(self, x: Tensor, shift: Tensor, factor: float = 1.0) -> Tensor:  # type: ignore[override]
                return self.head(factor * self.deep(self.stem(x + shift.view(-1, 1, 1, 1))))

        shift = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
        options: dict[str, Any] = {"model_args": [medviz.per_image(shift)], "model_kwargs": {"factor": 2.0}}
        for method in ("gradcam", "scorecam", "ablationcam"):
            whole = one(Shifted(), self.image, method, 1, **options)
            parts = one(Shifted(), self.image, method, 1, batch_size=2, **options)
            check_close(parts.values, whole.values)
            single = one(
                Shifted(), self.image[3:4], method, 1, model_args=[shift[3:4]], model_kwargs={"factor": 2.0}
            )  # fmt: skip
            check_close(whole.values[3:4], single.values)

    def test_batch_norm_without_running_statistics_goes_image_by_image(self) -> None:
        passes: list[int] = []
        model = Counted(passes)
        model.stem[1] = nn.BatchNorm2d(6, track_running_stats=False)
        one(model, self.image, "gradcam", 1)
        assert passes == [1, 1, 1, 1, 1]

    @pytest.mark.parametrize("size", [0, -1, 1.5, "all", True])
    def test_a_wrong_batch_size(self, size: Any) -> None:
        with pytest.raises(ValueError, match="`batch_size` must be 'auto' or a positive int"):
            medviz.explain(self.model, self.image, "gradcam", batch_size=size)


class TestAffine:
    model, volume = Classifier(3), images(2, 2, 6, 5, 4)

    def test_of_a_medviz_image(self) -> None:
        result = one(self.model, medviz.Image(self.volume[0], AFFINE), "gradcam")
        assert result.values.shape == (1, 1, 6, 5, 4)
        assert (result.affine == AFFINE[None]).all()
        assert result.spacing == ((0.5, 0.5, 3.0),)

    def test_of_a_list_of_images(self) -> None:
        pair = [medviz.Image(self.volume[i], AFFINE * [[1], [1], [i + 1], [1]]) for i in range(2)]
        result = one(self.model, pair, "gradcam")
        assert result.spacing == ((0.5, 0.5, 3.0), (0.5, 0.5, 6.0))
        with pytest.raises(ValueError, match="1 of 2 images have no affine"):
            medviz.explain(self.model, [pair[0], medviz.Image(self.volume[1])], "gradcam")
        with pytest.raises(ValueError, match="must have one shape"):
            medviz.explain(self.model, [pair[0], medviz.Image(self.volume[1, :, 1:])], "gradcam")

    def test_of_a_tensor_that_carries_one(self) -> None:
        class Meta(Tensor):
            affine: Any

        meta = self.volume.as_subclass(Meta)
        meta.affine = torch.tensor(AFFINE)
        result = one(self.model, meta, "gradcam")
        assert (result.affine == np.stack([AFFINE] * 2)).all()
        assert type(result.values) is type(result.image) is Tensor
        assert torch.equal(result.values, one(self.model, self.volume, "gradcam").values)

    def test_given_beats_carried_and_none_stays_none(self) -> None:
        result = one(self.model, medviz.Image(self.volume[0], AFFINE), "gradcam", affine=np.eye(4))
        assert (result.affine == np.eye(4)).all()
        assert one(self.model, self.volume, "gradcam").affine is None

    @pytest.mark.parametrize("affine", [np.eye(3), np.zeros((4, 4)), np.stack([AFFINE] * 3), np.full((4, 4), np.nan)])
    def test_a_wrong_one(self, affine: Any) -> None:
        with pytest.raises(ValueError, match="`affine` must be finite"):
            medviz.explain(self.model, self.volume, "gradcam", affine=affine)


class TestProvenance:
    @pytest.mark.parametrize("method", LAYERED)
    def test_plain_data_and_complete(self, method: str) -> None:
        provenance = one(Classifier(2), images(2, 2, 8, 8), method, 1).provenance
        assert json.loads(json.dumps(provenance)) == provenance
        assert provenance["method"] == method
        assert provenance["package"] == "medviz-xai"
        assert provenance["package_version"] == medviz.__version__
        assert provenance["layers"] == ["deep"]
        cls = type(medviz.get_explainer(method))
        assert set(provenance["parameters"]) == {field.name for field in attrs.fields(cls)}  # type: ignore[arg-type]
        assert provenance["versions"]["torch"] == torch.__version__
        assert set(provenance["versions"]) >= {"medviz", "torch", "python"}
        assert provenance["seed"] is None
        asked = {"output": None, "autocast": None, "compiled": False}
        assert provenance["run"] == {**asked, "device": "cpu", "dtype": "float32"}

    def test_how_the_model_was_run(self) -> None:
        def logits(raw: Any) -> Any:
            return raw

        options: dict[str, Any] = {"output": logits, "autocast": torch.bfloat16}
        provenance = one(Classifier(2).double(), images(2, 2, 8, 8).double(), "gradcam", 1, **options).provenance
        assert provenance["run"]["output"] == "logits"
        assert provenance["run"]["autocast"] == "bfloat16"
        assert provenance["run"]["dtype"] == "float64"
        assert json.loads(json.dumps(provenance)) == provenance

    def test_precision_that_is_switched_on_around_the_call(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            provenance = one(Classifier(2), images(2, 2, 8, 8), "gradcam", 1).provenance
        assert provenance["run"]["autocast"] == "bfloat16"

    def test_the_plugin_string_makes_the_map_again(self) -> None:
        model, image = Classifier(2), images(2, 2, 8, 8)
        made = one(model, image, medviz.get_explainer("hirescam", layer=["stem", "deep"], relu=False), 1)
        again = one(model, image, made.provenance["explainer"], 1)
        assert torch.equal(again.values, made.values)
        assert again.signed

    def test_of_a_method_that_is_not_installed(self) -> None:
        provenance = one(Classifier(2), images(2, 2, 8, 8), Says()).provenance
        assert provenance["method"] == "says"
        assert json.loads(json.dumps(provenance)) == provenance

    def test_a_fresh_seed_is_recorded_and_gives_the_map_again(self) -> None:
        model, image = Classifier(2), images(2, 2, 8, 8)
        first, second = several(model, image, [Noise(), Noise()])
        assert not torch.equal(first.values, second.values)
        assert first.provenance["seed"] == first.provenance["parameters"]["seed"] is not None
        again = one(model, image, Noise(seed=first.provenance["seed"]))
        assert torch.equal(again.values, first.values)


@attrs.frozen(eq=False)
class Says(Explainer):
    """Returns `answer`."""

    answer: Any = attrs.field(factory=lambda: torch.ones(2, 1, 4, 4), repr=False)

    @hookimpl
    def explain(self) -> Any:
        return self.answer


@attrs.frozen(eq=False)
class Signed(Says):
    signed = True


@attrs.frozen(eq=False)
class Noise(Explainer):
    stochastic = True

    seed: int | None = None

    @hookimpl
    def explain(self, probe: medviz.Probe) -> Tensor:
        assert self.seed is not None
        return torch.rand(len(probe.inputs), 1, 4, 4, generator=torch.Generator().manual_seed(self.seed))


class TestContract:
    model, image = Classifier(2), images(2, 2, 8, 8)

    @pytest.mark.parametrize(
        "answer",
        [
            torch.ones(2, 4, 4),
            torch.ones(1, 1, 4, 4),
            torch.ones(2, 3, 4, 4),
            torch.ones(2, 1, 4, 4, 4),
            torch.ones(2, 1, 0, 4),
            torch.ones(2, 1, 4, 4, dtype=torch.int32),
            torch.full((2, 1, 4, 4), float("nan")),
            np.ones((2, 1, 4, 4)),
            None,
        ],
        ids=["axes", "batch", "channels", "3d", "empty", "integers", "nan", "array", "none"],
    )
    def test_a_wrong_result_stops_here(self, answer: Any) -> None:
        with pytest.raises(PluginError, match="Says"):
            medviz.explain(self.model, self.image, Says(answer))

    def test_negative_values_must_be_declared(self) -> None:
        answer = torch.full((2, 1, 4, 4), -1.0)
        with pytest.raises(PluginError, match="negative values, but does not declare `signed`"):
            medviz.explain(self.model, self.image, Says(answer))
        assert one(self.model, self.image, Signed(answer)).signed

    def test_a_map_of_each_channel_and_any_grid(self) -> None:
        result = one(self.model, self.image, Says(torch.ones(2, 2, 3, 11)))
        assert result.values.shape == (2, 2, 8, 8)
        assert result.raw is not None
        assert result.raw.shape == (2, 2, 3, 11)
        assert torch.equal(result.values, torch.ones(2, 2, 8, 8))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_results_are_float32(self, dtype: torch.dtype) -> None:
        result = one(self.model, self.image, Says(torch.ones(2, 1, 4, 4, dtype=dtype)))
        assert result.values.dtype == result.raw.dtype == torch.float32  # type: ignore[union-attr]

    def test_what_float32_cannot_hold_is_no_map(self) -> None:
        huge = Says(torch.full((2, 1, 4, 4), 1e39, dtype=torch.float64))
        with pytest.raises(PluginError, match=r"values that are too large for torch\.float32"):
            medviz.explain(self.model, self.image, huge)
        assert one(Classifier(2).double(), self.image.double(), huge).values.min() == 1e39

    def test_a_single_output_is_no_class(self, caplog: pytest.LogCaptureFixture) -> None:
        for target in (None, medviz.BinaryTarget(False), 0):
            assert one(Classifier(2, classes=1), self.image, "gradcam", target).classes is None
        assert one(self.model, self.image, "gradcam", medviz.RegressionTarget(1)).classes is None
        assert one(self.model, self.image, "gradcam", 2).classes == (2, 2)
        assert "probabilities" not in caplog.text

    @pytest.mark.parametrize("make", [nn.Softmax, nn.Sigmoid])
    def test_a_network_that_ends_in_a_softmax_is_named(self, make: Any, caplog: pytest.LogCaptureFixture) -> None:
        model = nn.Sequential(Classifier(2), make(*[1] * (make is nn.Softmax)))
        explain("gradcam", model, self.image, 1)
        assert caplog.text.count("the network's outputs are probabilities") == (make is nn.Softmax)
        caplog.clear()
        explain("gradcam", model, self.image, 1, batch_size=1)
        assert caplog.text.count("the network's outputs are probabilities") == (make is nn.Softmax)

    def test_the_numbers_of_axes_that_a_method_works_for(self) -> None:
        class Flat(Says):
            ndim = (2,)

        with pytest.raises(ValueError, match=r"Flat works for \(2,\) spatial axes, not 3"):
            medviz.explain(Classifier(3), images(2, 2, 4, 4, 4), Flat(torch.ones(2, 1, 4, 4, 4)))

    def test_what_cannot_suit_the_image_is_known_before_the_network_runs(self) -> None:
        class Counts(Classifier):
            calls = 0

            def forward(self, x: Tensor) -> Tensor:
                Counts.calls += 1
                return super().forward(x)

        for wrong in ("occlusion:mask_size=[8,8]", "occlusion:mask_size=3,region=[[0,4],[0,4],[0,9]]"):
            with pytest.raises(ValueError, match=r"must fit the image's 3 axes|leaves the image"):
                medviz.explain(Counts(3), images(2, 2, 4, 4, 4), ["occlusion:mask_size=3", wrong], 1)
        assert not Counts.calls

    def test_what_is_inside_of_a_method_is_checked_and_seeded_too(self) -> None:
        @attrs.frozen(eq=False)
        class Outer(Explainer):
            signed = True
            inner: Explainer = medviz.field(kind="explainers", default="medviz-xai/smoothgrad")

            @hookimpl
            def explain(self, probe: medviz.Probe, target: FixedTarget) -> Tensor:
                return self.inner.on(probe, target)

        with pytest.raises(ValueError, match="must fit the image's 2 axes"):
            medviz.explain(self.model, self.image, Outer("occlusion:mask_size=[4,4,4]"), 1)
        with medviz.Probe(self.model, self.image) as probe, pytest.raises(ValueError, match="must fit the image's 2"):
            medviz.get_explainer("occlusion:mask_size=[4,4,4]").on(probe, probe.fix(1))
        first, second = (medviz.explain(self.model, self.image, Outer("smoothgrad:n_samples=2"), 1) for _ in range(2))
        assert not torch.equal(first.raw, second.raw)
        seed = first.provenance["parameters"]["inner"]["seed"]
        again = medviz.explain(self.model, self.image, Outer(f"smoothgrad:n_samples=2,seed={seed}"), 1)
        assert torch.equal(again.raw, first.raw)

    def test_a_method_that_is_made_of_another(self) -> None:
        @attrs.frozen(eq=False)
        class Twice(Explainer):
            signed = True
            needs_layer = True
            needs_gradient = True
            inner: Explainer = medviz.field(kind="explainers", default="medviz-xai/gradcam")
            layer: str = "deep"

            @hookimpl
            def explain(self, probe: medviz.Probe, target: FixedTarget) -> Tensor:
                return 2 * self.inner.on(probe, target)

        log: list[str] = []
        one, two = (
            medviz.explain(self.model, self.image, method, 1, wrappers=[Logs("w", log)])
            for method in ("gradcam:layer=deep", Twice("gradcam:layer=deep"))
        )
        assert torch.equal(two.raw, 4 * one.raw)  # the wrapper goes around both
        assert log[2:] == ["w in Twice 2", "w in GradCAM 2", "w out", "w out"]
        assert two.provenance["explainer"] == "twice:inner=gradcam(layer=deep)"


@attrs.frozen(eq=False)
class Logs(Wrapper):
    name: str = ""
    log: list[str] = attrs.field(factory=list)

    @hookimpl(wrapper=True)
    def explain(self, plugin: Explainer, probe: medviz.Probe) -> Generator[None, Tensor, Tensor]:
        self.log.append(f"{self.name} in {type(plugin).__name__} {len(probe.inputs)}")
        result = yield
        self.log.append(f"{self.name} out")
        return 2 * result


class TestWrappers:
    model, image = Classifier(2), images(2, 2, 8, 8)

    def test_the_first_named_is_the_outermost(self) -> None:
        log: list[str] = []
        wrapped = one(self.model, self.image, "gradcam", 1, wrappers=[Logs("a", log), Logs("b", log)])
        assert log == ["a in GradCAM 2", "b in GradCAM 2", "b out", "a out"]
        check_close(wrapped.values, 4 * one(self.model, self.image, "gradcam", 1).values)

    def test_around_each_call_and_through_the_explainer(self) -> None:
        log: list[str] = []
        medviz.get_explainer("gradcam")(self.model, self.image, [1, 0], wrappers=[Logs("a", log)])
        assert log == ["a in GradCAM 2", "a out"] * 2

    def test_its_result_is_checked_too(self) -> None:
        class Spoils(Wrapper):
            @hookimpl(wrapper=True)
            def explain(self) -> Generator[None, Tensor, Tensor]:
                yield
                return torch.ones(7)

        with pytest.raises(PluginError, match="GradCAM"):
            medviz.explain(self.model, self.image, "gradcam", 1, wrappers=[Spoils()])

    def test_wrong_wrappers(self) -> None:
        with pytest.raises(TypeError, match="`wrappers` is a list"):
            medviz.explain(self.model, self.image, "gradcam", wrappers=Logs())  # type: ignore[arg-type]
        with pytest.raises(PluginError):
            medviz.explain(self.model, self.image, "gradcam", wrappers=[3])  # type: ignore[list-item]


class TestPasses:
    """Forward passes are counted in the model itself."""

    def test_six_methods_and_three_targets_cost_one(self) -> None:
        passes: list[int] = []
        results = several(Counted(passes), images(3, 2, 8, 8), SIX, [0, None, torch.tensor([1, 2, 0])])
        assert len(results) == 18
        assert passes == [3]

    @pytest.mark.parametrize("layer", ["stem", ["stem", "deep"]])
    def test_named_layers_too(self, layer: Any) -> None:
        passes: list[int] = []
        explainers = [medviz.get_explainer(name, layer=layer) for name in SIX]
        several(Counted(passes), images(3, 2, 8, 8), [*explainers, medviz.get_explainer("cam", layer="deep")], [0, 1])
        assert passes == [3]

    def test_automatic_and_named_together_cost_one(self) -> None:
        passes: list[int] = []
        several(Counted(passes), images(3, 2, 8, 8), ["gradcam", "gradcam:layer=stem"], [0, 1])
        assert passes == [3]

    def test_the_automatic_layer_of_a_segmentation_costs_two(self) -> None:
        passes: list[int] = []

        class CountedUNet(UNet):
            def forward(self, x: Tensor) -> Tensor:
                passes.append(len(x))
                return super().forward(x)

        several(CountedUNet(), images(3, 1, 8, 8), SIX, [medviz.SegmentationTarget(c) for c in range(3)])
        assert passes == [3, 3]
        passes.clear()
        one(CountedUNet(), images(3, 1, 8, 8), "gradcam:layer=bottom", medviz.SegmentationTarget(1))
        assert passes == [3]

    def test_perturbation_costs_a_row_for_each_map(self) -> None:
        for method, rows in (("ablationcam", 3 * 7), ("scorecam", 3 * 7)):
            passes: list[int] = []
            one(Counted(passes), images(3, 2, 8, 8), f"{method}:layer=deep", 1, batch_size=64)
            assert sum(passes) == 3 + rows + ASKED

    def test_a_wrong_image_or_explainer_costs_none(self) -> None:
        passes: list[int] = []
        for image, explainer in ((torch.zeros(2, 8, 8), "gradcam"), (images(2, 2, 8, 8), "gradcam:layer=nowhere")):
            with pytest.raises(ValueError, match=r"batch axis|not in the model"):
                medviz.explain(Counted(passes), image, explainer)
        assert passes == []


class TestOutputs:
    """Tuples, dicts and lists; `output` for the rest."""

    image = images(2, 2, 8, 8)

    @pytest.mark.parametrize(
        ("wrap", "output"),
        [
            (lambda y: (y, y + 1), None),
            (lambda y: [y, 2 * y], None),
            (lambda y: {"logits": y, "features": y + 1}, None),
            (lambda y: {"out": y, "aux": 2 * y}, None),
            (lambda y: {"anything": y}, None),
            (lambda y: (2 * y, y), 1),
            (lambda y: {"a": y, "b": 2 * y}, "a"),
            (lambda y: {"a": {"b": [y]}}, lambda out: out["a"]["b"][0]),
            (lambda y: y[:, :, None, None], None),
        ],
    )
    def test_what_is_meant(self, wrap: Any, output: Any) -> None:
        class Wraps(Classifier):
            def forward(self, x: Tensor) -> Any:
                return wrap(super().forward(x))

        expected = one(Classifier(2), self.image, "gradcam", 1)
        check_close(one(Wraps(2), self.image, "gradcam", 1, output=output).values, expected.values)
        check_close(one(Wraps(2), self.image, "ablationcam", 1, output=output).values, one(
            Classifier(2), self.image, "ablationcam", 1
        ).values)  # fmt: skip

    def test_it_must_be_said(self) -> None:
        class Two(Classifier):
            def forward(self, x: Tensor) -> Any:
                y = super().forward(x)
                return {"a": y, "b": y}

        with pytest.raises(ValueError, match=r"keys \['a', 'b'\]; say which tensor is meant with `output`"):
            medviz.explain(Two(2), self.image, "gradcam", 1)
        with pytest.raises(ValueError, match="`output` 'c' is not in the model's output"):
            medviz.explain(Two(2), self.image, "gradcam", 1, output="c")

    def test_logits_of_one_axis(self) -> None:
        class Flat(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x)[:, 0]

        expected = one(Classifier(2), self.image, "gradcam", 0)
        check_close(one(Flat(2), self.image, "gradcam", medviz.BinaryTarget()).values, expected.values)


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_the_model_is_never_moved(device: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=rf"`device` is {device}, but the model is on \['cpu'\]"):
        medviz.explain(Classifier(2), images(1, 2, 8, 8), "gradcam", device=device)


def test_autocast_computes_the_network_in_half_precision() -> None:
    model, image = Classifier(2), images(2, 2, 8, 8)
    full, half = (one(model, image, "gradcam", 1, autocast=kind) for kind in (None, torch.bfloat16))
    assert half.values.dtype == torch.float32
    assert not torch.equal(half.values, full.values)
    check_close(half.values, full.values, 3e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(one(model, image, "gradcam", 1).values, half.values)
        assert torch.equal(one(model, image, "gradcam", 1, autocast=False).values, full.values)


def test_a_stochastic_method_of_any_class_gets_a_seed() -> None:
    """A copy of it does: what was handed over stays as it is, and nothing of it is converted twice."""

    class Noise(medviz.Explainer):
        stochastic = True

        def __init__(self, seed: int | None = None) -> None:
            self.seed = seed

        @medviz.hookimpl
        def explain(self, probe: medviz.Probe) -> Tensor:
            return torch.rand(probe.inputs.shape, generator=torch.Generator().manual_seed(self.seed))

    @attrs.frozen(eq=False)
    class Holds(medviz.Explainer):
        share: float = attrs.field(converter=lambda percent: percent / 100)
        one: medviz.Explainer = medviz.field(kind="explainers", default="medviz-xai/smoothgrad")
        other: medviz.Explainer = medviz.field(kind="explainers", default="medviz-xai/smoothgrad")

        @medviz.hookimpl
        def explain(self, probe: medviz.Probe, target: FixedTarget) -> Tensor:
            return self.share * (self.one.on(probe, target) - self.other.on(probe, target)).abs()

    model, image = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.rand(1, 1, 4, 4)
    given = Noise()
    first = medviz.explain(model, image, given, 1)
    assert given.seed is None
    assert torch.equal(medviz.explain(model, image, Noise(first.provenance["seed"]), 1).raw, first.raw)
    same = medviz.explain(model, image, Holds(50, given, given), 1)
    assert same.provenance["parameters"]["share"] == 0.5
    assert not same.raw.any()  # one inside of two fields is one
    two = medviz.explain(model, image, Holds(50, Noise(), Noise()), 1)
    seeds = [two.provenance["parameters"][name]["seed"] for name in ("one", "other")]
    again = medviz.explain(model, image, Holds(50, *map(Noise, seeds)), 1)
    assert two.raw.any()
    assert torch.equal(again.raw, two.raw)


def test_explainers_that_hold_each_other() -> None:
    class Knot(medviz.Explainer):
        def __init__(self) -> None:
            self.me = self

        @medviz.hookimpl
        def explain(self, probe: medviz.Probe) -> Tensor:
            return probe.inputs.abs()

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    assert medviz.explain(model, torch.rand(1, 1, 4, 4), Knot(), 1).values.any()
