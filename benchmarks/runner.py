"""Measure one subject in this process: `python -m benchmarks.runner SUBJECT FILE`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import click

from benchmarks import machine, report, subjects
from benchmarks.options import Options
from benchmarks.records import Record
from benchmarks.rows import Case, Row

_log = logging.getLogger("benchmarks")


def run(name: str, path: Path, options: Options) -> Record:
    """Measure every case of a subject and keep what was measured in `path`; a case that fails is a row that says so."""
    return measure(Record(name, machine.environment(options)), subjects.cases(name, options), path)


def measure(record: Record, cases: Iterable[Case], path: Path) -> Record:
    """Run the cases one after the other, and write after each."""
    record.write(path)
    for case in cases:
        try:
            for item in case.run():
                record.items.append(item)
                click.echo(report.said(item))
                record.write(path)
        except Exception as err:  # whatever a network, a peer or the machine cannot do belongs into the table
            _log.exception("%s: %s", record.subject, case.name)
            failed = Row(case.line, case.name, failed=f"{type(err).__name__}: {err}")
            record.items.append(failed)
            click.echo(report.said(failed))
            record.write(path)
    record.complete = True
    record.write(path)
    return record


@click.command()
@click.argument("subject", type=click.Choice(list(subjects.TITLES)))
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--device", default="cpu")
@click.option("--quick", is_flag=True)
def main(subject: str, path: Path, device: str, quick: bool) -> None:
    """Measure SUBJECT and write the results to PATH."""
    logging.basicConfig(level=logging.ERROR)
    warnings.filterwarnings("ignore", module="monai|captum|torchcam|pytorch_grad_cam|torch")  # peers' own
    machine.full_precision()
    run(subject, path, Options(device, quick))


if __name__ == "__main__":
    main()
