"""Checks of readers: that values and geometry come out of a file as they went in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from medviz.hookspecs import Reader
from medviz.image import Image
from medviz.testing.examples import EXAMPLES
from medviz.testing.outcome import TRACE, ConformanceError, describe_error, fail, name_of, skip_unless


def check_suffixes(instance: Reader) -> None:
    """The endings that the reader declares are lower case and have their dots."""
    endings = instance.suffixes
    if not endings or any(e != e.lower() or not e.startswith(".") or len(e) < 2 for e in endings):
        fail(
            f"{name_of(instance)}.suffixes was read",
            "a tuple of endings in lower case with their dots, such as ('.nii', '.nii.gz')",
            repr(endings),
            "Without it medviz.read cannot find the reader.",
        )


def check_geometry(instance: Reader) -> None:
    """Values come out as they went in, in the file's axis order, and the affine too; none is made up."""
    for suffix, path, right in _written(instance):
        before = path.read_bytes()
        try:
            got = instance(path)
        except Exception as err:
            raise ConformanceError(
                f"{name_of(instance)} read a {suffix} file of {_shape(right)}: expected an image; got "
                f"{describe_error(err)}. {TRACE}"
            ) from err
        differences = [_differences(got, expected) for expected in right]
        wrong = differences[0] if all(differences) else ""
        if path.read_bytes() != before:
            wrong = "another file: it was written to"
        if wrong:
            fail(
                f"{name_of(instance)} read a {suffix} file of {_shape(right)}",
                "the values and the affine that were written",
                wrong,
                "Data are (C, *S) in the file's own axis order; the affine maps voxel indices to RAS+ millimetres, and "
                "is None where the file holds none.",
            )


def _shape(right: Sequence[Image]) -> tuple[int, ...]:
    return tuple(right[0].data.shape)


def _differences(got: Image, expected: Image) -> str:
    """Return in what the image that was read is another; empty where it is the same."""
    if got.data.shape != expected.data.shape:
        return f"the shape {tuple(got.data.shape)}"
    if not torch.allclose(got.data, expected.data, rtol=1e-5, atol=1e-6):
        return f"other values, up to {float((got.data - expected.data).abs().max()):.2g} away"
    if (got.affine is None) != (expected.affine is None):
        return "no affine" if got.affine is None else f"an affine that the file does not hold, {got.affine.tolist()}"
    if got.affine is not None and not np.allclose(got.affine, expected.affine, atol=1e-4):  # type: ignore[arg-type]
        return f"the affine {got.affine.tolist()} in place of {expected.affine.tolist()}"  # type: ignore[union-attr]
    return ""


def check_damaged_file(instance: Reader) -> None:
    """A file that is cut off, or holds something else, is refused by a ValueError or OSError with a sentence.

    Files of less than 64 bytes are not cut: half of a short table may be one.
    """
    for suffix, path, _ in _written(instance):
        whole = path.read_bytes()
        line = whole.rfind(b"\n", 0, len(whole) // 2)  # of a table whole lines are a table too
        middle = len(whole) // 2 if line < 0 else line + 2
        damaged = {"cut off in the middle": whole[:middle], "of noise": bytes(range(255, 0, -1))}
        for name, content in damaged.items():
            path.write_bytes(content)
            try:
                instance(path)
                got = "" if name.startswith("cut") and len(whole) < 64 else "an image and no error"
            except (ValueError, OSError) as err:
                got = "" if len(str(err).split()) > 2 else f"{type(err).__name__} with the message {str(err)!r}"
            except Exception as err:
                got = describe_error(err)
            if got:
                fail(
                    f"{name_of(instance)} read a {suffix} file {name}",
                    "a ValueError or OSError that says what is wrong",
                    got,
                    "Catch what the library raises and raise ValueError with the file's name from it.",
                )


def check_missing_file(instance: Reader) -> None:
    """A file that is not there is a FileNotFoundError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"nothing{instance.suffixes[0] if instance.suffixes else ''}"
        try:
            instance(path)
            got = "an image and no error"
        except FileNotFoundError:
            return
        except Exception as err:
            got = describe_error(err)
    fail(
        f"{name_of(instance)} read a file that is not there",
        "a FileNotFoundError",
        got,
        "Leave `__call__` as the base class has it.",
    )


def _written(instance: Reader) -> Iterator[tuple[str, Path, Sequence[Image]]]:
    """Write the examples for the endings of the reader; yield ending, path and what is to be read."""
    known = [(suffix, example) for suffix in instance.suffixes for example in EXAMPLES.get(suffix, ())]
    skip_unless(
        bool(known),
        f"the kit cannot write {' or '.join(instance.suffixes) or 'such files'}; show it how with "
        "@medviz.testing.example(suffix).",
    )
    with tempfile.TemporaryDirectory() as folder:
        for number, (suffix, example) in enumerate(known):
            path = Path(folder) / f"example{number}{suffix}"
            right = example(path)
            yield suffix, path, [right] if isinstance(right, Image) else right
