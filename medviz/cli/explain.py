"""`medviz explain`: from a network and a scan to pictures and maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medviz.cli.options import model_options
from medviz.cli.shell import debug_option
from medviz.cli.targets import FORMS


def _batch_size(_: click.Context, __: click.Parameter, value: str) -> int | str:
    if value == "auto" or (value.isdecimal() and int(value) > 0):
        return value if value == "auto" else int(value)
    raise click.BadParameter(f"{value!r} is neither 'auto' nor a positive number.")


@click.command(short_help="Explain a network's answer; write pictures and maps.")
@model_options
@click.option(
    "--image", "images", multiple=True, required=True, type=click.Path(path_type=Path), help="Repeatable: a batch."
)
@click.option("--reader", help="A reader; default: the one that takes the file's suffix.")
@click.option("--preprocess", metavar="PACKAGE.MODULE:FUNCTION", help="From medviz.Image to medviz.Image.")
@click.option("--trust-affine", is_flag=True, help="Take the affine that --preprocess returns as it is.")
@click.option("--explainer", "explainers", multiple=True, required=True, help="gradcampp:layer=layer4. Repeatable.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=["predicted"],
    show_default=True,
    help=f"{FORMS}. Repeatable.",
)
@click.option("--renderer", "renderers", multiple=True, help="For every picture sink that names none. Repeatable.")
@click.option("--sink", "sinks", multiple=True, required=True, help="png:path=out.png. Repeatable.")
@click.option("--wrap", multiple=True, help="A wrapper around every hook, the first outermost. Repeatable.")
@click.option("--tag", help="A name for the results, for file names and TensorBoard.")
@click.option("--step", type=int, default=0, show_default=True, help="The training step.")
@click.option("--batch-size", default="auto", show_default=True, callback=_batch_size, help="Rows at once.")
@click.option("--autocast/--no-autocast", default=None, help="Mixed precision; default: as the network is.")
@click.option("--progress/--no-progress", default=True, show_default=True, help="Progress bars.")
@debug_option
def explain(**options: Any) -> None:
    """Explain a network's answer for an image, and write pictures and maps.

    Several explainers and targets share one forward pass. File names may hold {index} {explainer} {target} {tag}
    {step}, and {renderer} where there are several renderers; two results for one file are refused before the network
    runs, as is an existing file (unless the sink says overwrite=true).

    \b
    medviz explain --model my_models:resnet --weights resnet.safetensors --image scan.nii.gz \\
        --explainer gradcampp:layer=layer4 --target 1 --sink png:path=out.png --sink nifti:path=map.nii.gz
    """
    import medviz
    from medviz.cli import loading, writing
    from medviz.cli.targets import parse
    from medviz.registry import get_explainer
    from medviz.relay import as_wrappers

    wrappers = as_wrappers(options["wrap"])
    explainers = [get_explainer(text) for text in options["explainers"]]
    targets: Any = [parse(text) for text in options["targets"]]
    plan = writing.Plan.of(options["sinks"], options["renderers"], options["tag"], options["step"])
    plan.check(explainers, targets, options["images"], options["weights"])
    images = loading.read_images(
        options["images"], options["reader"], options["preprocess"], options["trust_affine"], wrappers
    )
    model = loading.load_model(options["model"], options["model_arg"], options["weights"], options["device"])
    attributions: Any = medviz.explain(
        model,
        images,
        explainers,
        targets,
        output=options["output"],
        batch_size=options["batch_size"],
        autocast=options["autocast"],
        progress=options["progress"],
        wrappers=wrappers,
    )
    for place in plan.write(attributions, wrappers):
        click.echo(place)
