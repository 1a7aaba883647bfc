"""Checks of sinks: what is written can be read back, and a file is whole or not there.

A sink with a parameter `path` is copied with paths in a temporary folder, with the ending that the instance has; one
without, that writes to a server or to an open writer, is used as it is.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

from medviz.hookspecs import Sink
from medviz.rendering import Rendering
from medviz.testing import cases
from medviz.testing.outcome import TRACE, ConformanceError, describe_error, fail, name_of, skip_unless
from medviz.testing.read_back import read_back


def moved(sink: Sink, folder: Path, name: str = "map") -> Sink:
    """Return the sink with a path in `folder` that keeps the ending of the sink's own."""
    path = getattr(sink, "path", None)
    if path is None:
        return sink
    known = [s for s in getattr(sink, "suffixes", ()) if str(path).lower().endswith(s)]
    made: Sink = cases.changed(sink, path=folder / f"{name}{max(known, key=len) if known else Path(path).suffix}")
    return made


def _drawn(ndim: int = 2, signed: bool = False, seed: int = 0) -> Rendering:
    """Return a picture, or a movie of a volume, that holds the map that it was drawn from."""
    rendering: Any = cases.GREY(cases.attribution(ndim, signed, seed=seed))
    return cast(Rendering, rendering)


def write(sink: Sink, x: Any, what: str = "one map", **options: Any) -> Any:
    """Write, and turn whatever error comes into a `ConformanceError` that says what was asked."""
    try:
        return sink(x, **options)
    except Exception as err:
        raise ConformanceError(
            f"{name_of(sink)} was asked to write {what}: expected a path or a text that says where; got "
            f"{describe_error(err)}. {TRACE}"
        ) from err


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """Make a folder that is gone after the block."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _writes_a_file(sink: Sink, folder: Path) -> Path:
    """Return the file that the sink writes into `folder`.

    Raises:
        NotApplicable: it writes none: a folder of logs, or a place that is no file.
    """
    written = write(moved(sink, folder), _drawn())
    skip_unless(
        is_file(written, folder), "it writes to a folder or to another place, and not one file for each result."
    )
    return Path(written)


def is_file(place: Any, folder: Path) -> bool:
    """Return whether what a sink returned is a file in `folder`."""
    return isinstance(place, str | Path) and Path(place).is_file() and folder in Path(place).parents


def check_read_back(instance: Sink) -> None:
    """What was written is there, can be opened, and another map is written as something else; in 2-D and 3-D."""
    for ndim in (2, 3):
        with new_folder() as folder:
            maps = {"first": _drawn(ndim), "second": _drawn(ndim, signed=True, seed=1)}
            written = [write(moved(instance, folder, name), x, f"a {ndim}-D map") for name, x in maps.items()]
            contents = [_content(instance, place, folder) for place in written]
            if contents[0] is not None and contents[0] == contents[1]:
                fail(
                    f"{name_of(instance)} wrote two {ndim}-D maps that differ",
                    "two contents that differ",
                    "the same twice",
                    "Name `rendering` or `attribution` among the arguments of `write`, and write what it holds.",
                )


def _content(sink: Sink, place: Any, folder: Path) -> Any:
    """Return what can be read at the place that a sink returned; None where it is no path."""
    if not isinstance(place, str | Path):
        fail(f"{name_of(sink)} wrote a map", "a path or a text that says where", repr(place), "Return it.")
    path = Path(place)
    if not path.exists():
        if isinstance(place, Path) or folder in path.parents:
            fail(
                f"{name_of(sink)} wrote a map to {path.name!r}", "a file there", "none", "Return where it was written."
            )
        return None
    try:
        return read_back(path)
    except Exception as err:
        raise ConformanceError(
            f"{name_of(sink)} wrote {path.name!r}: expected a file that can be read back; got {describe_error(err)}. "
            "Look at the ending and at whether the file is closed."
        ) from err


def check_renderings_and_maps(instance: Sink) -> None:
    """Both are taken: a map that nobody has drawn yet, and a rendering of it; a list gives a list."""
    with new_folder() as folder:
        for name, x in (("map", cases.attribution()), ("picture", _drawn())):
            write(moved(instance, folder, name), x, f"a {name}")
        several = write(moved(instance, folder, "listed"), [_drawn()], "a list of one rendering")
        if not isinstance(several, list) or len(several) != 1:
            fail(
                f"{name_of(instance)} was given a list of one rendering",
                "a list of one place",
                repr(several),
                "Leave `__call__` as the base class has it.",
            )


def check_missing_folders(instance: Sink) -> None:
    """Folders on the way that do not exist are made."""
    skip_unless(getattr(instance, "path", None) is not None, "it has no `path`.")
    with new_folder() as folder:
        deep = folder / "a" / "b"
        write(moved(instance, deep), _drawn(), "to a folder that does not exist")
        if not deep.exists() or not any(deep.iterdir()):
            fail(
                f"{name_of(instance)} wrote to a folder that did not exist",
                "something in it",
                "nothing",
                "Write through `medviz.atomic(path)`, which makes the folders, and to `self.path`.",
            )


def check_existing_file(instance: Sink) -> None:
    """An existing file is an error and stays as it is, unless `overwrite` is set; then it is replaced."""
    with new_folder() as folder:
        path = _writes_a_file(instance, folder)
        old = b"somebody else's work"
        path.write_bytes(old)
        try:
            cases.changed(moved(instance, folder), overwrite=False)(_drawn())
            got = "no error"
        except FileExistsError:
            got = "" if path.read_bytes() == old else "the error, but another content"
        except Exception as err:
            got = describe_error(err)
        if got:
            fail(
                f"{name_of(instance)} wrote to a file that exists",
                "a FileExistsError, and the file as it was",
                got,
                "Subclass medviz.FileSink and write through `medviz.atomic(path, self.overwrite)`.",
            )
        if cases.has(instance, "overwrite"):
            write(cases.changed(moved(instance, folder), overwrite=True), _drawn(), "over a file")
            if path.read_bytes() == old:
                fail(f"{name_of(instance)} wrote with overwrite=True", "a new file", "the old one", "Replace it.")


def check_atomic(instance: Sink) -> None:
    """If writing fails at its end, nothing is left behind, and an existing file is as it was.

    The check lets every rename fail: a sink that writes to a temporary file and renames it stops with that error. One
    that succeeds wrote straight to its destination, where an interruption leaves half a file.
    """
    with new_folder() as probe:
        _writes_a_file(instance, probe)
    for exists in (False, True):
        with new_folder() as folder:
            sink = cases.changed(moved(instance, folder), overwrite=True)
            path = Path(getattr(sink, "path", folder / "map"))
            if exists:
                path.write_bytes(b"the old file")
            got = _interrupted(sink, _drawn())
            left = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            if not got and left != ({path.name: b"the old file"} if exists else {}):
                got = f"{', '.join(sorted(left)) or 'an empty folder'}"
            if got:
                fail(
                    f"{name_of(instance)} wrote a file{' over another one' * exists}, and the last step failed",
                    "that error, the folder as it was before, and no temporary file",
                    got,
                    "Write through `with medviz.atomic(path, self.overwrite) as part:`, to `part`.",
                )


def _interrupted(sink: Sink, rendering: Rendering) -> str:
    """Write while no file can be renamed; return what was wrong about it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("the disk is gone")

    names = ("os.replace", "os.rename", "os.link", "pathlib.Path.replace", "pathlib.Path.rename", "shutil.move")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch(name, refuse))
        try:
            sink(rendering)
        except OSError as err:
            return "" if "the disk is gone" in str(err) else describe_error(err)
        except Exception as err:
            return describe_error(err)
    return "a file that was written straight to its destination"


def check_several_images(instance: Sink) -> None:
    """Two images never go to one file in silence: it is an error before anything is written, or two places."""
    with new_folder() as folder:
        two: Any = cases.GREY(cases.attribution(batch=2))
        try:
            written: Any = moved(instance, folder)(two)
        except ValueError:
            if any(folder.rglob("*")):
                fail(
                    f"{name_of(instance)} was given two images and one path",
                    "an error before anything is written",
                    "a file beside the error",
                    "Subclass medviz.FileSink, whose paths are compared first.",
                )
            written = write(moved(instance, folder, "{index}"), two, "two images to a path with {index}")
        places = written if isinstance(written, list) else []
        files = [Path(place) for place in places if isinstance(place, Path) or is_file(place, folder)]
        if not isinstance(written, list) or len(written) != 2 or (files and len(set(files)) < 2):
            fail(
                f"{name_of(instance)} was given two images",
                "two places, or an error that says how to tell them apart",
                f"{len(files)} results in {', '.join({f.name for f in files})}" if files else repr(written),
                "Subclass medviz.FileSink and write to `self.destination(attribution, tag, step)`.",
            )


def check_input_untouched(instance: Sink) -> None:
    """The map and the picture are as they were before."""
    rendering = _drawn(signed=True)
    attribution: Any = rendering.attribution
    values, image, frames = attribution.values.clone(), attribution.image.clone(), rendering.frames.copy()
    with new_folder() as folder:
        write(moved(instance, folder), rendering)
    same = values.equal(attribution.values) and image.equal(attribution.image) and (frames == rendering.frames).all()
    if not same:
        fail(
            f"{name_of(instance)} wrote a map",
            "the map and the picture as they were",
            "other values in them",
            "Work on copies: other sinks get the same objects.",
        )
