"""`medviz layers`: what a network's layers return for an input size, and which one is chosen automatically."""

from __future__ import annotations

import re
from pathlib import Path

import click

from medviz.cli.options import model_options
from medviz.cli.shell import debug_option


@click.command(short_help="List a network's layers with their output shapes.")
@model_options
@click.option(
    "--input-size",
    required=True,
    metavar="BxCxDxHxW",
    help="Shape of the batch: 1x3x224x224 in 2-D, 1x1x96x96x96 in 3-D; commas do as well.",
)
@debug_option
def layers(
    model: str, model_arg: tuple[str, ...], weights: Path | None, device: str, output: str | int | None, input_size: str
) -> None:
    """List the layers in the order of their calls, with output shapes; the automatic choice is marked with *."""
    shape = parse_size(input_size)
    import torch

    from medviz import Probe
    from medviz.cli.loading import load_model

    network = load_model(model, model_arg, weights, device)
    with Probe(network, torch.zeros(shape, device="cpu"), layers=[None], graph=False, output=output) as probe:
        found = probe.layers()
    rows = [("" if layer.shape is None else _written(layer.shape), layer.type, layer.name) for layer in found]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for layer, (size, kind, name) in zip(found, rows, strict=True):
        mark = "*" if layer.automatic else " "
        click.echo(f"{mark} {size.rjust(widths[0])}  {kind.ljust(widths[1])}  {name}".rstrip())


def parse_size(text: str) -> tuple[int, ...]:
    """Return the shape `(B, C, *S)` that `text` means.

    Raises:
        ValueError: not four or five positive numbers.
    """
    parts = re.split(r"[x,]", text.strip().lower())
    if len(parts) not in (4, 5) or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"`--input-size` {text!r} cannot be read; write the shape of a batch, 1x3x224x224 or 1x1x96x96x96."
        )
    return tuple(int(part) for part in parts)


def _written(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
