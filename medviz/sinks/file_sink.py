"""What the sinks that write files share: where each result goes, and what is refused before any network runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from medviz import registry
from medviz.files import check_free
from medviz.hookspecs import Renderer, Sink
from medviz.rendering import DEFAULT_RENDERER
from medviz.results import PLACEHOLDERS, ResultKey, as_template

if TYPE_CHECKING:
    from medviz.attribution import Attribution


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
        return ResultKey.of(attribution, tag, step).expand(self.path)

    def check(self, keys: Sequence[ResultKey]) -> None:
        """Refuse files that may not be replaced or cannot be made; errors as `check_destinations`."""
        for key in keys:
            check_free(key.expand(self.path), self.overwrite)


@attrs.frozen(eq=False)
class PictureSink(FileSink):
    """A file sink that writes pictures.

    Args:
        renderer: draws an attribution that comes undrawn.
    """

    renderer: Renderer = registry.field(kind="renderers", default=DEFAULT_RENDERER, kw_only=True)


def check_destinations(sinks: Iterable[Sink], keys: Iterable[ResultKey], read: Iterable[Path] = ()) -> None:
    """Refuse, before any network runs, two results that would go to one file, and what a sink cannot write.

    Args:
        sinks: what writes.
        keys: of the results.
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
    keys = list(keys)
    for sink in sinks:
        for path in (key.expand(sink.path) for key in keys) if isinstance(sink, FileSink) else ():
            if path.resolve() in taken:
                raise ValueError(
                    f"two results would be written to {str(path)!r}; tell them apart with {PLACEHOLDERS} in `path`."
                )
            if path.resolve() in kept:
                raise ValueError(f"{str(path)!r} is read, and would be replaced; choose another `path`.")
            taken.add(path.resolve())
        sink.check(known_to(sink, keys))


def known_to(sink: Sink, keys: Sequence[ResultKey]) -> list[ResultKey]:
    """Return the keys of results that go to one sink together, each with the tag that the sink is given.

    A sink that writes no files knows results by their tag alone: where several methods or targets have one tag, theirs
    are put behind it.
    """
    if isinstance(sink, FileSink) or len({(key.explainer, key.target) for key in keys}) < 2:
        return list(keys)
    tags = ["/".join(filter(None, (p.tag, p.explainer, p.target))) if p.tag else "" for p in keys]
    return [attrs.evolve(key, tag=tag) for key, tag in zip(keys, tags, strict=True)]
