"""Call a plugin's hook and hold what it returns against the spec: a wrong picture or map stops here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from medviz import registry
from medviz.contract import call, called, names_argument
from medviz.errors import PluginError
from medviz.hookspecs import Explainer, Occluder, Plugin, Reader, Renderer, Sink, Wrapper, Wrappers

if TYPE_CHECKING:
    from torch import Tensor

    from medviz.attribution import Attribution
    from medviz.image import Image
    from medviz.probe import Probe
    from medviz.rendering import Rendering
    from medviz.targets import FixedTarget


def as_wrappers(wrappers: Wrappers) -> tuple[Wrapper, ...]:
    """Return the wrappers that are meant by names, plugin strings or instances, in the same order."""
    if isinstance(wrappers, str | Wrapper) or not isinstance(wrappers, Iterable):
        raise TypeError(f"`wrappers` is a list; write {[wrappers] if wrappers else []!r}.")
    resolved = tuple(registry.resolve("wrappers", wrapper) for wrapper in wrappers)
    for wrapper in resolved:
        if not isinstance(wrapper, Wrapper):
            raise PluginError(f"{wrapper!r} is not a medviz.Wrapper.")
    if len({id(wrapper) for wrapper in resolved}) < len(resolved):
        raise PluginError(f"`wrappers` names one instance twice: {list(resolved)}.")
    return resolved


def run_explainer(explainer: Explainer, probe: Probe, target: FixedTarget, wrappers: Wrappers = ()) -> Tensor:
    """Return the checked result of `explain`: `(B, K, *s)` on the method's own grid."""
    import torch

    from medviz.finite import all_finite, ends
    from medviz.tensors import plain

    around = as_wrappers(wrappers)
    values = call(explainer, "explain", {"probe": probe, "target": target}, around)
    shape = (len(probe.inputs), *probe.inputs.shape[1:])
    if not isinstance(values, torch.Tensor) or not values.is_floating_point():
        raise _wrong(explainer, "explain", values, "a floating-point tensor (B, K, *s)", around)
    if values.ndim != len(shape) or len(values) != shape[0] or values.shape[1] not in (1, shape[1]):
        expected = f"({shape[0]}, 1 or {shape[1]}, {len(shape) - 2} spatial axes)"
        raise _wrong(explainer, "explain", values, expected, around)
    if not values.numel() or not all_finite(values):
        raise _wrong(explainer, "explain", values, "finite values, not an empty map", around)
    if not explainer.signed and ends(values)[0] < 0:
        said = called(explainer, "explain", around)
        raise PluginError(f"{said} returned negative values, but does not declare `signed`.")
    return plain(values).detach()


def occlude(occluder: Occluder, patches: Tensor, image: Tensor, corners: Tensor, wrappers: Wrappers = ()) -> Tensor:
    """Return the checked result of `occlude`: `(M, C, *mask)`."""
    import torch

    from medviz.finite import all_finite

    arguments = {"patches": patches, "image": image, "corners": corners}
    around = as_wrappers(wrappers)
    hidden = call(occluder, "occlude", arguments, around)
    if not isinstance(hidden, torch.Tensor) or hidden.shape != patches.shape or not all_finite(hidden):
        raise _wrong(occluder, "occlude", hidden, f"a finite tensor {tuple(patches.shape)}", around)
    return hidden


def blend_weight(occluder: Occluder, mask_size: tuple[int, ...], wrappers: Wrappers = ()) -> Tensor:
    """Return the checked result of `blend_weight`; ones where the occluder does not say."""
    import torch

    from medviz.finite import all_finite

    around = as_wrappers(wrappers)
    weight = call(occluder, "blend_weight", {"mask_size": mask_size}, around)
    if weight is None:
        return torch.ones(mask_size, device="cpu")
    good = isinstance(weight, torch.Tensor) and weight.shape == tuple(mask_size)
    if not good or not all_finite(weight) or (weight < 0).any() or not (weight > 0).any():
        expected = f"a finite tensor {tuple(mask_size)}, ≥ 0 and not all zero"
        raise _wrong(occluder, "blend_weight", weight, expected, around)
    return cast("Tensor", weight)


def render(renderer: Renderer, attribution: Attribution, wrappers: Wrappers = ()) -> Rendering | list[Rendering]:
    """Draw each image of `attribution`: one `Rendering` where there is one image, else a list."""
    from medviz.attribution import Attribution
    from medviz.rendering import Rendering

    if not isinstance(attribution, Attribution):
        raise TypeError(f"a renderer draws an Attribution, one at a time; got {type(attribution).__name__}.")
    around = as_wrappers(wrappers)
    drawn = []
    for i in range(len(attribution)):
        rendering = call(renderer, "render", {"attribution": attribution[i]}, around)
        if not isinstance(rendering, Rendering):
            raise _wrong(renderer, "render", rendering, "a medviz.Rendering", around)
        drawn.append(rendering)
    return drawn[0] if len(drawn) == 1 else drawn


def write(
    sink: Sink,
    x: Rendering | Attribution | Sequence[Rendering | Attribution],
    tag: str | None = None,
    step: int = 0,
    wrappers: Wrappers = (),
) -> Any:
    """Hand `x` to `sink`, one image at a time, each with the tag that tells it from the others.

    Raises:
        ValueError: two of several results would go to one file.
    """
    from medviz.attribution import Attribution
    from medviz.files import Place, check_destinations, known_to
    from medviz.rendering import Rendering

    several = not isinstance(x, Attribution | Rendering)
    singles = list(_singles(x))
    attributions = [item.attribution if isinstance(item, Rendering) else item for item in singles]
    places = [Place.of(a, tag, step) for a in attributions]
    check_destinations([sink], places)
    tags = [place.tag or None for place in known_to(sink, places)]
    around = as_wrappers(wrappers)
    draws = names_argument(sink, "write", "rendering")
    written = []
    for item, attribution, tag in zip(singles, attributions, tags, strict=True):
        rendering = item if isinstance(item, Rendering) else render(_renderer(sink), item, around) if draws else None
        if attribution is None and not draws and names_argument(sink, "write", "attribution"):
            raise ValueError(f"{type(sink).__name__} writes values; the rendering that it was given holds none.")
        arguments = {"rendering": rendering, "attribution": attribution, "tag": tag, "step": step}
        result = call(sink, "write", arguments, around)
        if not isinstance(result, str | Path):
            raise _wrong(sink, "write", result, "where it was written to, a path or a string", around)
        written.append(result)
    return written if several or len(written) > 1 else written[0]


def read_with(reader: Reader, path: str | Path, wrappers: Wrappers = ()) -> Image:
    """Read an existing file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    from medviz.image import Image

    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}.")
    around = as_wrappers(wrappers)
    image = call(reader, "read", {"path": path}, around)
    if not isinstance(image, Image):
        raise _wrong(reader, "read", image, "a medviz.Image", around)
    return image


def read(path: str | Path, reader: str | Reader | None = None, *, wrappers: Wrappers = ()) -> Image:
    """Read the image at `path` with the installed reader whose suffix fits, or with `reader`.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        PluginError: no reader, or more than one, has that suffix.
    """
    if Path(path).expanduser().is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; name one file in it.")
    return read_with(registry.resolve("readers", reader) if reader else _reader_for(Path(path)), path, wrappers)


def _reader_for(path: Path) -> Reader:
    fitting: list[tuple[int, str]] = []
    broken: list[str] = []
    for name in registry.names("readers"):
        try:
            suffixes: tuple[str, ...] = registry.find("readers", name).load().suffixes  # type: ignore[attr-defined]
        except PluginError as err:
            broken.append(str(err))
            continue
        lengths = [len(suffix) for suffix in suffixes if path.name.lower().endswith(suffix)]
        fitting += [(max(lengths), name)] if lengths else []
    best = [name for length, name in fitting if length == max(fitting)[0]]
    if len(best) == 1:
        return registry.get_reader(best[0])
    if best:
        raise PluginError(f"several readers take {path.name!r}: {', '.join(best)}; choose one with `reader`.")
    notes = "".join(f" ({message})" for message in broken)
    raise PluginError(f"no reader takes {path.name!r}; installed: {', '.join(registry.names('readers'))}.{notes}")


def _singles(x: Any) -> Iterable[Rendering | Attribution]:
    from medviz.attribution import Attribution
    from medviz.rendering import Rendering

    if isinstance(x, Rendering):
        yield x
    elif isinstance(x, Attribution):
        yield from (x[i] for i in range(len(x)))
    elif isinstance(x, Sequence) and not isinstance(x, str):
        for item in x:
            yield from _singles(item)
    else:
        raise TypeError(f"a sink takes a Rendering, an Attribution or a list of them; got {type(x).__name__}.")


def _renderer(sink: Sink) -> Renderer:
    from medviz.rendering import default_renderer

    return getattr(sink, "renderer", None) or default_renderer()


def _wrong(plugin: Plugin, hook: str, result: Any, expected: str, around: Sequence[Wrapper]) -> PluginError:
    shape = f" {tuple(result.shape)}" if hasattr(result, "shape") else ""
    return PluginError(f"{called(plugin, hook, around)} returned {type(result).__name__}{shape}; expected {expected}.")
