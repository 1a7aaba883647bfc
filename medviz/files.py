"""Files that are whole or not there: where a sink writes, and how it replaces."""

from __future__ import annotations

import contextlib
import hashlib
import operator
import os
import re
import secrets
import string
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from medviz import registry
from medviz.hookspecs import Renderer, Sink
from medviz.rendering import DEFAULT_RENDERER

if TYPE_CHECKING:
    from medviz.attribution import Attribution


@attrs.frozen
class Place:
    """What tells one result from another, for file names and tags."""

    index: int = attrs.field(default=0, converter=operator.index)
    explainer: str = ""
    target: str = ""
    tag: str = attrs.field(default="", converter=str)
    step: int = attrs.field(default=0, converter=operator.index)

    @classmethod
    def of(cls, attribution: Attribution | None, tag: str | None = None, step: int = 0) -> Place:
        """Return the place of the attribution of one image."""
        if attribution is None:
            return cls(tag=tag or "", step=step)
        described = str(attribution.provenance.get("explainer", attribution.method))
        return cls(attribution.index[0], described, attribution.target, tag or "", step)

    def expand(self, template: str | Path) -> Path:
        """Return `template` with its placeholders filled in; what comes from names is made safe for a file name."""
        values = {
            name: value if isinstance(value, int) else _safe(value) or f"no-{name}"
            for name, value in attrs.asdict(self).items()
        }
        return Path(str(template).format(**values)).expanduser()


_PLACEHOLDERS = {field.name for field in attrs.fields(Place)}
_LISTED = ", ".join(f"{{{field.name}}}" for field in attrs.fields(Place))


def _safe(text: str) -> str:
    """Return `text` as one part of a file name: no separators, no leading dot, at most 80 bytes.

    Letters of all scripts stay. Where a character beyond ASCII has to go, or some for the length, a part of the text's
    hash comes behind it, so that two names do not become one.
    """
    text = unicodedata.normalize("NFC", text)
    odd = "".join(sorted({character for character in text if not _stays(character)}))
    safe = (re.sub(f"[{re.escape(odd)}]+", "-", text) if odd else text).strip("-.")
    if odd.isascii() and len(safe.encode()) <= 80:
        return safe
    code = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{safe.encode()[:71].decode(errors='ignore')}-{code}".lstrip("-.")


def _stays(character: str) -> bool:
    """Return whether a character is a letter, a mark on one or a digit, or harmless, and the file system takes it."""
    if character.isascii():
        return character.isalnum() or character in "._+=-"
    try:
        os.fsencode(character)
    except UnicodeEncodeError:
        return False
    return unicodedata.category(character)[0] in "LMN"


def as_template(path: Any) -> Path:
    """Return `path` checked: its placeholders fail when the sink is made, not when the network has run for an hour.

    Raises:
        TypeError: neither a string nor a path, or one that can name nothing.
        ValueError: an unknown placeholder, or a format that cannot be filled in.
    """
    if not isinstance(path, str | Path) or not str(path).strip() or "\0" in str(path):
        raise TypeError(f"`path` is {path!r}; expected a string or a pathlib.Path that names a file or folder.")
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        raise ValueError(f"`path` {str(path)!r} is an address; expected a file or folder of this machine.")
    try:
        unknown = {name for _, name, _, _ in string.Formatter().parse(str(path)) if name is not None} - _PLACEHOLDERS
        if not unknown:
            Place().expand(path)
    except (ValueError, LookupError, RuntimeError) as err:
        raise ValueError(
            f"`path` {str(path)!r} cannot be used: {err} (a brace that is meant as one is doubled)."
        ) from err
    if unknown:
        raise ValueError(f"`path` {str(path)!r} has the placeholder {min(unknown)!r}; known are {_LISTED}.")
    return Path(path)


def _check_suffix(sink: FileSink, _: Any, path: Path) -> None:
    if sink.suffixes and not path.name.lower().endswith(sink.suffixes):
        raise ValueError(
            f"`path` {str(path)!r} must end in {' or '.join(sink.suffixes)}, the format that "
            f"{type(sink).__name__} writes."
        )
    if path.name.lower() in sink.suffixes:
        raise ValueError(f"`path` {str(path)!r} has no name before its suffix.")


def _check_bool(sink: FileSink, field: Any, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"`{field.name}` is {value!r}; expected true or false.")


@attrs.frozen(eq=False)
class FileSink(Sink):
    """A sink that writes one file for each result; subclass it, name the suffixes and implement `write`.

    Args:
        path: where to; may hold the placeholders {index} {explainer} {target} {tag} {step}. Missing folders are made.
        overwrite: replace an existing file; otherwise it is an error.

    Attributes:
        suffixes: the endings that `path` may have, lower case, with their dots; none named: any.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()

    path: Path = attrs.field(converter=as_template, validator=_check_suffix)
    overwrite: bool = attrs.field(default=False, kw_only=True, validator=_check_bool)

    def destination(self, attribution: Attribution | None, tag: str | None, step: int) -> Path:
        """Return the file that this result goes to."""
        return Place.of(attribution, tag, step).expand(self.path)

    def check(self, places: Sequence[Place]) -> None:
        """Refuse files that may not be replaced or cannot be made; errors as `check_destinations`."""
        for place in places:
            _check_free(place.expand(self.path), self.overwrite)


@attrs.frozen(eq=False)
class PictureSink(FileSink):
    """A file sink that writes pictures.

    Args:
        renderer: draws an attribution that comes undrawn.
    """

    renderer: Renderer = registry.field(kind="renderers", default=DEFAULT_RENDERER, kw_only=True)


def check_destinations(sinks: Iterable[Sink], places: Iterable[Place], read: Iterable[Path] = ()) -> None:
    """Refuse, before any network runs, two results that would go to one file, and what a sink cannot write.

    Args:
        sinks: what writes.
        places: of the results.
        read: files that are read, which no sink may replace.

    Raises:
        ValueError: two results have one destination, or it is one of the files that are `read`.
        Exception: what a sink's own `check` raises; of those that write files:
        FileExistsError: a destination exists and its sink may not replace it.
        IsADirectoryError: a destination is a folder.
        NotADirectoryError: a destination lies in what is a file.
        PermissionError: a destination lies in a folder that cannot be written to.
    """
    taken: set[Path] = set()
    kept = {path.expanduser().resolve() for path in read}
    places = list(places)
    for sink in sinks:
        for path in (place.expand(sink.path) for place in places) if isinstance(sink, FileSink) else ():
            if path.resolve() in taken:
                raise ValueError(
                    f"two results would be written to {str(path)!r}; tell them apart with {_LISTED} in `path`."
                )
            if path.resolve() in kept:
                raise ValueError(f"{str(path)!r} is read, and would be replaced; choose another `path`.")
            taken.add(path.resolve())
        sink.check(known_to(sink, places))


def known_to(sink: Sink, places: Sequence[Place]) -> list[Place]:
    """Return the places of results that go to one sink together, each with the tag that the sink is given.

    A sink that writes no files knows results by their tag alone: where several methods or targets have one tag, theirs
    are put behind it.
    """
    if isinstance(sink, FileSink) or len({(place.explainer, place.target) for place in places}) < 2:
        return list(places)
    tags = ["/".join(filter(None, (p.tag, p.explainer, p.target))) if p.tag else "" for p in places]
    return [attrs.evolve(place, tag=tag) for place, tag in zip(places, tags, strict=True)]


def check_folder(folder: Path) -> None:
    """Refuse a folder that files cannot be written into; one that is missing must be possible to make.

    Raises:
        NotADirectoryError: it is a file, or lies in what is one.
        PermissionError: it, or the folder that it would be made in, cannot be written to.
    """
    real = Path(os.path.realpath(folder))
    if folder.is_symlink() and not real.exists():
        raise NotADirectoryError(f"{_named(folder)} leads to nothing; a folder is needed there.")
    if real.exists() and not real.is_dir():
        raise NotADirectoryError(f"{_named(folder)} is a file; a folder is needed there.")
    _check_writable(folder, real)


def _check_free(path: Path, overwrite: bool) -> None:
    real = Path(os.path.realpath(path))
    if real.is_dir():
        raise IsADirectoryError(f"{_named(path)} is a folder; `path` must name a file.")
    _check_writable(path, real.parent)
    if real.exists() and not overwrite:
        raise FileExistsError(f"{_named(path)} exists already; choose another `path` or set overwrite=true.")


def _check_writable(path: Path, folder: Path) -> None:
    """Refuse `path` where nothing can be written into `folder`, links followed, or into the one to make it in."""
    found = next((above for above in (folder, *folder.parents) if above.exists()), None)
    if found is not None and not found.is_dir():
        raise NotADirectoryError(f"{_named(path)} cannot be made, because {str(found)!r} is a file.")
    if found is not None and not os.access(found, os.W_OK | os.X_OK):
        raise PermissionError(f"{_named(path)} cannot be written: you have no permission to write to {str(found)!r}.")


def _named(path: Path) -> str:
    """Return the path in quotes, and where a link leads to."""
    return repr(str(path)) + (f", a link to {os.path.realpath(path)!r}," if path.is_symlink() else "")


@contextlib.contextmanager
def atomic(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Hand out a temporary file beside `path`, with its suffix, that becomes `path` only if the block succeeds.

    Its suffix is in lower case: libraries choose formats by it, and nibabel writes ".Nii" under another name. A link is
    followed; a file that is replaced hands on its permissions.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False.
        IsADirectoryError, NotADirectoryError, PermissionError: no file can be written there.
    """
    asked, path = Path(path), Path(os.path.realpath(path))
    _check_free(asked, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{secrets.token_hex(8)}{''.join(asked.suffixes[-2:])[-40:].lower()}")
    part.touch(exist_ok=False)
    try:
        yield part
        if path.exists():
            part.chmod(path.stat().st_mode & 0o777)
        if overwrite:
            part.replace(path)
        else:
            _publish(part, path)
    finally:
        part.unlink(missing_ok=True)


def _publish(part: Path, path: Path) -> None:
    """Rename without replacing a file that somebody else wrote in the meantime, where the file system can."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise FileExistsError(f"{str(path)!r} was written by somebody else in the meantime.") from None
    except OSError:
        part.replace(path)
