"""How every command ends: one line for an error, status 2, and a traceback only where it was asked for."""

from __future__ import annotations

import functools
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import click

from medviz.errors import PluginError

_Command = TypeVar("_Command", bound=Callable[..., Any])
_CHECKED = (ValueError, TypeError, NotImplementedError)

FAILED = 2
INTERRUPTED = 130


class Shell(click.Group):
    """A group of commands whose errors are one line on stderr."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command; without `standalone_mode` errors are raised, as in click."""
        run: Callable[..., Any] = functools.partial(super().main, args, *rest, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        try:
            status = run()
        except click.ClickException as err:
            _fail(f"{err.format_message()}{_usage(err)}")
        except click.Abort:
            click.echo("medviz: interrupted", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command with its log on stderr; turn what it raises into a one-line error."""
        try:
            with _log_on_stderr():
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, KeyboardInterrupt, BrokenPipeError):
            raise
        except Exception as err:
            if ctx.meta.get("medviz.debug"):
                traceback.print_exc()
            raise click.ClickException(describe(err)) from err


def describe(err: Exception) -> str:
    """Return what went wrong as one line; an error that nobody wrote for people keeps the name of its type."""
    message = " ".join(str(err).split())
    if isinstance(err, OSError) and err.strerror:
        message = err.strerror + (f": {str(err.filename)!r}" if err.filename is not None else "")
    if message and (isinstance(err, PluginError | OSError) or (isinstance(err, _CHECKED) and _raised_here(err))):
        return message
    return " ".join(f"{type(err).__name__}: {message} (--debug shows where)".split())


def _raised_here(err: Exception) -> bool:
    """A network's own `TypeError` is no message of ours."""
    frames = [frame for frame, _ in traceback.walk_tb(err.__traceback__)]
    return not frames or str(frames[-1].f_globals.get("__name__")).partition(".")[0] == "medviz"


def debug_option(command: _Command) -> _Command:
    """Add `--debug` to a command."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta["medviz.debug"] = value

    option = click.option(
        "--debug", is_flag=True, expose_value=False, is_eager=True, callback=remember, help="Show tracebacks."
    )
    return option(command)


def _fail(message: str) -> NoReturn:
    click.echo(f"medviz: error: {' '.join(message.split())}", err=True)
    sys.exit(FAILED)


def _usage(err: click.ClickException) -> str:
    ctx = getattr(err, "ctx", None)
    return f" Try '{ctx.command_path} --help'." if isinstance(err, click.UsageError) and ctx else ""


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Show what medviz logs at INFO and above, such as the automatic choice of a layer, as plain lines."""
    logger = logging.getLogger("medviz")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
