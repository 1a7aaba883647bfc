"""Make the pictures and numbers of docs/gallery.md: `python tools/gallery.py`; it takes about 15 minutes on two cores.

`--only NAME` (an explainer, "truth", "occluders" or "renderers"; repeatable) makes a part of it again, `--keep FOLDER`
keeps the maps, so that they can be drawn again without a network. Text between the page's marks `<!-- gallery: … -->`
and `<!-- end -->` is replaced, everything else is written by hand.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from gallery_cases import Case, batch, cases
from gallery_draw import Slice, colour_bars, row, save
from gallery_parts import draw_occluders, draw_renderers

import medviz
from medviz import Attribution, registry
from medviz.demo.scan import distances_mm

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "images" / "gallery"
SEEDED = {"smoothgrad": "seed=0", "guidedbackpropsmooth": "seed=0"}


def explainers() -> list[str]:
    """Return the names of the built-in explainers."""
    return [entry.name for entry in registry.entries("explainers") if entry.package == "medviz-xai"]


def written(name: str, case: Case) -> str:
    """Return the plugin string with which an explainer is asked about a case."""
    parameters = case.heavy.get(name) or SEEDED.get(name, "")
    return f"{name}:{parameters}" if parameters else name


class Maps:
    """The maps of the explainers, made when they are needed.

    Args:
        asked: the cases.
        keep: a folder that keeps the maps; None: nothing is kept.
    """

    def __init__(self, asked: dict[str, Case], keep: Path | None = None) -> None:
        self.asked, self.keep = asked, keep
        self.network: Any = functools.cache(lambda make: make())

    def __call__(self, name: str, key: str) -> Attribution:
        """Return the map of one explainer for one case."""
        kept = None if self.keep is None else self.keep / f"{name}-{key}.npz"
        if kept is not None and kept.is_file():
            return Attribution.load(kept)
        case = self.asked[key]
        made = medviz.explain(self.network(case.network), case.image, f"medviz-xai/{written(name, case)}", case.target)
        if not isinstance(made, Attribution):
            raise TypeError(f"one explainer and one target gave a {type(made).__name__}.")
        if kept is not None:
            made.save(kept)
        return made


def draw(attribution: Attribution, case: Case, **options: Any) -> Any:
    """Return the picture `(H, W, 3)` of one case; the 99th percentile of the map's magnitudes has the last colour."""
    renderer = Slice(voxel=case.voxel, window=case.window, scale="percentile", **options)
    rendering: Any = renderer(attribution)
    return rendering.frames[0]


def draw_truth(asked: dict[str, Case]) -> None:
    """Write what the network gets, with where the answer lies, and the colour bars."""
    blank = [Attribution(batch(c)[:, :1] * 0, batch(c), affine=_affine(c)) for c in asked.values()]
    pictures = [draw(a, case, wash=False, outline=case.region) for a, case in zip(blank, asked.values(), strict=True)]
    save(row(pictures, [case.title for case in asked.values()]), PICTURES / "truth.png")
    save(colour_bars(), PICTURES / "colours.png")


def draw_explainer(name: str, maps: Maps) -> str:
    """Write the row of pictures of one explainer; return the Markdown that shows it."""
    asked = maps.asked
    made = {key: maps(name, key) for key in asked}
    pictures = [draw(made[key], case) for key, case in asked.items()]
    save(row(pictures, [case.title for case in asked.values()]), PICTURES / f"{name}.png")
    titles = ", ".join(case.title for case in asked.values())
    texts = {written(name, case): None for case in asked.values()}
    how = f"Asked for as {' and '.join(f'`{text}`' for text in texts)}.\n\n" if any(":" in t for t in texts) else ""
    numbers = " | ".join(measured(made[key], case) for key, case in asked.items() if case.region is not None)
    return f"![Maps of {name}: {titles}](images/gallery/{name}.png)\n\n{how}{HEAD}\n| {numbers} |"


HEAD = "| lesion: peak to its centre | lesion | cup | both, espresso | both, cat |\n|---|---|---|---|---|"


def measured(attribution: Attribution, case: Case) -> str:
    """Return how far the peak lies from the lesion, and which share of the positive mass lies inside of the region."""
    if case.region is None:
        raise ValueError(f"nobody says where the answer lies in the case {case.title!r}.")
    values = attribution.values[0].sum(0).clamp(min=0).double()
    share = f"{float(values[case.region].sum() / values.sum()):.0%}"
    if case.voxel is None or attribution.affine is None:
        return share
    distance = distances_mm(attribution.affine[0], values.shape, case.voxel).flatten()[int(values.argmax())]
    return f"{float(distance):.1f} mm | {share}"


def shares(asked: dict[str, Case]) -> str:
    """Return the share that a map which points nowhere would have inside."""
    parts = [f"{float(case.region.double().mean()):.2%}" for case in asked.values() if case.region is not None]
    truth = "![The five images, and where the answer lies in each](images/gallery/truth.png)"
    names = ("the lesion", "the cup", "a half", "a half")
    words = ", ".join(f"{part} in {name}" for part, name in list(zip(parts, names, strict=True))[:3])
    return f"{truth}\n\nA map that points nowhere would have {words}."


def fill(page: str, name: str, content: str) -> str:
    """Return the page with new text between the marks of `name`.

    Raises:
        ValueError: the page lacks the marks.
    """
    mark = re.compile(rf"(<!-- gallery: {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    if not mark.search(page):
        raise ValueError(f"{PAGE.name} lacks the marks of {name!r}: <!-- gallery: {name} --> and <!-- end -->.")
    return mark.sub(lambda found: found[1] + content + found[2], page)


def _affine(case: Case) -> Any:
    affine = getattr(case.image, "affine", None)
    return None if affine is None else affine[None]


def parts(only: tuple[str, ...], maps: Maps) -> Iterator[tuple[str, str]]:
    """Make the parts that are asked for, all of them where none is named; yield the name and Markdown of each."""
    for name in only or ("truth", "occluders", "renderers", *explainers()):
        click.echo(name, err=True)
        if name == "truth":
            draw_truth(maps.asked)
            yield name, shares(maps.asked)
        elif name == "occluders":
            yield name, draw_occluders(maps.asked["cup"], PICTURES)
        elif name == "renderers":
            scans = [maps(explainer, "lesion") for explainer in ("gradcampp", "occlusion")]
            yield name, draw_renderers(scans, maps("layercam", "cup"), maps.asked, PICTURES)
        else:
            yield name, draw_explainer(name, maps)


@click.command()
@click.option("--only", multiple=True, help="Make this part only. Repeatable.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the maps in this folder, and take them from there.")
def main(only: tuple[str, ...], keep: Path | None) -> None:
    """Make the gallery."""
    for folder in filter(None, (PICTURES, keep)):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in parts(only, Maps(cases(), keep)):
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), name, content), encoding="utf-8")


if __name__ == "__main__":
    main()
