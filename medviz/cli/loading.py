"""What the command line loads: a model from a factory, weights without pickle, images, and functions by name."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medviz.errors import suggest
from medviz.plugin_strings import parse as parse_plugin

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medviz.image import Image

_WRAPPED = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def load_object(text: str, option: str) -> Any:
    """Return what `package.module:name` names; modules in the current folder are found too.

    Raises:
        ValueError: it is not of that form, or there is no such module or name.
    """
    module_name, separator, path = text.partition(":")
    if not separator or not module_name or not path:
        raise ValueError(f"`{option}` {text!r} is not of the form package.module:name.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        with _exits_named(option, text):
            found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as err:
        if err.name is None or not f"{module_name}.".startswith(f"{err.name}."):
            raise
        raise ValueError(f"`{option}` {text!r}: there is no module {err.name!r} here; is it installed?") from err
    for name in path.split("."):
        if not hasattr(found, name):
            raise ValueError(f"`{option}` {text!r}: {module_name!r} has no {name!r}{suggest(name, dir(found))}")
        found = getattr(found, name)
    return found


def load_model(text: str, arguments: Iterable[str], weights: Path | None, device: str) -> nn.Module:
    """Return the model that the factory `package.module:factory` builds, with its weights, on its device.

    Raises:
        ValueError: no such device or factory, rejected arguments, or weights that do not fit.
        TypeError: the factory returns something else.
    """
    from torch import nn

    from medviz.devices import usable

    chosen = usable(device)
    factory, keywords = load_object(text, "--model"), _keywords(arguments)
    if isinstance(factory, nn.Module) and not keywords:
        model: Any = factory
    elif callable(factory) and not isinstance(factory, nn.Module):
        with _exits_named("--model", text):
            model = factory(**keywords)
    else:
        extra = " that takes no --model-arg" if isinstance(factory, nn.Module) else ""
        raise TypeError(f"`--model` {text!r} is a {type(factory).__name__}{extra}; name a function that makes a model.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"`--model` {text!r} returned a {type(model).__name__}; expected a torch.nn.Module.")
    if weights is not None:
        load_weights(model, weights)
    return model.to(chosen)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into `model`, every key and no other.

    Raises:
        ValueError: a file that is refused or cannot be read, or keys or shapes that do not fit.
    """
    own = model.state_dict()
    given = _stripped(_state_dict(path), own)
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(getattr(own[key], 'shape', ()))}"
        for key in given.keys() & own.keys()
        if given[key].shape != getattr(own[key], "shape", None)
    ]
    wrong = {"missing": own.keys() - given.keys(), "unexpected": given.keys() - own.keys(), "of another shape": shapes}
    if any(wrong.values()):
        listed = "; ".join(f"{len(keys)} {what}: {_shorten(sorted(keys))}" for what, keys in wrong.items() if keys)
        raise ValueError(f"`--weights` {str(path)!r} do not fit the model: {listed}.")
    model.load_state_dict(given)


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    import torch

    if not path.is_file():
        raise FileNotFoundError(f"`--weights`: there is no file {str(path)!r}.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _WRAPPED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(
            f"`--weights` {str(path)!r} holds no state dict, alone or under {', '.join(map(repr, _WRAPPED))}."
        )
    return content


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as err:
        raise ValueError(f"`--weights` {str(path)!r} is not a safetensors file: {err}.") from err


def _read_torch(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of a TorchScript file before it refuses it
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise ValueError(
            f"`--weights` {str(path)!r} is refused: it is not a plain torch state dict, and unpickling it could run "
            "foreign code; save model.state_dict(), or use safetensors."
        ) from err
    except (RuntimeError, EOFError, KeyError, AttributeError, ValueError) as err:
        raise ValueError(
            f"`--weights` {str(path)!r} cannot be read as weights ({type(err).__name__}); expected safetensors or a "
            "state dict saved by torch.save. A TorchScript file is not one."
        ) from err


def _stripped(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take off what DataParallel and torch.compile put in front of every key; the model's `own` may begin like that."""
    result = dict(state)
    while result and result.keys() != own.keys():
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in result)), None)
        if prefix is None:
            break
        result = {key.removeprefix(prefix): value for key, value in result.items()}
    return result


def _keywords(arguments: Iterable[str]) -> dict[str, Any]:
    """Read `key=value` with the rules for plugin parameters: literals, else strings."""
    keywords: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.strip().isidentifier() or key.strip() in keywords:
            raise ValueError(f"`--model-arg` {argument!r} is not key=value, or its key is given twice.")
        keywords[key.strip()] = _literal(value)
    return keywords


def _literal(text: str) -> Any:
    with contextlib.suppress(ValueError):
        parsed = list(parse_plugin(f"x:value={text}")[1].values())
        if len(parsed) == 1:
            return parsed[0]
    return text


def read_images(
    paths: Iterable[Path], reader: str | None, preprocess: str | None, trusted: bool, wrappers: Any
) -> list[Image]:
    """Read the images, and prepare each with the function `package.module:name` from Image to Image.

    Args:
        paths, reader, wrappers: as `medviz.read` takes them.
        preprocess: the function's name.
        trusted: take the affine that it returns, also where the voxels speak against it.

    Raises:
        TypeError: the function returned something else.
        ValueError: it moved, turned or resized the image and kept the affine: every map would lie in another place.
    """
    from medviz.relay import read

    if not preprocess:
        return [read(path, reader, wrappers=wrappers) for path in paths]
    prepare = load_object(preprocess, "--preprocess")
    return [_prepared(read(path, reader, wrappers=wrappers), prepare, preprocess, trusted) for path in paths]


def _prepared(image: Image, prepare: Callable[[Image], Any], preprocess: str, trusted: bool) -> Image:
    from medviz.cli.placing import stand_alike
    from medviz.image import Image

    data, affine = image.data.clone(), None if image.affine is None else image.affine.copy()  # it may work in place
    with _exits_named("--preprocess", preprocess):
        result = prepare(image)
    if not isinstance(result, Image):
        raise TypeError(
            f"`--preprocess` {preprocess!r} returned a {type(result).__name__}; expected a medviz.Image: "
            "attrs.evolve(image, data=…) keeps its place."
        )
    kept = affine is not None and result.affine is not None and bool((affine == result.affine).all())
    if kept and not trusted and not stand_alike(data, result.data):
        raise ValueError(
            f"`--preprocess` {preprocess!r} seems to have moved, turned or resized the image, {tuple(data.shape[1:])} "
            f"to {tuple(result.data.shape[1:])} voxels, and kept the affine, which is of other voxels then; give the "
            "image the affine that belongs to them, or None; --trust-affine says that it is right as it is."
        )
    return result


@contextlib.contextmanager
def _exits_named(option: str, text: str) -> Iterator[None]:
    """Say whose code ended the program, such as a script that reads the command line by itself."""
    try:
        yield
    except SystemExit as err:
        raise ValueError(f"`{option}` {text!r} ended the program by sys.exit({err.code!r}).") from err


def _shorten(keys: list[str], most: int = 3) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
