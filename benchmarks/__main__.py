"""`python -m benchmarks [--device cuda] [--quick] [--only occlusion]`: measure, and write the table and the plots."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import torch

from benchmarks import machine, pages, subjects
from benchmarks.options import Options
from benchmarks.records import Record, read
from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parent.parent


@click.command()
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1")
@click.option("--quick", is_flag=True, help="Small images and few rounds: does everything run?")
@click.option("--only", multiple=True, type=click.Choice(list(subjects.TITLES)), help="Subjects; may be repeated.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    default=ROOT / "docs" / "benchmarks",
    help="Where table, plots and measurements go.  [default: docs/benchmarks]",
)
def main(device: str, quick: bool, only: tuple[str, ...], out: Path) -> None:
    """Measure medviz beside one inference and beside every installed peer.

    Each subject runs in a process of its own. What it has measured is kept, and the page is made again, after each, so
    that one that fails costs the others nothing; the exit status is 1 then.
    """
    options = Options(device, quick)
    _check(options, only)
    for peer in machine.missing():
        click.echo(f"{peer} is not installed and is left out.")
    failed = []
    for name in only or subjects.names(options):
        click.echo(f"{subjects.TITLES[name]}")
        record = _run(name, out / options.label / f"{name}.json", options)
        failed += [row.case for row in record.rows if row.failed]
        pages.write(out, options.label)
    click.echo(f"\n{pages.summary(out, options.label)}\n\nWritten to {out / options.label}.md")
    if failed:
        raise click.ClickException(f"not measured: {'; '.join(failed)}")


def _check(options: Options, only: tuple[str, ...]) -> None:
    try:
        found = torch.device(options.device).type
    except RuntimeError as err:
        raise click.BadParameter(f"{options.device!r} is no device; expected cpu, cuda or cuda:1.") from err
    if found not in ("cpu", "cuda"):
        raise click.BadParameter(f"{options.device!r} can't be measured; expected cpu, cuda or cuda:1.")
    if found == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter(f"torch {torch.__version__} sees no CUDA device here; leave `--device` out.")
    if wrong := [name for name in only if name not in subjects.names(options)]:
        raise click.BadParameter(f"{', '.join(wrong)} runs on the CPU only; leave `--device` out.")


def _run(name: str, path: Path, options: Options) -> Record:
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.runner", name, str(path), "--device", options.device]
    done = subprocess.run([*command, *(["--quick"] if options.quick else [])], cwd=ROOT, check=False)
    record = read(path) if path.exists() else Record(name, machine.environment(options))
    if not record.complete:
        record.items.append(Row("", subjects.TITLES[name], failed=f"its process ended with {done.returncode}"))
        record.write(path)
    return record


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
