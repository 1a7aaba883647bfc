"""`medviz demo`: the whole way from a scan to pictures, on data with a known answer."""

from __future__ import annotations

from pathlib import Path

import click

from medviz.cli.options import device_option
from medviz.cli.shell import debug_option

DEFAULT_FOLDER = Path("medviz-demo")


@click.command(short_help="Explain a network on a brain scan with a known answer.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="The folder to write into.",
)
@device_option
@click.option(
    "--overwrite/--no-overwrite",
    default=None,
    help="Replace the demo's files of an earlier run. Default: only in the default folder.",
)
@click.option("--progress/--no-progress", default=True, show_default=True, help="Progress bars.")
@debug_option
def demo(output: Path, device: str, overwrite: bool | None, progress: bool) -> None:
    """Plant a lesion in a real brain scan, ask a small network, and explain its answer.

    Writes pictures, a GIF, a TensorBoard log and NIfTI maps into one folder and says how far each map's peak lies from
    the lesion.
    """
    from medviz.demo.run import run_demo

    overwrite = output == DEFAULT_FOLDER if overwrite is None else overwrite
    run_demo(output, overwrite=overwrite, device=device, progress=progress, echo=click.echo)
