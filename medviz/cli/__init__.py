"""The command line: `medviz explain`, `medviz layers`, `medviz plugins`, `medviz new-plugin`, `medviz demo`.

Only click is imported here; each command imports what it needs when it runs.
"""

from __future__ import annotations

import click

import medviz
from medviz.cli.demo import demo
from medviz.cli.explain import explain
from medviz.cli.layers import layers
from medviz.cli.new_plugin import new_plugin
from medviz.cli.plugins import plugins
from medviz.cli.shell import Shell


@click.group(
    cls=Shell,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(medviz.__version__, package_name="medviz-xai", prog_name="medviz")
@click.pass_context
def main(ctx: click.Context) -> None:
    """What did the network look at? Explanations of medical-imaging networks, 2-D and 3-D."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in (explain, layers, plugins, new_plugin, demo):
    main.add_command(command)
