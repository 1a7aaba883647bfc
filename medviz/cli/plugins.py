"""`medviz plugins`: what is installed, from metadata alone; with `--check`, whether it works."""

from __future__ import annotations

import click

from medviz.cli.shell import debug_option
from medviz.errors import PluginError
from medviz.hookspecs import KINDS


@click.command()
@click.option("--kind", type=click.Choice(list(KINDS)), help="Only this kind.")
@click.option("--check", is_flag=True, help="Import each plugin; show what is wrong with the broken ones (status 1).")
@debug_option
def plugins(kind: str | None, check: bool) -> int:
    """List the installed plugins. Nothing is imported, unless --check asks for it."""
    from medviz import health, registry

    if not check:
        _table([_row(entry) for entry in registry.entries(kind)])
        return 0
    rows, errors = [], []
    for entry, error in health.check(kind):
        rows.append((*_row(entry), "broken" if error else "ok"))
        errors += [str(error)] if error else []
    try:
        registry.preferred([])
    except PluginError as err:
        errors.append(f"MEDVIZ_PREFER cannot be followed: {err}")
    _table(rows)
    for message in errors:
        click.echo(f"\n{message}")
    return 1 if errors else 0


def _row(entry: object) -> tuple[str, ...]:
    return tuple(str(getattr(entry, column)) for column in ("name", "kind", "package", "version"))


def _table(rows: list[tuple[str, ...]]) -> None:
    header = ("name", "kind", "package", "version", "check")
    if not rows:
        click.echo("no plugins are installed.")
        return
    rows = [header[: len(rows[0])], *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
