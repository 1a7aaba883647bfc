"""Each way in which an installed plugin can be broken has its own error, and costs nobody else anything."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers_distributions import EXPLAINER, build_wheel, install

import medviz
from medviz import health, registry
from medviz.errors import PluginError

_HEAD = "import medviz\nfrom medviz.hookspecs import *\nfrom medviz.hookspecs import hookimpl\n"


def _explainer(body: str) -> str:
    return f"{_HEAD}class Broken(Explainer):\n{body}"


def _hook(signature: str, mark: str = "@hookimpl", name: str = "explain") -> str:
    return _explainer(f"    {mark}\n    def {name}({signature}):\n        return probe.inputs\n")


# name: (kind, source of the module, what the message says)
BROKEN: dict[str, tuple[str, str, str]] = {
    "importerror": ("explainers", "import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library'"),
    "exits": ("explainers", "raise SystemExit(3)\n", "SystemExit: 3"),
    "noattribute": ("explainers", "", "has no attribute 'Broken'"),
    "misspelt": ("explainers", _hook("self, probe", name="explian"), r"explian is marked.*did you mean 'explain'\?"),
    "unmarked": (
        "explainers",
        _hook("self, probe", mark=""),
        "explain lacks its mark; write `@medviz.hookimpl`",
    ),
    "default": (
        "explainers",
        _hook("self, probe, target=None"),
        "an argument that has a default, 'target=None'",
    ),
    "keywordonly": (
        "explainers",
        _hook("self, *, probe"),
        r"the keyword-only or starred argument 'probe'",
    ),
    "starred": ("explainers", _hook("self, *args"), r"the keyword-only or starred argument '\*args'"),
    "kwargs": (
        "explainers",
        _hook("self, **kwargs"),
        r"the keyword-only or starred argument '\*\*kwargs'",
    ),
    "unknownargument": ("explainers", _hook("self, prob"), r"unknown argument 'prob'; did you mean 'probe'\?"),
    "static": (
        "explainers",
        _hook("probe", mark="@staticmethod\n    @hookimpl"),
        "is a staticmethod; a hook is a",
    ),
    "noself": ("explainers", _hook(""), "explain takes no argument; the first of a method is `self`"),
    "async": (
        "explainers",
        _explainer("    @hookimpl\n    async def explain(self, probe):\n        return probe.inputs\n"),
        "explain is `async`; a hook is a plain method",
    ),
    "yields": (
        "explainers",
        _explainer("    @hookimpl\n    def explain(self, probe):\n        yield probe.inputs\n"),
        "explain yields; a hook returns its result",
    ),
    "abstract": (
        "explainers",
        f"import abc\n{_HEAD}class Broken(Explainer, abc.ABC):\n    @hookimpl\n    def explain(self, probe):\n"
        "        return self.made(probe)\n    @abc.abstractmethod\n    def made(self, probe): ...\n",
        "is abstract; it lacks made",
    ),
    "equal": (
        "explainers",
        _hook("self, probe").replace("class Broken", "import attrs\n\n@attrs.frozen\nclass Broken"),
        r"compares its instances by value.*write @attrs\.frozen\(eq=False\), or dataclass",
    ),
    "ownfield": (
        "explainers",
        f"import attrs\n{_HEAD}@attrs.frozen(eq=False)\nclass Broken(Explainer):\n    check: bool = True\n"
        "    @hookimpl\n    def explain(self, probe):\n        return probe.inputs\n",
        r"Broken.check is not check\(self, shape\), which every medviz.Explainer has; give it another name",
    ),
    "ownmethod": (
        "sinks",
        f"{_HEAD}class Broken(Sink):\n    def check(self, attribution):\n        return True\n"
        "    @hookimpl\n    def write(self, attribution):\n        return 'x'\n",
        r"Broken.check is not check\(self, keys\), which every medviz.Sink has; give it another name",
    ),
    "noclass": ("explainers", "Broken = object()\n", "is not a class; an entry point names the plugin's class"),
    "wrongbase": ("explainers", "class Broken:\n    pass\n", "does not subclass medviz.Explainer"),
    "wrongkind": ("sinks", _hook("self, probe"), "does not subclass medviz.Sink"),
    "nohook": ("explainers", _explainer("    pass\n"), "implements no hook; it needs a marked explain"),
    "iswrapper": (
        "explainers",
        _explainer("    @hookimpl(wrapper=True)\n    def explain(self):\n        return (yield)\n"),
        "must not have `wrapper=True`",
    ),
    "oldwrapper": (
        "explainers",
        _explainer("    @hookimpl(hookwrapper=True)\n    def explain(self):\n        yield\n"),
        "must not have `wrapper=True`",
    ),
    "notwrapping": (
        "wrappers",
        f"{_HEAD}class Broken(Wrapper):\n    @hookimpl\n    def render(self):\n        yield\n",
        "render needs `wrapper=True`",
    ),
    "neveryields": (
        "wrappers",
        f"{_HEAD}class Broken(Wrapper):\n    @hookimpl(wrapper=True)\n    def render(self):\n        return None\n",
        "render never yields",
    ),
    "fieldsuffixes": (
        "readers",
        f"{_HEAD}import attrs\n\n@attrs.frozen(eq=False)\nclass Broken(Reader):\n    suffixes: tuple = ('.npy',)\n"
        "    @hookimpl\n    def read(self, path):\n        return None\n",
        r"suffixes is a field; write `suffixes: ClassVar\[tuple\[str, \.\.\.\]\] = …`",
    ),
    "onesuffix": (
        "readers",
        f"{_HEAD}class Broken(Reader):\n    suffixes = '.npy'\n"
        "    @hookimpl\n    def read(self, path):\n        return None\n",
        r"suffixes is '\.npy'; write `suffixes: ClassVar\[tuple\[str, \.\.\.\]\] = …`",
    ),
    "numberofaxes": (
        "explainers",
        _explainer("    ndim = 3\n    @hookimpl\n    def explain(self, probe):\n        return probe.inputs\n"),
        r"ndim is 3; write `ndim: ClassVar\[tuple\[int, \.\.\.\]\] = …`",
    ),
    "signedword": (
        "explainers",
        _explainer("    signed = 'yes'\n    @hookimpl\n    def explain(self, probe):\n        return probe.inputs\n"),
        r"signed is 'yes'; write `signed: ClassVar\[bool\] = …`",
    ),
    "misspeltflag": (
        "explainers",
        _explainer("    sgined = True\n    @hookimpl\n    def explain(self, probe):\n        return probe.inputs\n"),
        r"sgined declares nothing; did you mean 'signed'\?",
    ),
    "wrapsnothing": (
        "wrappers",
        f"{_HEAD}class Broken(Wrapper):\n    @hookimpl(wrapper=True)\n    def explains(self):\n        yield\n",
        r"no hook of wrappers has that name; did you mean 'explain'\?",
    ),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one package of broken plugins and a sound one, and one that lists a name twice."""
    folder = tmp_path_factory.mktemp("broken")
    files = {f"mv_broken_{name}.py": source for name, (_, source, _) in BROKEN.items()}
    lines = [(kind, name, f"mv_broken_{name}:Broken") for name, (kind, _, _) in BROKEN.items()]
    sound = {"mv_sound.py": EXPLAINER}
    broken = build_wheel(
        folder, "medviz-broken", {**files, **sound}, [*lines, ("explainers", "sound", "mv_sound:Brightness")], "0.7"
    )
    once = build_wheel(folder, "medviz-twice", {"mv_twice.py": ""}, [("readers", "twice", "mv_twice:A")])
    installed = install(folder / "target", broken, once)
    with open(installed / "medviz_twice-1.2.3.dist-info" / "entry_points.txt", "a") as file:
        file.write("twice = mv_twice:B\n")  # some releases of pip refuse to install such a wheel, others do not
    return installed


@pytest.fixture(autouse=True)
def _installed(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(target))


@pytest.mark.parametrize("name", BROKEN)
def test_each_break_has_its_own_error(name: str) -> None:
    kind, _, message = BROKEN[name]
    with pytest.raises(PluginError, match=message) as caught:
        registry.get(kind, name)
    assert f"plugin '{name}' ({kind}) of medviz-broken 0.7 (mv_broken_{name}:Broken) is broken: " in str(caught.value)


def test_the_messages_tell_the_breaks_apart() -> None:
    causes = {str(err).partition("is broken: ")[2] for _, err in health.check() if err and "medviz-broken" in str(err)}
    assert len(causes) == len(BROKEN)


@pytest.mark.parametrize("name", [name for name in BROKEN if name not in ("exits", "noattribute")])
def test_the_docs_show_each_error(name: str) -> None:
    page = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| .* \| (.*) \|$", page.partition("## When something is wrong")[2], re.MULTILINE)
    shown = [
        part for cell in cells for text in re.findall(r"`{1,2}(.+?)`{1,2}(?:$|, )", cell) for part in text.split("…")
    ]
    with pytest.raises(PluginError) as caught:
        registry.get(BROKEN[name][0], name)
    assert [part for part in shown if len(part.strip()) > 8 and part.strip() in str(caught.value)]


def test_a_missing_library_is_kept_as_the_cause() -> None:
    with pytest.raises(PluginError) as caught:
        medviz.get_explainer("importerror")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_check_finds_exactly_the_broken_ones() -> None:
    found = {entry.name: err for entry, err in health.check() if entry.package in ("medviz-broken", "medviz-twice")}
    assert {name for name, err in found.items() if err} == {*BROKEN, "twice"}
    assert found["sound"] is None


def test_a_name_listed_twice_in_one_distribution_is_an_error() -> None:
    with pytest.raises(PluginError, match=r"medviz-twice 1\.2\.3 lists 'twice' twice among its readers"):
        medviz.get_reader("twice")
    with pytest.raises(PluginError, match="lists 'twice' twice"):
        medviz.get_reader("medviz-twice/twice")


def test_broken_neighbours_cost_a_sound_plugin_nothing() -> None:
    assert medviz.get_explainer("sound:power=2").power == 2
    assert {"sound", "gradcam", "importerror"} <= set(medviz.names("explainers"))
    assert registry.find("explainers", "gradcam").package == "medviz-xai"


def test_broken_readers_cost_a_sound_one_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((1, 2, 3), np.float32))
    assert medviz.read(tmp_path / "a.npy").data.shape == (1, 2, 3)
    (tmp_path / "a.xyz").touch()
    with pytest.raises(PluginError, match=r"no reader takes 'a\.xyz'.*suffixes is a field"):
        medviz.read(tmp_path / "a.xyz")
