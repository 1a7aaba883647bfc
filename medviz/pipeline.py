"""`explain`: the one conductor. It opens the probe, fixes the targets, calls the explainers, and makes the results."""

from __future__ import annotations

import copy
import logging
import platform
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

import medviz
from medviz import naming, registry
from medviz.attribution import Attribution
from medviz.errors import PluginError
from medviz.finite import all_finite
from medviz.hookspecs import Explainer, Plugin, Wrappers
from medviz.image import as_batch
from medviz.model_arguments import ModelArguments, PerImage
from medviz.probe import Probe
from medviz.probe.batching import BatchSize, apart, check_batch_size, together
from medviz.probe.compiled import check_compiled
from medviz.probe.models import unwrap
from medviz.relay import as_wrappers, run_explainer
from medviz.targets import FixedTarget, as_targets, take
from medviz.tensors import resize

_log = logging.getLogger("medviz")


def explain(
    model: nn.Module,
    image: Any,
    explainers: str | Explainer | Sequence[str | Explainer],
    target: Any = None,
    *,
    output: Callable[[Any], Tensor] | str | int | None = None,
    model_args: Sequence[Any] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    affine: Any = None,
    batch_size: BatchSize = "auto",
    autocast: bool | torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    compiled: bool | str = False,
    wrappers: Wrappers = (),
) -> Attribution | list[Attribution]:
    """Explain what `model` says of `image`, by one or more methods, for one or more targets, in one forward pass.

    The automatic layer needs a second pass for a segmentation network, and one more, to find out which layers lead to
    the output, where there are several outputs or the method needs no gradient; methods that perturb the image or
    sample make their own.

    Args:
        model: the network; it runs in eval mode and is afterwards exactly as it was.
        image: `(B, C, *S)` floating, a MetaTensor, a `medviz.Image`, or a list of Images of one shape.
        explainers: a name, a plugin string, an instance, or a list of them.
        target: None: the class predicted for each clean image; an int; a tensor `(B,)` of classes; a callable from the
            output to `(B,)`; a target such as `medviz.SegmentationTarget`. A list means several targets.
        output: which part of the model's output is meant, where it is not a tensor: a callable, key, field or position.
        model_args: what the model takes after the image; `medviz.per_image(t)` marks what has a row for each image.
        model_kwargs: the same, by keyword.
        affine: (4, 4) or (B, 4, 4), from voxel indices to RAS+ millimetres; None: the image's own.
        batch_size: the most images or perturbed copies in one pass, or "auto": all images, and as many perturbed
            copies as a quarter of the free memory holds, at most 8 on a CPU and 64 elsewhere.
        autocast: None: as it is around the call; True, False or a dtype.
        device: where the images go; None: to the model's own device. The model is never moved.
        progress: show a bar where there are many passes and stderr is a terminal.
        compiled: run the perturbed copies of occlusion, RISE and the like through `torch.compile`: True, or its mode;
            "reduce-overhead" uses CUDA graphs. It takes minutes before the first map, so that it pays for many passes
            only; gradients, and what is run incrementally, stay as they are. Where it fails or gives something else,
            the network runs as it is, and the log says why.
        wrappers: names or instances of wrappers around the hooks of the explainers and of their occluders, the first
            outermost.

    Returns:
        One `Attribution` of B images; where `explainers` or `target` is a list, a flat list, explainers outermost.

    Raises:
        TypeError: `model` is no module, `image` no image or not floating, or `target` nothing that is known.
        ValueError: image, target, layer and model do not suit each other; the message says how.
        PluginError: an unknown or broken plugin, or one that broke its contract.
    """
    several = not isinstance(explainers, str | Explainer) or isinstance(target, list | tuple)
    chosen = _explainers(explainers)
    targets = as_targets(target)
    images, affines = as_batch(image, affine)
    arguments = _arguments(model_args, model_kwargs).of(len(images))
    batch_size = check_batch_size(batch_size)
    check_compiled(compiled)
    around = as_wrappers(wrappers)
    for asked in chosen:
        asked.explainer.check(images.shape)
    how = {"output": _plain(output), "compiled": compiled}
    batches: list[list[Attribution]] = []
    waiting = together(len(images), batch_size, unwrap(model))
    while waiting:
        index = waiting.pop(0)
        rows = images if len(index) == len(images) else images[index]
        probe = Probe(
            model,
            rows,
            layers=[layer for asked in chosen for layer in _layers(asked.explainer)],
            graph=any(asked.explainer.needs_gradient for asked in chosen),
            output=output,
            arguments=arguments.take(index),
            batch_size=batch_size,
            autocast=autocast,
            device=device,
            progress=progress,
            compiled=compiled,
            wrappers=around,
        )
        part = None if affines is None else affines[index.numpy()]
        taken = [(one.label, take(one, index, len(images))) for one in targets]
        with probe:
            if not batches:  # once for all of them
                _mention_probabilities(probe.output)
            made = list(_results(probe, chosen, taken, rows, part, index, around, how))
            if len(index) > 1 and probe.found_mixed:
                waiting = apart([index, *waiting])  # a batch gives what single images give
                if (unmarked := arguments.take(index[:1]).unmarked()) is not None:
                    raise ValueError(f"what the network says of an image depends on those beside it, and {unmarked}")
            else:
                batches.append(made)
    results = [_join(parts) for parts in zip(*batches, strict=True)]
    return results if several else results[0]


def _arguments(args: Any, kwargs: Any) -> ModelArguments:
    if isinstance(args, Tensor | PerImage) or not isinstance(args, Sequence):
        raise TypeError(f"`model_args` is a {type(args).__name__}; expected a list or tuple: (argument,).")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"`model_kwargs` is a {type(kwargs).__name__}; expected a dict: {{'name': argument}}.")
    return ModelArguments(tuple(args), dict(kwargs or {}))


@attrs.frozen(eq=False)
class _Asked:
    """An explainer as it runs, with the seed that was drawn for it, and how it was asked for, without that seed."""

    explainer: Explainer
    text: str
    entry: registry.Entry


def _explainers(explainers: Any) -> list[_Asked]:
    """Return instances; a stochastic one without a seed gets a fresh one, that the provenance records."""
    if not isinstance(explainers, Explainer | Iterable):
        made = f"; write {explainers.__name__}(…)" if isinstance(explainers, type) else ""
        raise TypeError(f"`explainers` is {explainers!r}; expected a name, an instance, or a list of them{made}.")
    given = [explainers] if isinstance(explainers, str | Explainer) else list(explainers)
    if not given:
        raise ValueError("`explainers` is empty; medviz.names('explainers') lists what is installed.")
    chosen = [registry.resolve("explainers", one) for one in given]
    asked = []
    for explainer in chosen:
        entry = naming.origin(explainer)
        asked.append(_Asked(_seeded(explainer), naming.described(explainer, entry), entry))
    return asked


def _seeded(explainer: Explainer, known: dict[int, Explainer] | None = None) -> Explainer:
    """Return an explainer with a fresh seed where it is stochastic and has none, and so those in its fields.

    Args:
        explainer: as it was asked for; it stays as it is.
        known: what was made of others, by their identity: several may hold one, and each other.
    """
    known = {} if known is None else known
    if id(explainer) in known:
        return known[id(explainer)]
    known[id(explainer)] = explainer
    cls: Any = type(explainer)
    names = [f.name for f in attrs.fields(cls)] if attrs.has(cls) else list(vars(explainer))
    held = {name: one for name in names if isinstance(one := getattr(explainer, name, None), Explainer)}
    fresh: dict[str, Any] = {name: new for name, one in held.items() if (new := _seeded(one, known)) is not one}
    if explainer.stochastic and getattr(explainer, "seed", 0) is None:
        fresh["seed"] = secrets.randbits(31)
    if not fresh:
        return explainer
    seeded = known[id(explainer)] = copy.copy(explainer)
    for name, value in fresh.items():
        object.__setattr__(seeded, name, value)  # made anew, its parameters would be converted twice
    return seeded


def _layers(explainer: Explainer) -> Sequence[str | None]:
    if not explainer.needs_layer:
        return ()
    layer = getattr(explainer, "layer", None)
    return [layer] if layer is None or isinstance(layer, str) else list(layer)


def _results(
    probe: Probe,
    explainers: Sequence[_Asked],
    targets: Sequence[tuple[str, Any]],
    images: Tensor,
    affine: np.ndarray | None,
    index: Tensor,
    wrappers: Wrappers,
    how: Mapping[str, Any],
) -> Iterator[Attribution]:
    fixed = [(label, probe.fix(target)) for label, target in targets]
    several_outputs = probe.output.shape[1] > 1
    scores = {target: tuple(probe.scores(target).tolist()) for _, target in fixed}
    kept = images.to("cpu", copy=True)  # not before the forward pass, whose peak it would raise
    for asked in explainers:
        explainer = asked.explainer
        raw = None
        for label, target in fixed:
            if raw is None or explainer.uses_target:
                raw = _kept(run_explainer(explainer, probe, target, wrappers), images, explainer)
            yield Attribution(
                values=resize(raw, images.shape[2:]).cpu(),
                image=kept,
                signed=explainer.signed,
                target=label,
                classes=_classes(target) if several_outputs else None,
                scores=scores[target],
                raw=raw.to("cpu", copy=True),  # each target's own
                affine=affine,
                index=tuple(index.tolist()),
                provenance=_provenance(probe, asked, how),
            )


def _classes(target: FixedTarget) -> tuple[int, ...] | None:
    return tuple(target.classes.tolist()) if target.is_class and target.classes is not None else None


def _kept(values: Tensor, images: Tensor, explainer: Explainer) -> Tensor:
    """Return a raw map as float32, or as float64 where the images are."""
    raw = values.to(torch.float64 if images.dtype == torch.float64 else torch.float32)
    if raw.dtype != values.dtype and not all_finite(raw):
        raise PluginError(f"{type(explainer).__name__} returned values that are too large for {raw.dtype}.")
    return raw


def _mention_probabilities(output: Tensor) -> None:
    """Say so where a network ends in a softmax: the surer it is, the less its output changes, down to maps of zeros."""
    if output.shape[1] > 1 and bool((output >= 0).all()) and bool(((output.sum(1) - 1).abs() < 1e-3).all()):
        _log.warning(
            "the network's outputs are probabilities, which hardly change where it is sure: explain the logits before "
            "the softmax, for example with output=lambda p: p.clamp(min=1e-12).log()."
        )


def _provenance(probe: Probe, asked: _Asked, how: Mapping[str, Any]) -> dict[str, Any]:
    """Return, as plain data, what is needed to make the map again of the same model, image and target."""
    explainer = asked.explainer
    return {
        "method": asked.entry.name,
        "explainer": asked.text,
        "parameters": _plain(explainer),
        "package": asked.entry.package,
        "package_version": asked.entry.version,
        "layers": [probe.layer_name(layer) for layer in _layers(explainer)],
        "seed": getattr(explainer, "seed", None),
        "run": {
            **how,
            "autocast": _plain(probe.autocast),
            "device": str(probe.inputs.device),
            "dtype": _plain(probe.inputs.dtype),
        },
        "versions": {"medviz": medviz.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _plain(value: Any) -> Any:
    """Return `value` as what JSON can hold; a plugin becomes its parameters, a callable its name."""
    if isinstance(value, Plugin):
        return {name: _plain(one) for name, (one, *_) in naming.parameters(value).items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return getattr(value, "__name__", str(value))


def _join(parts: Sequence[Attribution]) -> Attribution:
    """Return one attribution of several chunks of a batch."""
    first = parts[0]
    if len(parts) == 1:
        return first
    joined: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in ("values", "image", "raw")}
    for name in ("classes", "scores", "index"):
        joined[name] = None if getattr(first, name) is None else sum((getattr(p, name) for p in parts), ())
    if first.affine is not None:
        joined["affine"] = np.concatenate([p.affine for p in parts if p.affine is not None])
    return attrs.evolve(first, **joined)
