"""What a hook returns is held against its spec, and wrappers go around it in their order."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import medviz
from medviz import relay
from medviz.attribution import Attribution
from medviz.contract import check_class, hooks_of
from medviz.errors import PluginError
from medviz.hookspecs import Explainer, Occluder, Reader, Renderer, Sink, Wrapper, hookimpl
from medviz.rendering import Rendering


@attrs.frozen(eq=False)
class _Says:
    """The hooks of what mixes this in return `answer`."""

    answer: Any = None


class _Explains(_Says, Explainer):
    @hookimpl
    def explain(self) -> Any:
        return self.answer


class _Occludes(_Says, Occluder):
    @hookimpl
    def occlude(self, patches: torch.Tensor) -> Any:
        return patches if self.answer is None else self.answer

    @hookimpl
    def blend_weight(self) -> Any:
        return self.answer


class _Draws(_Says, Renderer):
    @hookimpl
    def render(self) -> Any:
        return self.answer


class _Writes(_Says, Sink):
    @hookimpl
    def write(self, attribution: Attribution) -> Any:
        return self.answer


class _Reads(_Says, Reader):
    suffixes = (".txt",)

    @hookimpl
    def read(self) -> Any:
        return self.answer


def _attribution(images: int = 1) -> Attribution:
    return Attribution(torch.zeros(images, 1, 4, 4), torch.zeros(images, 2, 4, 4))


def _rendering() -> Rendering:
    return Rendering(np.zeros((1, 2, 2, 3), np.uint8))


_PROBE = SimpleNamespace(inputs=torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "returned NoneType; expected a floating-point tensor"),
        ([1.0], "returned list"),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.int64),
            r"Tensor \(2, 1, 4, 4\), int64 on cpu; expected a floating-point",
        ),
        (torch.zeros(2, 4, 4), r"expected \(2, 1 or 3, 2 spatial axes\)"),
        (torch.zeros(1, 1, 4, 4), r"expected \(2, 1 or 3"),
        (torch.zeros(2, 2, 4, 4), r"expected \(2, 1 or 3"),
        (torch.zeros(2, 1, 0, 4), "not an empty map"),
        (torch.full((2, 1, 4, 4), torch.nan), "with 32 values that are NaN or infinite; expected finite values"),
        (torch.zeros(2, 1, 4, 4).to(torch.float8_e5m2), "float8_e5m2 on cpu; expected a floating-point tensor"),
        (torch.zeros(2, 1, 4, 4, device="meta"), "float32 on meta; expected a floating-point tensor"),
        (torch.zeros(2, 1, 4, 4).to_sparse(), "sparse_coo float32 on cpu; expected a floating-point tensor"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.complex64), "complex64 on cpu; expected a floating-point tensor"),
        (torch.full((2, 1, 4, 4), -1.0), "returned negative values, but does not declare `signed`"),
    ],
)
def test_a_map_that_breaks_the_contract_is_refused(answer: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        relay.run_explainer(_Explains(answer), _PROBE, None)
    assert "_Explains.explain" in str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_map_that_keeps_the_contract_passes_on_any_grid(channels: int) -> None:
    values = torch.rand(2, channels, 3, 5, requires_grad=True)
    returned = relay.run_explainer(_Explains(values), _PROBE, None)
    assert torch.equal(returned, values)
    assert not returned.requires_grad


@pytest.mark.parametrize(
    "answer",
    [
        torch.zeros(1),
        torch.full((2, 1, 3, 3), torch.inf),
        "zeros",
        torch.zeros(2, 1, 3, 3, dtype=torch.float16),
        torch.zeros(2, 1, 3, 3, dtype=torch.float64),
        torch.zeros(2, 1, 3, 3, dtype=torch.int64),
        torch.zeros(2, 1, 3, 3, dtype=torch.bool),
        torch.zeros(2, 1, 3, 3, dtype=torch.complex64),
        torch.zeros(2, 1, 3, 3, device="meta"),
        torch.zeros(2, 1, 3, 3).to_sparse(),
    ],
)
def test_wrong_hidden_windows_are_refused(answer: Any) -> None:
    with pytest.raises(PluginError, match=r"_Occludes.occlude returned .*; expected a finite tensor \(2, 1, 3, 3\)"):
        _Occludes(answer)(torch.zeros(2, 1, 3, 3), torch.zeros(1, 8, 8), torch.zeros(2, 2))


@pytest.mark.parametrize(
    "answer",
    [
        torch.ones(3),
        torch.zeros(3, 3),
        -torch.ones(3, 3),
        torch.tensor([torch.nan]).expand(3, 3),
        torch.ones(3, 3, dtype=torch.complex64),
        1,
    ],
)
def test_wrong_weights_are_refused(answer: Any) -> None:
    with pytest.raises(PluginError, match=r"_Occludes\.blend_weight returned"):
        _Occludes(answer).weight((3, 3))


def test_what_is_handed_over_must_not_be_changed_in_place() -> None:
    """Else the next method sees another image, and a sink writes another map."""

    class Explains(Explainer):
        @hookimpl
        def explain(self, probe: Any) -> torch.Tensor:
            probe.inputs.sub_(1)
            return probe.inputs[:, :1] * 0

    class Occludes(Occluder):
        def __init__(self, which: int) -> None:
            self.which = which

        @hookimpl
        def occlude(self, patches: torch.Tensor, image: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
            (patches, image, corners)[self.which].zero_()
            return patches * 0

    class Draws(Renderer):
        @hookimpl
        def render(self, attribution: Attribution) -> Rendering:
            attribution.values.mul_(0)
            return _rendering()

    class Writes(Sink):
        @hookimpl
        def write(self, attribution: Attribution) -> str:
            attribution.image.add_(1)
            return "nowhere"

    with pytest.raises(PluginError, match=r"Explains\.explain changed `probe\.inputs` in place; work on a copy of it"):
        relay.run_explainer(Explains(), SimpleNamespace(inputs=torch.zeros(2, 3, 8, 8)), None)
    for which, name in enumerate(("patches", "image", "corners")):
        with pytest.raises(PluginError, match=rf"Occludes\.occlude changed `{name}` in place"):
            Occludes(which)(torch.zeros(2, 1, 3, 3), torch.zeros(1, 8, 8), torch.zeros(2, 2))
    with pytest.raises(PluginError, match=r"Draws\.render changed `attribution\.values` in place"):
        Draws()(_attribution(2))
    with pytest.raises(PluginError, match=r"Writes\.write changed `attribution\.image` in place"):
        Writes()(_attribution())


def test_instances_are_held_against_the_contract_too() -> None:
    class Checks(Sink):
        check = True

        @hookimpl
        def write(self, attribution: Attribution) -> str:
            return "nowhere"

    class Weighs(Occluder):
        weight = 1.0

        @hookimpl
        def occlude(self, patches: torch.Tensor) -> torch.Tensor:
            return patches * 0

    class Anything(Sink):
        def check(self, *args: Any, **kwargs: Any) -> None:
            pass

        @hookimpl
        def write(self, attribution: Attribution) -> str:
            return "nowhere"

    with pytest.raises(PluginError, match=r"Checks\.check is not check\(self, keys\)"):
        Checks()(_attribution())
    with pytest.raises(PluginError, match=r"Weighs\.weight is not weight\(self, mask_size\)"):
        medviz.get_explainer("occlusion", occluder=Weighs())
    assert Anything()(_attribution()) == "nowhere"


def test_weights_that_are_not_given_are_ones() -> None:
    assert torch.equal(_Occludes().weight((2, 3)), torch.ones(2, 3))


@pytest.mark.parametrize("answer", [None, np.zeros((1, 2, 2, 3), np.uint8)])
def test_what_is_no_rendering_is_refused(answer: Any) -> None:
    with pytest.raises(PluginError, match=r"_Draws.render returned .*; expected a medviz.Rendering"):
        _Draws(answer)(_attribution())


@pytest.mark.parametrize("answer", [None, 3])
def test_a_sink_says_where_it_wrote(answer: Any) -> None:
    with pytest.raises(PluginError, match=r"_Writes.write returned .*; expected where it was written to"):
        _Writes(answer)(_attribution())


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(PluginError, match=r"_Reads.read returned Tensor \(1, 2, 2\), .*; expected a medviz.Image"):
        _Reads(torch.zeros(1, 2, 2))(tmp_path / "a.txt")


def test_reading_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing.txt"):
        _Reads()(tmp_path / "missing.txt")


def test_a_batch_is_drawn_and_written_one_image_at_a_time() -> None:
    assert isinstance(_Draws(_rendering())(_attribution(1)), Rendering)
    assert len(_Draws(_rendering())(_attribution(3))) == 3
    assert _Writes("there")(_attribution(1)) == "there"
    assert _Writes("there")(_attribution(2)) == ["there", "there"]
    assert _Writes("there")([_attribution(1)]) == ["there"]


@attrs.frozen(eq=False)
class _Notes(Wrapper):
    """Write down who is called, before and after."""

    name: str
    log: list[str]

    @hookimpl(wrapper=True)
    def render(self, plugin: Renderer, attribution: Attribution) -> Iterator[None]:
        self.log.append(f"{self.name} before {type(plugin).__name__} {len(attribution)}")
        result = yield
        self.log.append(f"{self.name} after")
        return result


@attrs.frozen(eq=False)
class _Spoils(Wrapper):
    @hookimpl(wrapper=True)
    def render(self) -> Iterator[None]:
        yield
        return "spoilt"


def test_the_first_wrapper_is_outermost_and_sees_the_plugin() -> None:
    log: list[str] = []
    _Draws(_rendering())(_attribution(), wrappers=[_Notes("outer", log), _Notes("inner", log)])
    assert log == ["outer before _Draws 1", "inner before _Draws 1", "inner after", "outer after"]


def test_wrappers_are_off_unless_named() -> None:
    log: list[str] = []
    draws = _Draws(_rendering())
    draws(_attribution(), wrappers=[_Notes("outer", log)])
    draws(_attribution())
    assert len(log) == 2


def test_what_a_wrapper_returns_is_checked_too() -> None:
    with pytest.raises(PluginError, match=r"_Draws\.render, inside of .*_Spoils, returned str; expected"):
        _Draws(_rendering())(_attribution(), wrappers=[_Spoils()])


class _Loses(Wrapper):
    """Forgets to hand on what comes."""

    @hookimpl(wrapper=True)
    def render(self) -> Iterator[None]:
        yield

    @hookimpl(wrapper=True)
    def blend_weight(self) -> Iterator[None]:
        yield


class _AroundWeights(Wrapper):
    @hookimpl(wrapper=True)
    def blend_weight(self) -> Iterator[None]:
        weight = yield
        return None if weight is None else 2 * weight


class _Twice(Wrapper):
    @hookimpl(wrapper=True)
    def render(self) -> Iterator[None]:
        yield
        return (yield)


def test_a_wrapper_that_loses_the_result_is_blamed_for_it() -> None:
    with pytest.raises(PluginError, match=r"inside of .*_Loses, returned None, and the plugin itself did not"):
        _Draws(_rendering())(_attribution(), wrappers=[_AroundWeights(), _Loses()])
    with pytest.raises(PluginError, match="returned None, and the plugin itself did not"):
        _Occludes(torch.ones(3, 3)).weight((3, 3), wrappers=[_Loses()])
    assert _Occludes().weight((3, 3), wrappers=[_Loses()]).equal(torch.ones(3, 3))
    with pytest.raises(PluginError, match=r"_Draws\.render, inside of .*_Loses, returned NoneType; expected"):
        _Draws(None)(_attribution(), wrappers=[_Loses()])


def test_a_wrapper_yields_once() -> None:
    with pytest.raises(PluginError, match=r"inside of .*_Twice, failed: a wrapper yields once"):
        _Draws(_rendering())(_attribution(), wrappers=[_Twice()])


def test_a_wrapper_may_go_around_an_optional_hook_alone() -> None:
    weight = _Occludes(torch.ones(3, 3)).weight((3, 3), wrappers=[_AroundWeights()])
    assert weight.equal(torch.full((3, 3), 2.0))


@pytest.mark.parametrize(
    ("wrappers", "error", "message"),
    [
        ("timing", TypeError, r"`wrappers` is a list; write \['timing'\]"),
        (["no-such"], PluginError, "no plugin 'no-such' among the wrappers"),
        ([_Draws()], PluginError, "is not a medviz.Wrapper"),
    ],
)
def test_wrong_wrappers_are_refused(wrappers: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _Draws(_rendering())(_attribution(), wrappers=wrappers)


def test_a_direct_instance_of_a_broken_class_is_refused_when_it_is_called() -> None:
    class Unmarked(Renderer):
        def render(self, attribution: Attribution) -> Rendering:
            return _rendering()

    with pytest.raises(PluginError, match="lacks its mark"):
        Unmarked()(_attribution())


def test_a_plugin_of_two_kinds_is_refused() -> None:
    class Both(_Draws, Reader):
        pass

    with pytest.raises(PluginError, match=r"Both is of several kinds, renderers and readers; write one class for each"):
        check_class(Both, "renderers")


def test_an_optional_hook_alone_is_no_plugin() -> None:
    class OnlyWeights(Occluder):
        @hookimpl
        def blend_weight(self) -> None:
            return None

    with pytest.raises(PluginError, match="implements no hook; it needs a marked occlude"):
        check_class(OnlyWeights, "occluders")


def test_wrappers_have_the_hooks_of_all_kinds() -> None:
    own = {hook for kind in ("explainers", "occluders", "renderers", "sinks", "readers") for hook in hooks_of(kind)}
    assert own == set(hooks_of("wrappers")) == {"explain", "occlude", "blend_weight", "render", "write", "read"}
    assert all("plugin" in arguments for arguments in hooks_of("wrappers").values())


def test_sinks_refuse_what_is_no_result() -> None:
    with pytest.raises(TypeError, match="a sink takes a Rendering, an Attribution or a list of them; got int"):
        _Writes("there")(3)
    with pytest.raises(TypeError, match="a renderer draws an Attribution, one at a time; got list"):
        _Draws(_rendering())([_attribution()])
    with pytest.raises(ValueError, match="_Writes writes values; the rendering that it was given holds none"):
        _Writes("there")(_rendering())


def test_public_names_are_all_loadable() -> None:
    assert [name for name in medviz.__all__ if not hasattr(medviz, name)] == []


def test_a_copy_of_a_plugin_is_called_itself() -> None:
    class Fixed(Explainer):
        value = 1.0

        @hookimpl
        def explain(self, probe: Any) -> Tensor:
            return torch.full((1, 1, 4, 4), self.value)

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    image, first = torch.rand(1, 1, 8, 8), Fixed()
    assert medviz.explain(model, image, first).values.max() == 1
    second = copy.copy(first)
    second.value = 2.0
    assert medviz.explain(model, image, second).values.max() == 2


def test_a_wrapper_stands_once_in_the_chain() -> None:
    class Around(Wrapper):
        @hookimpl(wrapper=True)
        def explain(self) -> Any:
            return (yield)

    model, around = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), Around()
    with pytest.raises(PluginError, match="twice"):
        medviz.explain(model, torch.rand(1, 1, 8, 8), "vanillagrad", 0, wrappers=[around, around])


def test_wrappers_go_around_an_explainers_occluder() -> None:
    class Counts(Wrapper):
        seen: ClassVar[list[str]] = []

        @hookimpl(wrapper=True)
        def occlude(self, plugin: Occluder) -> Iterator[None]:
            self.seen.append(f"occlude {type(plugin).__name__}")
            return (yield)

        @hookimpl(wrapper=True)
        def blend_weight(self, plugin: Occluder) -> Iterator[None]:
            self.seen.append(f"blend_weight {type(plugin).__name__}")
            return (yield)

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    image, method = torch.rand(1, 1, 8, 8), "occlusion:mask_size=4,occluder=constant"
    plain = medviz.explain(model, image, method, 0)
    assert Counts.seen == []
    wrapped = medviz.explain(model, image, method, 0, wrappers=[Counts()])
    assert {"occlude Constant", "blend_weight Constant"} == set(Counts.seen)
    assert torch.equal(plain.values, wrapped.values)
