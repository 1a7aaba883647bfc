"""Checks of wrappers: what goes through one still keeps the contract, and an error stays an error."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

import medviz
from medviz.attribution import Attribution
from medviz.hookspecs import Explainer, Occluder, Reader, Renderer, Sink, Wrapper, hookimpl
from medviz.image import Image
from medviz.rendering import Rendering
from medviz.testing import cases
from medviz.testing.models import Classifier
from medviz.testing.outcome import describe_error, fail, name_of


class _StoppedError(RuntimeError):
    """What the plugin inside of the wrapper raises."""


@attrs.frozen(eq=False)
class _Gradient(Explainer):
    signed = True
    broken: bool = False

    @hookimpl
    def explain(self, probe: Any, target: Any) -> Tensor:
        _stop(self.broken)
        gradient: Tensor = probe.input_gradient(target)
        return gradient


@attrs.frozen(eq=False)
class _Zero(Occluder):
    broken: bool = False

    @hookimpl
    def occlude(self, patches: Tensor) -> Tensor:
        _stop(self.broken)
        return torch.zeros_like(patches)

    @hookimpl
    def blend_weight(self, mask_size: tuple[int, ...]) -> Tensor:
        _stop(self.broken)
        return torch.ones(mask_size, device="cpu")


@attrs.frozen(eq=False)
class _Grey(Renderer):
    broken: bool = False

    @hookimpl
    def render(self, attribution: Attribution) -> Rendering:
        _stop(self.broken)
        return cases.GREY.render(attribution)


@attrs.frozen(eq=False)
class _Text(Sink):
    broken: bool = False

    @hookimpl
    def write(self, attribution: Attribution) -> str:
        _stop(self.broken)
        return f"{float(attribution.values.max()):g}"


@attrs.frozen(eq=False)
class _Ones(Reader):
    suffixes = (".ones",)
    broken: bool = False

    @hookimpl
    def read(self, path: Path) -> Image:
        _stop(self.broken)
        return Image(torch.ones(1, 2, 3, device="cpu"), path=path)


def _stop(broken: bool) -> None:
    if broken:
        raise _StoppedError("the plugin inside of the wrapper failed")


def _calls(wrapper: Wrapper, broken: bool) -> dict[str, Callable[[], Any]]:
    """Return, for each hook that the wrapper goes around, a call through it."""
    around, batch = [wrapper], cases.images(channels=1)
    patches = batch[:, :, :3, :3]
    corners = torch.zeros(2, 2, dtype=torch.long, device="cpu")
    calls: dict[str, Callable[[], Any]] = {
        "explain": lambda: medviz.explain(Classifier(2, 1), batch, _Gradient(broken), 0, wrappers=around),
        "occlude": lambda: _Zero(broken)(patches, batch[0], corners, wrappers=around),
        "blend_weight": lambda: _Zero(broken).weight((3, 2), wrappers=around),
        "render": lambda: _Grey(broken)(cases.attribution(), wrappers=around),
        "write": lambda: _Text(broken)(cases.attribution(), wrappers=around),
        "read": lambda: _read(broken, around),
    }
    return {hook: call for hook, call in calls.items() if hasattr(getattr(type(wrapper), hook, None), "medviz_impl")}


def _read(broken: bool, around: list[Wrapper]) -> Image:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.ones"
        path.touch()
        return _Ones(broken)(path, wrappers=around)


def check_result(instance: Wrapper) -> None:
    """Around each hook that it names, a call succeeds, twice, and its result still keeps the hook's contract."""
    for hook, call in _calls(instance, broken=False).items():
        for number in ("first", "second"):
            try:
                call()
            except Exception as err:
                fail(
                    f"{name_of(instance)} went around `{hook}` for the {number} time",
                    "the result of the plugin inside, or another that keeps the contract",
                    describe_error(err),
                    "Write `result = yield`, and `return result`.",
                )


def check_errors_pass(instance: Wrapper) -> None:
    """An error of the plugin inside comes out: a wrapper that swallows it makes a result out of nothing."""
    for hook, call in _calls(instance, broken=True).items():
        try:
            call()
            got = "a result and no error"
        except _StoppedError:
            continue
        except Exception as err:
            got = describe_error(err)
        fail(
            f"{name_of(instance)} went around `{hook}` of a plugin that fails",
            "the plugin's own error",
            got,
            "Use try … finally around the `yield`, not an except that returns.",
        )
