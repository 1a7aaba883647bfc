"""Small files with known content, for the checks of readers; one way to write each format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medviz.image import Image

Example = Callable[[Path], Image]

EXAMPLES: dict[str, Example] = {}


def example(suffix: str) -> Callable[[Example], Example]:
    """Decorate a function that writes a small file and returns what a reader must find in it.

        @medviz.testing.example(".csv")
        def table(path):
            path.write_text("1,2,3\\n4,5,6\\n")
            return medviz.Image([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])

    The checks of a reader of `suffix` use it. A second one for the same suffix replaces the first.

    Args:
        suffix: the ending of the file's name, lower case, with its dot.

    Raises:
        ValueError: no such ending.
    """
    if not isinstance(suffix, str) or not suffix.startswith(".") or suffix != suffix.lower() or len(suffix) < 2:
        raise ValueError(f"`suffix` is {suffix!r}; expected the ending of a file's name such as '.csv', in lower case.")

    def register(function: Example) -> Example:
        EXAMPLES[suffix] = function
        return function

    return register
