"""How long a fresh interpreter takes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.options import Options
from benchmarks.rows import Case, Row
from benchmarks.timing import Spread

_IMPORT = "import time; t = time.perf_counter(); import medviz; print(time.perf_counter() - t)"


def cases(options: Options) -> Iterator[Case]:
    """Return a case for the import and for each command."""
    yield Case(
        "import medviz",
        partial(_measure, "import", "`import medviz`, in an interpreter that runs", _import, options),
        "import",
    )
    for line, words in (("help", ["--help"]), ("plugins", ["plugins"])):
        run = partial(_command, words)
        yield Case(
            line, partial(_measure, line, f"`medviz {' '.join(words)}`, with Python's own start", run, options), line
        )


def _import() -> float:
    return float(_python("-c", _IMPORT))


def _command(words: list[str]) -> float:
    begun = time.perf_counter()
    _python("-m", "medviz", *words)
    return time.perf_counter() - begun


def _python(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(words)} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _measure(line: str, case: str, run: Callable[[], float], options: Options) -> Iterator[Row]:
    run()
    rounds = options.rounds(15)
    yield Row(line, case, Spread.of([run() for _ in range(rounds)]), note=f"{rounds} rounds")
