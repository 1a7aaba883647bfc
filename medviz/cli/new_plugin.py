"""`medviz new-plugin`: the start of a package, which installs and passes the conformance kit as it is."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from medviz.cli.shell import debug_option
from medviz.hookspecs import KINDS


@click.command("new-plugin", short_help="Write the start of a plugin package.")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice([spec.__name__.lower() for spec in KINDS.values()]),
    default="explainer",
    show_default=True,
    help="What the plugin is.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where the package's folder is made; the current folder where it is left out.",
)
@debug_option
def new_plugin(name: str, kind: str, folder: Path) -> None:
    """Write a package for a plugin NAME: pyproject.toml, one module, its tests and a README.

    It works as it is: install it, run its tests, then put your method in.
    """
    from medviz import registry
    from medviz.scaffold import SINGULAR, Package, write_package

    package = Package.of(name, kind)
    target = write_package(name, kind, folder)
    for path in package.files():
        click.echo(str(target / path))
    others = [entry.package for entry in registry.entries(SINGULAR[kind]) if entry.name == package.name]
    if others:
        click.echo(
            f"\n{package.name!r} is a name of {', '.join(others)} too: once both are installed, choose with "
            f"MEDVIZ_PREFER={package.package}, or write {package.package}/{package.name}."
        )
    click.echo(f'\nNext:\n  python -m pip install -e "{_dotted(target)}[test]"')
    click.echo(f"  python -m pytest {shlex.quote(str(target))}")


def _dotted(path: Path) -> str:
    """Return a path that pip takes for one and not for the name of a package."""
    return str(path) if path.is_absolute() else f"./{path.as_posix()}"
