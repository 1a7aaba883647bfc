"""`planes`: where it cuts, what it writes, the colour bar's raw values, contours, and that no text overlaps."""

import matplotlib
import numpy as np
import pytest
import torch
from helpers_renderers import attribution

import medviz
from medviz.renderers.planes import Planes
from medviz.renderers.scene import three_digits


def peaked(value=0.25, at=(2, 5, 3), shape=(8, 9, 6), **options):
    values = np.zeros((1, *shape))
    values[(0, *at)] = value
    return attribution(values, **options)


def texts(figure):
    return [text.get_text() for text in figure.texts]


def axes_of(figure, label):
    return next((a for a in figure.axes if a.get_label() == label), None)


def ticks(figure):
    return [label.get_text() for label in axes_of(figure, "colour bar").get_yticklabels()]


def minus(text):
    return text.replace("-", "\N{MINUS SIGN}")


def test_it_cuts_through_the_peak_and_says_where():
    figure = Planes(dpi=40)(peaked(affine=np.diag([2, 2, 4, 1.0]))).figure
    assert "peak 0.25 at (4, 10, 12) mm RAS  ·  voxel (2, 5, 3)" in texts(figure)
    assert {"axial  z = 12 mm", "coronal  y = 10 mm", "sagittal  x = 4 mm"} <= set(texts(figure))


def test_a_place_far_from_the_scanners_centre_is_said_to_a_tenth_of_a_millimetre():
    affine = np.array([[0.75, 0, 0, -120.0], [0, 0.75, 0, -241.5], [0, 0, 3, -1234.5], [0, 0, 0, 1]])
    figure = Planes(dpi=40)(peaked(affine=affine)).figure
    assert minus("peak 0.25 at (-118.5, -237.8, -1225.5) mm RAS  ·  voxel (2, 5, 3)") in texts(figure)
    assert minus("axial  z = -1225.5 mm") in texts(figure)
    near = np.array([[-0.02, 0, 0, 0.03], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert any("at (0, 5, 3) mm RAS" in text for text in texts(Planes(dpi=40)(peaked(affine=near)).figure))


def test_numbers_have_three_digits_that_count():
    told = {0.012345: "0.0123", 0.5: "0.5", 12.0: "12", 1842.0: "1,840", -999999.0: "-1,000,000", 2.5e6: "2.5e+06"}
    assert {value: three_digits(value) for value in told} == {value: minus(text) for value, text in told.items()}
    assert three_digits(1e-7) == minus("1e-07")


def test_it_cuts_where_it_is_told():
    rendering = Planes(dpi=40, voxel=(7, 0, 1))(peaked(affine=np.diag([2, 2, 4, 1.0])))
    assert {"axial  z = 4 mm", "coronal  y = 0 mm", "sagittal  x = 14 mm"} <= set(texts(rendering.figure))
    assert any("voxel (2, 5, 3)" in text for text in texts(rendering.figure))


def test_plugin_string():
    renderer = medviz.get_renderer("planes:contour=true,voxel=[1,2,3],crosshair=false,window=(0,5)")
    assert renderer.voxel == (1, 2, 3)
    assert renderer.contour == (0.3, 0.5, 0.7, 0.9)
    assert renderer.window == (0, 5)


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0, 1, 8], {}, ["0", "2", "4", "6", "8"]),
        ([0, 1, 8], {"vmax": 4}, ["0", "1", "2", "3", "≥ 4"]),
        ([0, 1, 8], {"vmax": 16}, ["0", "4", "8", "12", "16"]),
        ([-2, 0, 8], {"signed": True}, ["-8", "-4", "0", "4", "8"]),
        ([-9, 0, 8], {"signed": True, "vmax": 2}, ["≤ -2", "-1", "0", "1", "≥ 2"]),
        ([0, 1, 8], {"contour": (0.5, 0.25)}, ["2", "4"]),
        ([-8, 0, 1], {"signed": True, "contour": 0.5}, ["-4", "4"]),
    ],
)
def test_the_colour_bar_shows_raw_values(values, options, expected):
    options = dict(options)
    a = attribution(np.array([[values, values]]), signed=options.pop("signed", False))
    figure = Planes(dpi=40, **options)(a).figure
    assert ticks(figure) == [minus(text) for text in expected]
    limits = axes_of(figure, "colour bar").get_ylim()
    assert limits == ((-1, 1) if a.signed else (0, 1))


def test_an_empty_map_says_so_and_has_no_colour_bar():
    figure = Planes(dpi=40)(peaked(0)).figure
    assert "the map is 0 everywhere" in texts(figure)
    assert axes_of(figure, "colour bar") is None
    assert len([a for a in figure.axes if a.get_label().startswith("plane")]) == 3


def test_a_constant_map_is_cut_through_its_middle():
    scene = Planes().scene(attribution(np.full((1, 5, 7, 9), 2.0)))
    assert scene.peak() == (2, 3, 4)


def test_of_several_peaks_the_one_in_their_middle_is_taken():
    values = np.zeros((1, 9, 9, 9))
    values[0, 5:8, 0:3, 4] = 2
    assert Planes().scene(attribution(values)).peak() == (6, 1, 4)


@pytest.mark.parametrize("signed", [False, True])
def test_the_colour_bar_has_each_colour_at_its_value(signed):
    figure = Planes(dpi=40, alpha=1.0)(peaked(signed=signed)).figure
    (bar,) = axes_of(figure, "colour bar").images
    low = -1 if signed else 0
    assert bar.get_extent() == [0, 1, low, 1]
    colours = bar.get_array()
    table = matplotlib.colormaps["bwr" if signed else "inferno"]
    np.testing.assert_allclose(colours[0, 0] / 255, table(1.0)[:3], atol=0.01)
    if signed:
        np.testing.assert_allclose(colours[-1, 0] / 255, table(0.0)[:3], atol=0.01)


def test_the_peak_of_a_signed_map_is_its_largest_magnitude():
    values = np.zeros((1, 4, 5, 6))
    values[0, 1, 2, 3], values[0, 3, 3, 3] = -3, 2
    figure = Planes(dpi=40)(attribution(values, signed=True)).figure
    assert f"peak {minus('-3')} at voxel (1, 2, 3)" in texts(figure)


def test_the_crosshair_can_be_switched_off_and_leaves_the_place_open():
    a = peaked()
    lines = {flag: axes_of(Planes(dpi=40, crosshair=flag)(a).figure, "plane 0").collections for flag in (True, False)}
    assert len(lines[True]) == 2
    assert not lines[False]
    across, down = (collection.get_segments() for collection in lines[True])
    assert [segment[0][1] for segment in across] == [5, 5]
    assert across[0].max(0)[0] < 3 < across[1].min(0)[0]
    assert [segment[0][0] for segment in down] == [3, 3]


def test_contours_stand_in_place_of_the_wash():
    centre = np.array([8, 10, 13])
    place = np.stack(np.meshgrid(*[np.arange(21)] * 3, indexing="ij"), -1)
    values = np.exp(-((place - centre) ** 2).sum(-1) / 18)[None]
    figure = Planes(contour=(0.5,), crosshair=False, window=(0, 1))(attribution(values, np.zeros_like(values))).figure
    for panel in range(3):
        axes = axes_of(figure, f"plane {panel}")
        assert axes.images[0].get_array().max() == 0
        (contour,) = axes.collections
        (outline,) = contour.get_paths()
        radius = np.linalg.norm(outline.vertices - np.delete(centre, panel)[::-1], axis=1)
        np.testing.assert_allclose(radius, np.sqrt(18 * np.log(2)), atol=0.1)


@pytest.mark.parametrize("shape", [(40, 40, 40), (64, 64, 8), (8, 64, 64), (4, 4, 200), (1, 1, 1), (60, 80), (3, 90)])
@pytest.mark.parametrize(
    ("options", "affine"),
    [
        ({}, np.diag([-1, 1, 1.3, 1])),
        ({"contour": (0.1, 0.5, 0.52, 0.9)}, None),
        ({"vmax": 1.234e-5}, np.diag([1, 2, 3, 1])),
    ],
)
def test_no_text_overlaps_or_leaves_the_picture(shape, options, affine):
    a = attribution(
        np.full((1, *shape), -0.000123456), affine=affine, signed=True, target="a target with $ and a name " * 9
    )
    figure = Planes(dpi=50, **options)(a).figure
    renderer = figure.canvas.get_renderer()
    written = [*figure.texts, *axes_of(figure, "colour bar").get_yticklabels()]
    boxes = [text.get_window_extent(renderer) for text in written if text.get_text()]
    boxes += [axes.get_window_extent(renderer) for axes in figure.axes]
    width, height = figure.bbox.size
    for i, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
        for other in boxes[:i]:
            apart = box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 or other.y1 <= box.y0
            assert apart, (box, other)


@pytest.mark.parametrize(
    "shape", [(64, 64, 64), (64, 64, 4), (4, 64, 64), (200, 4, 4), (4, 4, 200), (40, 90), (90, 40)]
)
def test_the_picture_has_its_size_whatever_the_shape(shape):
    width, height = Planes(dpi=20)(attribution(np.ones((1, *shape)))).figure.get_size_inches()
    assert width < 13
    assert height < (6 if len(shape) == 3 else 9)


def test_dpi_scales_the_picture():
    small, large = (Planes(dpi=dpi)(peaked()).frames.shape for dpi in (40, 80))
    assert large[1:3] == pytest.approx([2 * n for n in small[1:3]], abs=2)


def test_the_figure_can_be_drawn_again():
    rendering = Planes(dpi=40)(peaked())
    rendering.figure.canvas.draw()
    np.testing.assert_array_equal(np.asarray(rendering.figure.canvas.buffer_rgba())[..., :3], rendering.frames[0])


def test_a_photograph_has_one_plane_and_a_pixel():
    a = attribution(np.eye(6)[None] * np.arange(6), torch.rand(3, 6, 6))
    figure = Planes(dpi=40)(a).figure
    assert [axes.get_label() for axes in figure.axes] == ["plane 0", "colour bar"]
    assert "peak 5 at pixel (5, 5)" in texts(figure)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel": (-1, 0, 0)}, "`voxel`"),
        ({"voxel": (1.5, 0, 0)}, "`voxel`"),
        ({"contour": 1.5}, "`contour`"),
        ({"contour": (0.0, 0.5)}, "`contour`"),
        ({"contour": "yes"}, "`contour`"),
        ({"contour": [0.5, "a"]}, "`contour`"),
        ({"voxel": 5}, "`voxel`"),
        ({"dpi": 5}, "dpi"),
    ],
)
def test_wrong_fields(options, message):
    with pytest.raises(ValueError, match=message):
        Planes(**options)
