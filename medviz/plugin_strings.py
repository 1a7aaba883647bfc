"""The written form of a configured plugin, for the command line and configuration files.

    name                                gradcam
    package/name                        medviz-xai/gradcam
    name:key=value,key=value            planes:contour=true,voxel=[10,20,30]
    name(key=value,key=value)           the same, inside another: occlusion:occluder=gaussian(sigma=.3)

Values are Python literals where they parse as one (`true`, `false`, `none` and `inf` too), else strings; quotes protect
commas and brackets.
"""

from __future__ import annotations

import ast
import functools
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from medviz.errors import PluginError

_PAIRS = {"(": ")", "[": "]", "{": "}"}
_WORDS = {"true": True, "false": False, "none": None, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def is_word(text: str) -> bool:
    """Return whether `text` means a value, such as `true` or `none`, so that no plugin can have it for a name."""
    return text.lower() in _WORDS


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split `text` into the plugin's name and its parameters.

    Raises:
        PluginError: no name, a parameter without "=", a parameter given twice, or brackets that do not match.
    """
    if not isinstance(text, str):
        raise PluginError(f"{text!r} names no plugin; write its name in quotes.")
    name, _, rest = text.partition(":")
    if "(" in name:
        if not text.endswith(")"):
            raise PluginError(f"{text!r}: the bracket after the name does not close.")
        name, _, rest = text[:-1].partition("(")
    if not name.strip():
        raise PluginError(f"{text!r} names no plugin; write name, package/name or name:key=value.")
    parameters: dict[str, Any] = {}
    for part in _split(rest, text):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise PluginError(f"{text!r}: {part!r} is not key=value; put a value that holds a comma in quotes.")
        if key.strip() in parameters:
            raise PluginError(f"{text!r}: parameter {key.strip()!r} is given twice.")
        parameters[key.strip()] = _value(value.strip(), text)
    return name.strip(), parameters


def written(name: str, parameters: Mapping[str, Any], nested: bool = False) -> str:
    """Return the written form that `parse` reads back; strings stand bare where they can, the rest are literals."""
    if not parameters:
        return name
    listed = ",".join(f"{key}={_written(value)}" for key, value in parameters.items())
    return f"{name}({listed})" if nested else f"{name}:{listed}"


def _written(value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return value if isinstance(value, str) and _stands_bare(value) else repr(value)


@functools.lru_cache(maxsize=1024)
def _stands_bare(text: str) -> bool:
    try:
        return parse(f"x:y={text}")[1] == {"y": text}
    except PluginError:
        return False


def _value(text: str, whole: str) -> Any:
    if is_word(text):
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(_Words().visit(ast.parse(text, mode="eval")))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass  # not a literal: a list of plain words, or a string
    if text.startswith("[") and text.endswith("]"):
        return [_value(item.strip(), whole) for item in _split(text[1:-1], whole)]
    return text


class _Words(ast.NodeTransformer):
    """Put the values in the place of the words, so that `(0.0, inf)` is a literal too."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        known = node.id.lower() in _WORDS
        return ast.copy_location(ast.Constant(_WORDS[node.id.lower()]), node) if known else node


def _split(text: str, whole: str) -> Iterator[str]:
    """Yield the parts between the commas that stand outside of brackets and quotes."""
    closing: list[str] = []
    quote = ""
    start = 0
    escaped = False
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote and not escaped else quote
            escaped = character == "\\" and not escaped
        elif character in "'\"":
            quote = character
        elif character in _PAIRS:
            closing.append(_PAIRS[character])
        elif character in _PAIRS.values():
            if not closing or closing.pop() != character:
                raise PluginError(f"{whole!r}: the bracket {character!r} does not match.")
        elif character == "," and not closing:
            yield text[start:position]
            start = position + 1
    if closing or quote:
        raise PluginError(f"{whole!r}: {closing[-1] if closing else quote!r} is missing.")
    if text[start:].strip():
        yield text[start:]
