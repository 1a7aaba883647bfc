"""Call a plugin's hook and hold what it returns against the spec: a wrong picture or map stops here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from medviz import registry
from medviz.contract import call, described, names_argument
from medviz.errors import PluginError
from medviz.hookspecs import Explainer, Occluder, Plugin, Reader, Renderer, Sink, Wrapper, Wrappers

if TYPE_CHECKING:
    from torch import Tensor

    from medviz.attribution import Attribution
    from medviz.image import Image
    from medviz.probe import Probe
    from medviz.rendering import Rendering
    from medviz.targets import FixedTarget


# what a hook is handed that holds tensors, by the argument's name: which parts of it; "": the argument itself
_PARTS = {
    "probe": ("inputs",),
    "attribution": ("values", "image", "raw"),
    **dict.fromkeys(("patches", "image", "corners"), ("",)),
}


def as_wrappers(wrappers: Wrappers) -> tuple[Wrapper, ...]:
    """Return the wrappers that are meant by names, plugin strings or instances, in the same order."""
    if isinstance(wrappers, str | Wrapper) or not isinstance(wrappers, Iterable):
        raise TypeError(f"`wrappers` is a list; write {[wrappers] if wrappers else []!r}.")
    resolved = tuple(registry.resolve("wrappers", wrapper) for wrapper in wrappers)
    if len({id(wrapper) for wrapper in resolved}) < len(resolved):
        raise PluginError(f"`wrappers` names one instance twice: {list(resolved)}.")
    return resolved


def run_explainer(explainer: Explainer, probe: Probe, target: FixedTarget, wrappers: Wrappers = ()) -> Tensor:
    """Return the checked result of `explain`: `(B, K, *s)` on the method's own grid."""
    from medviz.finite import all_finite, ends
    from medviz.tensors import is_ordinary, plain

    around = as_wrappers(wrappers)
    values = _call(explainer, "explain", {"probe": probe, "target": target}, around)
    shape = tuple(probe.inputs.shape)
    if not is_ordinary(values):
        raise _wrong(
            explainer, "explain", values, "a floating-point tensor (B, K, *s), dense, of 16 to 64 bits", around
        )
    if values.ndim != len(shape) or len(values) != shape[0] or values.shape[1] not in (1, shape[1]):
        channels = " or ".join(map(str, sorted({1, shape[1]})))
        expected = f"({shape[0]}, {channels}, {len(shape) - 2} spatial axes)"
        raise _wrong(explainer, "explain", values, expected, around)
    if not values.numel() or not all_finite(values):
        raise _wrong(explainer, "explain", values, "finite values, not an empty map", around)
    if not explainer.signed and ends(values)[0] < 0:
        said = described(explainer, "explain", around)
        raise PluginError(f"{said} returned negative values, but does not declare `signed`.")
    return plain(values).detach()


def occlude(occluder: Occluder, patches: Tensor, image: Tensor, corners: Tensor, wrappers: Wrappers = ()) -> Tensor:
    """Return the checked result of `occlude`: `(M, C, *mask)`."""
    from medviz.finite import all_finite
    from medviz.tensors import is_ordinary

    arguments = {"patches": patches, "image": image, "corners": corners}
    around = as_wrappers(wrappers)
    hidden = _call(occluder, "occlude", arguments, around)
    alike = is_ordinary(hidden) and all(getattr(hidden, k) == getattr(patches, k) for k in ("shape", "dtype", "device"))
    if not alike or not all_finite(hidden):
        expected = f"a finite tensor {tuple(patches.shape)}, {patches.dtype} on {patches.device}".replace("torch.", "")
        raise _wrong(occluder, "occlude", hidden, expected, around)
    return cast("Tensor", hidden).detach()


def blend_weight(occluder: Occluder, mask_size: tuple[int, ...], wrappers: Wrappers = ()) -> Tensor:
    """Return the checked result of `blend_weight`; ones where the occluder does not say."""
    import torch

    from medviz.finite import all_finite
    from medviz.tensors import is_ordinary

    around = as_wrappers(wrappers)
    weight = call(occluder, "blend_weight", {"mask_size": mask_size}, around)
    if weight is None:
        return torch.ones(mask_size, device="cpu")
    good = is_ordinary(weight) and weight.shape == tuple(mask_size)
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
        rendering = _call(renderer, "render", {"attribution": attribution[i]}, around)
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
    from medviz.rendering import Rendering
    from medviz.results import ResultKey
    from medviz.sinks.file_sink import check_destinations, known_to

    registry.resolve("sinks", sink)
    several = not isinstance(x, Attribution | Rendering)
    singles = list(_singles(x))
    attributions = [item.attribution if isinstance(item, Rendering) else item for item in singles]
    keys = [ResultKey.of(a, tag, step) for a in attributions]
    check_destinations([sink], keys)
    tags = [key.tag or None for key in known_to(sink, keys)]
    around = as_wrappers(wrappers)
    draws = names_argument(sink, "write", "rendering")
    written = []
    for item, attribution, its_tag in zip(singles, attributions, tags, strict=True):
        rendering = item if isinstance(item, Rendering) else render(_renderer(sink), item, around) if draws else None
        if attribution is None and not draws and names_argument(sink, "write", "attribution"):
            raise ValueError(f"{type(sink).__name__} writes values; the rendering that it was given holds none.")
        arguments = {"rendering": rendering, "attribution": attribution, "tag": its_tag, "step": step}
        result = _call(sink, "write", arguments, around)
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
    """Return the reader with the longest suffix that fits, of whatever name: two readers may share one."""
    fitting: list[tuple[int, registry.Entry]] = []
    broken: list[str] = []
    installed = registry.entries("readers")
    for entry in installed:
        try:
            suffixes: tuple[str, ...] = entry.load().suffixes  # type: ignore[attr-defined]
        except PluginError as err:
            broken.append(str(err))
            continue
        lengths = [len(suffix) for suffix in suffixes if path.name.lower().endswith(suffix)]
        fitting += [(max(lengths), entry)] if lengths else []
    longest = max((length for length, _ in fitting), default=0)
    best = registry.preferred([entry for length, entry in fitting if length == longest])
    if len(best) == 1:
        return registry.get_reader(best[0].full_name)
    if best:
        names = ", ".join(entry.full_name if entry.shared else entry.name for entry in best)
        raise PluginError(
            f"several readers take {path.name!r}: {names}; choose one with `reader`, or its package with "
            f"MEDVIZ_PREFER={best[0].package}."
        )
    notes = "".join(f" ({message})" for message in broken)
    raise PluginError(f"no reader takes {path.name!r}; installed: {', '.join(e.name for e in installed)}.{notes}")


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


def _call(plugin: Plugin, hook: str, arguments: Mapping[str, Any], around: tuple[Wrapper, ...]) -> Any:
    """Return what a hook returns. What it was handed belongs to others, and must be as it was.

    Raises:
        PluginError: it changed a tensor in place.
    """
    held = {
        f"{name}.{part}" if part else name: getattr(value, part) if part else value
        for name, value in arguments.items()
        for part in (() if value is None else _PARTS.get(name, ()))
    }
    before = {name: _version(tensor) for name, tensor in held.items()}
    result = call(plugin, hook, arguments, around)
    if changed := [name for name, tensor in held.items() if _version(tensor) != before[name]]:
        raise PluginError(f"{described(plugin, hook, around)} changed `{changed[0]}` in place; work on a copy of it.")
    return result


def _version(tensor: Tensor | None) -> int | None:
    """Return a number that grows with each change in place; None where there is none."""
    return None if tensor is None or tensor.is_inference() else tensor._version


def _wrong(plugin: Plugin, hook: str, result: Any, expected: str, around: Sequence[Wrapper]) -> PluginError:
    return PluginError(f"{described(plugin, hook, around)} returned {_described(result)}; expected {expected}.")


def _described(result: Any) -> str:
    """Return type, shape and dtype of a result, and how many of its values are not finite."""
    import torch

    from medviz.tensors import is_ordinary

    if not isinstance(result, torch.Tensor):
        return f"{type(result).__name__} {tuple(result.shape)}" if hasattr(result, "shape") else type(result).__name__
    kind = "" if result.layout == torch.strided else f"{result.layout} "
    shape = "" if result.is_nested else f" {tuple(result.shape)}"
    text = f"{type(result).__name__}{shape}, {kind}{result.dtype} on {result.device}".replace("torch.", "")
    bad = int((~torch.isfinite(result)).sum()) if is_ordinary(result) else 0
    return f"{text}, with {bad} values that are NaN or infinite" if bad else text
