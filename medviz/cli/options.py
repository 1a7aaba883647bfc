"""The options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _key(_: click.Context, __: click.Parameter, value: str | None) -> str | int | None:
    return int(value) if value is not None and value.isdecimal() else value


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Where the network runs: cpu, cuda, cuda:1, mps, …; auto: a GPU of CUDA, else the CPU.",
)


def model_options(command: _Command) -> _Command:
    """Add the options that say which model is meant."""
    for option in reversed(
        [
            click.option(
                "--model",
                required=True,
                metavar="PACKAGE.MODULE:FACTORY",
                help="A class or function that returns the network; the current folder is searched too.",
            ),
            click.option(
                "--model-arg",
                multiple=True,
                metavar="KEY=VALUE",
                help="A keyword argument of the factory, a Python literal or a string. Repeatable.",
            ),
            click.option(
                "--weights",
                type=click.Path(path_type=Path),
                help="safetensors, or a state dict saved by torch.save; pickled objects are refused.",
            ),
            click.option(
                "--output",
                callback=_key,
                metavar="KEY",
                help="Which part of the network's output is meant: a key of a dict, or a position in a list.",
            ),
            device_option,
        ]
    ):
        command = option(command)
    return command
