"""What tells one result from another, and the file names and tags that are made of it."""

from __future__ import annotations

import hashlib
import operator
import os
import re
import string
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from medviz.attribution import Attribution


@attrs.frozen
class ResultKey:
    """What tells one result from another, for file names and tags.

    Args:
        index: the position of the image in its batch.
        explainer: the method's plugin string.
        target: what was explained, such as "class 2".
        tag: the user's name for it, or an empty string.
        step: the training step.
    """

    index: int = attrs.field(default=0, converter=operator.index)
    explainer: str = ""
    target: str = ""
    tag: str = attrs.field(default="", converter=str)
    step: int = attrs.field(default=0, converter=operator.index)

    @classmethod
    def of(cls, attribution: Attribution | None, tag: str | None = None, step: int = 0) -> ResultKey:
        """Return the key of the attribution of one image."""
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


_NAMES = {field.name for field in attrs.fields(ResultKey)}
PLACEHOLDERS = ", ".join(f"{{{field.name}}}" for field in attrs.fields(ResultKey))


def _safe(text: str) -> str:
    """Return `text` as one part of a file name: no separators or quotes, no leading dot, at most 80 bytes.

    Letters of all scripts stay. Where a character beyond ASCII has to go, or some for the length, a part of the text's
    hash comes behind it, so that two names do not become one.
    """
    text = re.sub(r"['\"]|(?<==)[(\[]", "", unicodedata.normalize("NFC", text))  # layer='3', mask_size=(4, 6)
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
        unknown = {name for _, name, _, _ in string.Formatter().parse(str(path)) if name is not None} - _NAMES
        if not unknown:
            ResultKey().expand(path)
    except (ValueError, LookupError, RuntimeError) as err:
        raise ValueError(
            f"`path` {str(path)!r} cannot be used: {err} (a brace that is meant as one is doubled)."
        ) from err
    if unknown:
        raise ValueError(f"`path` {str(path)!r} has the placeholder {min(unknown)!r}; known are {PLACEHOLDERS}.")
    return Path(path)
