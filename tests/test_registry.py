"""Names, clashes, preferences, parameters and fields, with distributions that pip really installed."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from helpers_distributions import EXPLAINER, build_wheel, install
from torch import Tensor

import medviz
from medviz import naming, registry
from medviz.errors import PluginError
from medviz.explainers.occlusion import Occlusion
from medviz.hookspecs import KINDS, Explainer, Occluder, Renderer, hookimpl

_OTHER = EXPLAINER.replace("Brightness", "Other")
_EXPLODES = "raise RuntimeError('somebody imported me')\n"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two packages that claim one name, one of them a built-in's, and one that explodes on import."""
    folder = tmp_path_factory.mktemp("clash")
    one = build_wheel(
        folder,
        "MedViz_Clash.One",
        {"mv_clash_one.py": EXPLAINER},
        [("explainers", "brightness", "mv_clash_one:Brightness"), ("explainers", "gradcam", "mv_clash_one:Brightness")],
    )
    two = build_wheel(
        folder, "medviz-two", {"mv_clash_two.py": _OTHER}, [("explainers", "brightness", "mv_clash_two:Other")]
    )
    explodes = build_wheel(
        folder, "medviz-explodes", {"mv_explodes.py": _EXPLODES}, [("sinks", "boom", "mv_explodes:X")]
    )
    return install(folder / "target", one, two, explodes)


@pytest.fixture
def _clash(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(target))
    monkeypatch.setattr(registry, "_preferred", None)
    monkeypatch.delenv("MEDVIZ_PREFER", raising=False)


def _python(code: str, target: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(target), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_and_entries_import_no_plugin(target: Path) -> None:
    code = (
        "import medviz, sys; print(medviz.names('sinks')); print('mv_explodes' in sys.modules, 'torch' in sys.modules)"
    )
    names, imported = _python(code, target).splitlines()
    assert "'boom'" in names
    assert imported == "False False"


def test_loading_one_plugin_imports_no_other(target: Path) -> None:
    code = (
        "import medviz, sys; medviz.get_explainer('medviz-two/brightness');"
        "print('mv_clash_two' in sys.modules, 'mv_clash_one' in sys.modules, 'mv_explodes' in sys.modules)"
    )
    assert _python(code, target).strip() == "True False False"


@pytest.mark.usefixtures("_clash")
def test_a_clash_names_both_and_both_stay_reachable() -> None:
    with pytest.raises(PluginError, match="'medviz-clash-one/brightness' and 'medviz-two/brightness'"):
        medviz.get_explainer("brightness")
    assert type(medviz.get_explainer("medviz-clash-one/brightness")).__name__ == "Brightness"
    assert type(medviz.get_explainer("medviz-two/brightness:power=3")).__name__ == "Other"
    assert medviz.names("explainers").count("brightness") == 1


@pytest.mark.usefixtures("_clash")
@pytest.mark.parametrize("package", ["medviz-clash-one", "MedViz_Clash.One", "medviz_clash--one"])
def test_package_names_are_normalised(package: str) -> None:
    assert type(medviz.get_explainer(f"{package}/brightness")).__name__ == "Brightness"
    medviz.prefer(package)
    assert type(medviz.get_explainer("brightness")).__name__ == "Brightness"


@pytest.mark.usefixtures("_clash")
def test_the_first_preferred_package_that_has_the_name_wins() -> None:
    medviz.prefer("medviz-xai", "medviz-two", "medviz-clash-one")
    assert type(medviz.get_explainer("brightness")).__name__ == "Other"
    assert registry.find("explainers", "gradcam").package == "medviz-xai"
    medviz.prefer()
    with pytest.raises(PluginError, match="several packages"):
        medviz.get_explainer("brightness")


@pytest.mark.usefixtures("_clash")
def test_the_environment_chooses_until_prefer_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVIZ_PREFER", " medviz_two , medviz-clash-one,")
    assert type(medviz.get_explainer("brightness")).__name__ == "Other"
    medviz.prefer("medviz-clash-one")
    assert type(medviz.get_explainer("brightness")).__name__ == "Brightness"
    medviz.prefer()
    with pytest.raises(PluginError, match="several packages"):
        medviz.get_explainer("brightness")


@pytest.mark.usefixtures("_clash")
def test_an_unknown_preferred_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match=r"'medviz-tow' offers no plugins here; did you mean 'medviz-two'"):
        medviz.prefer("medviz-tow")
    monkeypatch.setenv("MEDVIZ_PREFER", "numpy")
    with pytest.raises(PluginError, match="'numpy' offers no plugins here"):
        registry.find("explainers", "layercam")


@pytest.mark.usefixtures("_clash")
def test_a_full_name_ignores_the_preference() -> None:
    medviz.prefer("medviz-two")
    assert type(medviz.get_explainer("medviz-clash-one/brightness")).__name__ == "Brightness"


def test_a_builtin_is_replaced_on_purpose_only_and_comes_back(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_preferred", None)
    with monkeypatch.context() as installed:
        installed.syspath_prepend(str(target))
        with pytest.raises(PluginError, match="'medviz-clash-one/gradcam' and 'medviz-xai/gradcam'"):
            medviz.get_explainer("gradcam")
        medviz.prefer("medviz-clash-one")
        assert type(medviz.get_explainer("gradcam")).__name__ == "Brightness"
        assert registry.find("explainers", "medviz-xai/gradcam").package == "medviz-xai"
        medviz.prefer()
    assert registry.find("explainers", "gradcam").package == "medviz-xai"
    assert "brightness" not in medviz.names("explainers")


@pytest.mark.usefixtures("_clash")
def test_a_shared_name_is_recorded_with_its_package() -> None:
    """What is recorded means the same method, whoever is preferred then."""
    for package in ("medviz-clash-one", "medviz-two"):
        medviz.prefer(package)
        assert naming.describe(medviz.get_explainer("brightness:power=3")) == f"{package}/brightness:power=3"
    assert naming.describe(medviz.get_explainer("medviz-xai/gradcam")) == "medviz-xai/gradcam"
    assert naming.describe(medviz.get_explainer("layercam")) == "layercam"


def test_a_class_is_known_by_every_module_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"mv_api/__init__.py": "from mv_api.inner import Brightness\n", "mv_api/inner.py": EXPLAINER}
    wheel = build_wheel(tmp_path, "medviz-api", files, [("explainers", "bright", "mv_api:Brightness")], "3.1")
    monkeypatch.syspath_prepend(str(install(tmp_path / "target", wheel)))
    brightness = importlib.import_module("mv_api").Brightness
    for made in (brightness(power=2), medviz.get_explainer("bright", power=2)):
        assert type(made) is brightness
        assert naming.describe(made) == "bright:power=2"
        assert naming.origin(made).full_name == "medviz-api/bright"
        assert naming.origin(made).version == "3.1"


def test_a_line_that_names_no_class_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "def __getattr__(name):\n    import library_that_is_missing\n"
    lines = [("explainers", "typo", "mv-lazy:Typo"), ("explainers", "lazy", "mv_lazy:Lazy")]
    wheel = build_wheel(tmp_path, "medviz-lazy", {"mv_lazy.py": asked}, lines)
    monkeypatch.syspath_prepend(str(install(tmp_path / "target", wheel)))
    importlib.import_module("mv_lazy")
    assert naming.origin(_Data()).name == "_data"
    assert naming.describe(_Data(power=2.0)) == "_data:power=2.0"
    with pytest.raises(PluginError, match=r"'mv-lazy:Typo' is not of the form package\.module:Class"):
        medviz.get_explainer("typo")
    with pytest.raises(PluginError, match="No module named 'library_that_is_missing'"):
        medviz.get_explainer("lazy")


def test_a_name_is_a_string() -> None:
    for wrong in (None, 3, b"gradcam"):
        with pytest.raises(PluginError, match="names no plugin; write its name in quotes"):
            medviz.get_explainer(wrong)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"\['medviz-xai'\] is not the name of a package"):
        medviz.prefer(["medviz-xai"])  # type: ignore[arg-type]


@dataclasses.dataclass(eq=False)
class _Data(Explainer):
    power: float = 1.0
    span: tuple[float, float] = (0.0, 1.0)

    @hookimpl
    def explain(self, probe: medviz.Probe) -> Tensor:
        return probe.inputs.abs() ** self.power


def test_parameters_of_a_class_that_attrs_has_not_made() -> None:
    made = _Data(power=3.0, span=(0.0, math.inf))
    assert naming.describe(made).endswith(":power=3.0,span=(0.0, inf)")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    attribution = medviz.explain(model, torch.rand(1, 1, 4, 4), made, 0)
    assert attribution.provenance["parameters"] == {"power": 3.0, "span": [0.0, math.inf]}


def test_an_unknown_name_lists_near_misses_and_what_is_installed() -> None:
    with pytest.raises(
        PluginError, match=r"no plugin 'gradcamp' among the explainers; did you mean .*'gradcam'"
    ) as caught:
        medviz.get_explainer("gradcamp")
    assert "Installed: " in str(caught.value)
    assert "layercam" in str(caught.value)
    with pytest.raises(PluginError, match="did you mean 'medviz-xai/gradcam'"):
        medviz.get_explainer("medviz-xia/gradcam")


def test_an_unknown_kind_lists_the_kinds() -> None:
    with pytest.raises(PluginError, match="'explainer' is not a kind of plugin; did you mean 'explainers'"):
        medviz.names("explainer")


@pytest.mark.usefixtures("_clash")
def test_parameters_are_refused_with_a_reason() -> None:
    with pytest.raises(PluginError, match=r"has no parameter 'powr'; did you mean 'power'\? It takes: power\."):
        medviz.get_explainer("medviz-two/brightness:powr=2")
    with pytest.raises(PluginError, match=r"'medviz-two/brightness' rejects its parameters \{'power': 0\}") as caught:
        medviz.get_explainer("medviz-two/brightness", power=0)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(PluginError, match="rejects its parameters"):
        medviz.get_explainer("medviz-two/brightness", power="two")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("def __init__(self): raise KeyError('cfg')", r"rejects its parameters \{\}: KeyError: 'cfg'"),
        ("def __new__(cls): return 3", "is broken: its class makes a int"),
    ],
)
def test_a_class_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str, message: str
) -> None:
    code = EXPLAINER.replace("    @hookimpl", f"    {made}\n\n    @hookimpl", 1)
    wheel = build_wheel(
        tmp_path, "medviz-fails", {"mv_fails.py": code}, [("explainers", "fails", "mv_fails:Brightness")]
    )
    monkeypatch.syspath_prepend(str(install(tmp_path / "target", wheel)))
    monkeypatch.delitem(sys.modules, "mv_fails", raising=False)
    with pytest.raises(PluginError, match=f"'medviz-fails/fails' {message}"):
        medviz.get_explainer("fails")


def test_an_array_is_named_by_its_shape() -> None:
    with pytest.raises(PluginError, match=r"\{'baseline': <Tensor \(2, 3, 4\)>\}.* got a Tensor\.$"):
        medviz.get_explainer("integratedgradients", baseline=torch.rand(2, 3, 4))


def test_a_default_is_converted_before_it_is_compared() -> None:
    @attrs.frozen(eq=False)
    class Converts(Explainer):
        scale: float = attrs.field(default=1, converter=float)
        folder: Path = attrs.field(default=".", converter=Path)

    assert naming.describe(Converts()) == "converts"
    assert naming.describe(Converts(2)) == "converts:scale=2.0"

    class Loose(Explainer):
        def __init__(self, a: int = 1, **kw: object) -> None:
            self.a, self.kw = a, kw

    assert naming.describe(Loose(2, b=3)) == "loose:a=2"


def test_a_missing_required_parameter_is_named() -> None:
    with pytest.raises(PluginError, match=r"'medviz-xai/png' needs `path`: png:path=…"):
        medviz.get_sink("png")


def test_text_and_keyword_parameters_are_the_same() -> None:
    written = medviz.get_sink("medviz-xai/png:path=a.png,overwrite=true")
    given = medviz.get_sink("png", path="a.png", overwrite=True)
    assert naming.describe(written) == naming.describe(given) == "png:path=a.png,overwrite=True"


def test_numbers_of_numpy_are_written_as_those_of_python() -> None:
    size, overlap = (np.int64(4), np.uint8(5)), np.float64(0.5)
    made = medviz.get_explainer("occlusion", mask_size=size, overlap=overlap, per_channel=np.bool_(True))
    text = naming.describe(made)
    assert text == "occlusion:mask_size=(4, 5),overlap=0.5,per_channel=True"
    assert naming.describe(medviz.get_explainer(text)) == text
    direct = Occlusion(mask_size=np.int64(4), overlap=np.float64(0.25))
    assert naming.describe(direct) == "occlusion:mask_size=4,overlap=0.25"


def test_a_parameter_may_have_any_name() -> None:
    with pytest.raises(PluginError, match="has no parameter 'name'"):
        medviz.get_sink("npz", path="a.npz", name="x")


@attrs.frozen(eq=False)
class _Zero(Occluder):
    scale: float = 1.0

    @hookimpl
    def occlude(self, patches):  # type: ignore[no-untyped-def]
        return patches * 0


@attrs.frozen(eq=False)
class _Holder(Renderer):
    renderer: Renderer = registry.field(kind="renderers", default="medviz-xai/planes")
    occluder: Occluder = registry.field(kind="occluders", default=_Zero())

    @hookimpl
    def render(self, attribution):  # type: ignore[no-untyped-def]
        return attribution


def test_a_field_resolves_names_on_direct_construction() -> None:
    planes = registry.find("renderers", "planes").load()
    assert type(_Holder().renderer) is planes
    assert type(_Holder("planes").renderer) is planes
    held = _Holder(occluder=_Zero(2.0))
    assert held.occluder.scale == 2.0
    assert naming.describe(held) == "_holder:occluder=_zero(scale=2.0)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("plans", "did you mean 'planes'"),
        (3, "3 is not a medviz.Renderer"),
        (_Zero(), "is not a medviz.Renderer"),
        (None, "None is not a medviz.Renderer"),
    ],
)
def test_a_field_refuses_what_is_no_plugin_of_its_kind(given: object, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        _Holder(renderer=given)


def test_a_field_of_an_unknown_kind_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(PluginError, match="'renderer' is not a kind"):
        registry.field(kind="renderer", default="planes")


def test_every_kind_has_its_entry_point_group_and_no_other_is_listed() -> None:
    assert {entry.kind for entry in registry.entries()} <= set(KINDS)
    assert set(KINDS) == {"explainers", "occluders", "renderers", "sinks", "readers", "wrappers"}


def test_a_default_that_asks_the_plugin_itself() -> None:
    @attrs.frozen(eq=False)
    class Asks(Explainer):
        a: int = 2
        b: int = attrs.field()

        @b.default
        def _twice(self) -> int:
            return 2 * self.a

    assert naming.describe(Asks()) == naming.describe(Asks(b=4))
    assert naming.describe(Asks(b=5)).endswith(":b=5")
