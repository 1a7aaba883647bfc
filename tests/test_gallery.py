"""The gallery shows everything that is built in, in small pictures that its script makes; drawings are up to date."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medviz import registry

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PICTURES = sorted((IMAGES / "gallery").iterdir())
PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
TOOLS = ("gallery", "gallery_cases", "gallery_draw", "gallery_parts", "drawings", "svg")


@pytest.fixture(scope="module")
def tools() -> Iterator[Any]:
    """Import one of the scripts by its name."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(ROOT / "tools"))
        for name in TOOLS:
            sys.modules.pop(name, None)


def own(kind: str) -> list[str]:
    return [entry.name for entry in registry.entries(kind) if entry.package == "medviz-xai"]


def part(name: str) -> str:
    """What the script has written between the marks of one part."""
    (found,) = re.findall(rf"<!-- gallery: {name} -->\n(.*?)\n<!-- end -->", PAGE, re.DOTALL)
    return str(found)


@pytest.mark.parametrize("name", own("explainers"))
def test_every_explainer_has_its_row_its_numbers_and_a_sentence(name: str) -> None:
    section = PAGE.partition(f"\n### {name}\n\n")[2]
    sentence = section.partition("<!-- gallery:")[0].strip()
    assert len(sentence.split()) > 5
    assert f"(images/gallery/{name}.png)" in part(name)
    assert re.search(r"^\| [\d.]+ mm \|( \d+% \|){4}$", part(name), re.MULTILINE)


def test_every_occluder_and_renderer_is_there() -> None:
    assert all(name in part("occluders") for name in own("occluders"))
    assert all(f"`{name}` with" in part("renderers") for name in own("renderers"))


def test_the_pictures_are_small_and_all_of_them_are_shown() -> None:
    assert sum(path.stat().st_size for path in PICTURES) < 2_000_000
    assert {path.name for path in PICTURES} == set(re.findall(r"\(images/gallery/([^)]+)\)", PAGE))


@pytest.mark.realdata
def test_a_picture_comes_out_as_it_is_committed(tools: Any) -> None:
    """The first picture of Grad-CAM's row: map, colours, orientation and place in the row."""
    gallery, cases = tools("gallery"), tools("gallery_cases")
    asked = {"lesion": cases.scan_case()}
    maps = gallery.Maps(asked)
    picture = gallery.draw(maps("gradcam", "lesion"), asked["lesion"])
    committed = np.asarray(Image.open(IMAGES / "gallery" / "gradcam.png").convert("RGB")).astype(float)
    draw = tools("gallery_draw")
    top, left = draw._HEADING, draw._GAP
    shown = committed[top : top + picture.shape[0], left : left + picture.shape[1]]
    assert np.abs(shown - picture).mean() < 2  # a palette of 256 colours lies between
    row = gallery.measured(maps("gradcam", "lesion"), asked["lesion"])
    assert row in part("gradcam")


def test_the_drawings_are_up_to_date(tools: Any) -> None:
    """Otherwise: python tools/drawings.py."""
    drawings = tools("drawings").DRAWINGS
    assert drawings
    for name, draw in drawings.items():
        assert (IMAGES / name).read_text(encoding="utf-8") == draw(), name


def test_the_drawings_can_be_read_on_a_light_and_on_a_dark_page(tools: Any) -> None:
    for name in tools("drawings").DRAWINGS:
        text = (IMAGES / name).read_text(encoding="utf-8")
        assert "prefers-color-scheme: dark" in text
        assert 'class="ground"' in text  # the drawing brings its ground, whatever the page's switch says
        assert "<title>" in text
