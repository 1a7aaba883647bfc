"""Left is left: every flip and permutation of one volume gives the same picture with the same letters."""

import itertools

import numpy as np
import pytest
import torch
from helpers_renderers import attribution, gaussian_at, scan_path
from hypothesis import given, settings
from hypothesis import strategies as st

from medviz.renderers.annotate import draw_letters
from medviz.renderers.blend import Blend, edge_letters
from medviz.renderers.matshow3d import Matshow3d
from medviz.renderers.orientation import orient, square_size, to_mm
from medviz.renderers.planes import Planes

SHAPE = (5, 6, 7)  # right, front, head: an RAS volume
SPACING = (1.0, 2.0, 3.0)
MARKED = (1, 4, 5)  # to the left of the centre, in front of it, above it
RAS = np.array([[1, 0, 0, -10], [0, 2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
WAYS = list(itertools.product(itertools.permutations(range(3)), itertools.product([False, True], repeat=3)))


def stored(array, order, flips):
    """The volume as a file with other axes holds it: `(C, *RAS)` permuted, then flipped."""
    array = array.transpose(0, *(axis + 1 for axis in order))
    return np.flip(array, [i + 1 for i, flip in enumerate(flips) if flip]).copy()


def stored_affine(order, flips):
    """The affine of such a file, column by column."""
    affine = np.eye(4)
    affine[:3, 3] = RAS[:3, 3]
    for i, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        affine[:3, i] = RAS[:3, axis] * (-1 if flip else 1)
        affine[:3, 3] += RAS[:3, axis] * (SHAPE[axis] - 1 if flip else 0)
    return affine


def marked(order=(0, 1, 2), flips=(False,) * 3):
    values = np.zeros((1, *SHAPE))
    values[(0, *MARKED)] = 1
    image = np.random.default_rng(0).random((1, *SHAPE))
    return attribution(stored(values, order, flips), stored(image, order, flips), stored_affine(order, flips))


def lit(picture):
    """The centre of what is coloured, (row, column), in pixels."""
    colour = picture.astype(float).max(-1) - picture.min(-1)
    rows, columns = np.nonzero(colour > 0.8 * colour.max())
    return rows.mean(), columns.mean()


def panel_letters(figure, panel):
    """The letters around a panel, by side."""
    axes = next(a for a in figure.axes if a.get_label() == f"plane {panel}")
    box, found = axes.get_position(), {}
    for text in figure.texts:
        x, y = text.get_position()
        if text.get_text() not in tuple("RLAPSI"):
            continue
        if box.x0 < x < box.x1 and abs(y - (box.y0 + box.y1) / 2) < box.height / 2 + 0.06:
            found["top" if y > box.y1 else "bottom"] = text.get_text()
        elif box.y0 < y < box.y1 and abs(x - (box.x0 + box.x1) / 2) < box.width / 2 + 0.03:
            found["left" if x < box.x0 else "right"] = text.get_text()
    return found


def test_blend_by_hand():
    rendering = Blend(size=1, letters=False, window=(0, 1))(marked())
    assert rendering.frames.shape == (7, 12, 5, 3)
    assert rendering.title.endswith("axial, foot to head")
    coloured = (rendering.frames.max(-1) != rendering.frames.min(-1)).any((1, 2))
    assert np.flatnonzero(coloured).tolist() == [5]  # the sixth slice from the foot
    # rows run from the front: front to back is 5 - 4 = 1, two pixels of 1 mm each; columns from the patient's right
    assert lit(rendering.frames[5]) == (2.5, 3)


@pytest.mark.parametrize(("order", "flips"), WAYS)
def test_blend_is_the_same_for_all_48_orientations(order, flips):
    expected, got = (Blend(size=64)(a) for a in (marked(), marked(order, flips)))
    np.testing.assert_array_equal(got.frames, expected.frames)
    assert got.title == expected.title


@pytest.mark.parametrize(("order", "flips"), WAYS)
def test_what_every_renderer_draws_is_the_same_for_all_48_orientations(order, flips):
    expected, got = (Planes().scene(a) for a in (marked(), marked(order, flips)))
    for name in ("backdrop", "values", "scaled"):
        assert torch.equal(getattr(got, name), getattr(expected, name))
    assert got.peak() == expected.peak() == (1, 1, 3)
    assert got.orientation.spacing == expected.orientation.spacing == (3, 2, 1)


@pytest.mark.parametrize("renderer", [Planes(dpi=40), Matshow3d(dpi=40), Planes(dpi=40, contour=True)])
def test_planes_and_sheet_are_the_same_for_several_orientations(renderer):
    expected = renderer(marked())
    for way in WAYS[13::17]:
        got = renderer(marked(*way))
        below_title = int(0.9 * 40)  # the voxel's indices in the title are those of the file
        np.testing.assert_array_equal(got.frames[:, below_title:], expected.frames[:, below_title:])


@pytest.mark.parametrize(("order", "flips"), WAYS)
def test_planes_put_the_marked_voxel_and_the_letters_where_they_belong(order, flips):
    figure = Planes(dpi=40, crosshair=False, window=(0, 1))(marked(order, flips)).figure
    expected = {
        0: ((1, 3), {"top": "A", "bottom": "P", "left": "R", "right": "L"}, "axial  z = 45 mm"),
        1: ((1, 3), {"top": "S", "bottom": "I", "left": "R", "right": "L"}, "coronal  y = 28 mm"),
        2: ((1, 1), {"top": "S", "bottom": "I", "left": "A", "right": "P"}, "sagittal  x = \N{MINUS SIGN}9 mm"),
    }
    texts = [text.get_text() for text in figure.texts]
    for panel, (place, letters, heading) in expected.items():
        axes = next(a for a in figure.axes if a.get_label() == f"plane {panel}")
        (drawn,) = axes.images
        left, right, bottom, top = drawn.get_extent()
        row, column = lit(drawn.get_array())
        height, width = drawn.get_array().shape[:2]
        at = (top + (row + 0.5) / height * (bottom - top), left + (column + 0.5) / width * (right - left))
        assert np.round(at).tolist() == list(place)
        assert panel_letters(figure, panel) == letters
        assert heading in texts
    assert any("peak 1 at (\N{MINUS SIGN}9, 28, 45) mm RAS" in text for text in texts)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_named_frame_axis_keeps_the_images_order(axis):
    for order, flips in WAYS:
        a = marked(order, flips)
        frames = Blend(size=1, letters=False, frame_axis=axis, window=(0, 1))(a).frames
        at = int(a.values[0, 0].amax([i for i in range(3) if i != axis]).argmax())
        assert len(frames) == a.values.shape[2 + axis]
        assert np.flatnonzero((frames.max(-1) != frames.min(-1)).any((1, 2))).tolist() == [at]
        np.testing.assert_array_equal(
            frames, Blend(size=1, letters=False, frame_axis=axis - 3, window=(0, 1))(a).frames
        )


@pytest.mark.parametrize(
    ("columns", "plane", "letters"),
    [
        ((0, 1), "axial", [("A", "P"), ("R", "L")]),
        ((1, 0), "axial", [("A", "P"), ("R", "L")]),
        ((0, 2), "coronal", [("S", "I"), ("R", "L")]),
        ((2, 1), "sagittal", [("S", "I"), ("A", "P")]),
    ],
)
@pytest.mark.parametrize("signs", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_a_2d_image_with_an_affine(columns, plane, letters, signs):
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for i, (axis, sign) in enumerate(zip(columns, signs, strict=True)):
        affine[axis, i] = 2 * sign
    affine[3 - sum(columns), 2] = 1
    values = np.zeros((1, 6, 6))
    voxel = [1 if sign > 0 else 4 for sign in signs]  # low on both of the patient's axes
    values[(0, *voxel)] = 1
    rendering = Planes(dpi=40, crosshair=False, window=(0, 1))(attribution(values, affine=affine))
    (axes,) = (a for a in rendering.figure.axes if a.get_label() == "plane 0")
    row, column = lit(axes.images[0].get_array())
    size = axes.images[0].get_array().shape[0] / 6
    assert (int(row / size), int(column / size)) == (4, 4)  # towards the second letter of each axis
    side = panel_letters(rendering.figure, 0)
    assert [(side["top"], side["bottom"]), (side["left"], side["right"])] == letters
    assert any(text.get_text() == plane for text in rendering.figure.texts)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_those_of_the_map_and_of_the_image(axis):
    values, image = np.random.default_rng(0).random((2, 1, 4, 5, 6))
    scene = Planes(window=(0, 1)).scene(attribution(values, image))
    backdrop, scaled = scene.slices(axis, [3, 0], scene.size(axis))
    np.testing.assert_allclose(backdrop[0], np.moveaxis(image[0], axis, 0)[[3, 0]], rtol=1e-6)
    np.testing.assert_allclose(scaled, np.moveaxis(values[0], axis, 0)[[3, 0]] / values.max(), rtol=1e-6)


@pytest.mark.parametrize(
    ("axis", "letters"),
    [
        (0, {"top": "A", "bottom": "P", "left": "R", "right": "L"}),
        (1, {"top": "S", "bottom": "I", "left": "R", "right": "L"}),
        (2, {"top": "S", "bottom": "I", "left": "A", "right": "P"}),
    ],
)
def test_each_edge_of_a_frame_has_its_letter(axis, letters):
    assert edge_letters(Blend().scene(marked()), axis) == letters


@pytest.mark.parametrize(
    ("edge", "place"), [("top", (0, 0.5)), ("bottom", (1, 0.5)), ("left", (0.5, 0)), ("right", (0.5, 1))]
)
def test_letters_stand_at_the_edges(edge, place):
    frames = np.stack([np.full((90, 120, 3), grey, np.uint8) for grey in (0, 200)])
    written = draw_letters(frames, {edge: "L"})
    rows, columns = np.nonzero(written[0].max(-1))
    assert (rows.mean() / 90, columns.mean() / 120) == pytest.approx(place, abs=0.12)
    np.testing.assert_array_equal(written[1:], draw_letters(frames[1:], {edge: "L"}))
    assert frames[0].max() == 0  # the frames that are given stay as they are


def test_without_an_affine_nothing_is_turned_and_no_side_is_named():
    values = np.zeros((1, 4, 5, 6))
    values[0, 1, 2, 3] = 1
    a = attribution(values)
    blended = Blend(size=1, window=(0, 1))(a)
    assert blended.frames.shape == (4, 5, 6, 3)
    assert lit(blended.frames[1]) == (2, 3)
    figure = Planes(dpi=40)(a).figure
    texts = [text.get_text() for text in figure.texts]
    assert not set(texts) & set("RLAPSI")
    assert not any(word in text for text in texts for word in ("axial", "coronal", "sagittal", "mm"))
    assert "axis 1  slice 2 (0 to 4)" in texts


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "place", "seen"),
    [("example4d.nii.gz", (20, 25, 35), (9, 62, 49)), ("anatomical.nii", (10, 10, 10), (11, 15, 11))],
)
def test_real_scans_with_a_hot_spot_at_a_known_place(name, place, seen):
    """Both files are LAS: columns as stored (the patient's right first), rows and slices backwards."""
    import nibabel

    scan = nibabel.load(scan_path(name))
    data = np.asarray(scan.dataobj, dtype=np.float32)
    data = data[..., 0] if data.ndim == 4 else data
    assert nibabel.aff2axcodes(scan.affine) == ("L", "A", "S")
    a = attribution(gaussian_at(data.shape, scan.affine, place, 9)[None], data[None], scan.affine)
    scene = Planes().scene(a)
    assert scene.peak() == seen
    voxel = scene.orientation.to_image(seen, data.shape)
    assert np.abs(np.array(to_mm(scan.affine, voxel)) - place).max() < 1.5
    np.testing.assert_array_equal(scene.values.numpy(), a.values[0, 0].permute(2, 1, 0).flip(0, 1).numpy())


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 47), st.floats(-0.6, 0.6), st.floats(-0.6, 0.6), st.tuples(*[st.integers(0, 4)] * 3))
def test_oblique_affines_turn_to_the_nearest_axes_and_back(way, first, second, voxel):
    from nibabel import aff2axcodes

    turn_x = np.array([[1, 0, 0], [0, np.cos(first), -np.sin(first)], [0, np.sin(first), np.cos(first)]])
    turn_z = np.array([[np.cos(second), -np.sin(second), 0], [np.sin(second), np.cos(second), 0], [0, 0, 1]])
    affine = stored_affine(*WAYS[way])
    affine[:3, :3] = turn_x @ turn_z @ affine[:3, :3]
    orientation = orient(affine, 3)
    codes = aff2axcodes(affine)
    for display in range(3):
        towards = codes[orientation.image_axis(display)]
        ends = orientation.letters(display)
        assert towards == (ends[0] if orientation.flips[display] else ends[1])
    shape = (5, 5, 5)
    assert orientation.to_image(orientation.to_display(voxel, shape), shape) == voxel
    assert orientation.spacing == pytest.approx(np.linalg.norm(affine[:3, list(orientation.order)], axis=0))


def test_a_voxel_of_a_2d_image_lies_in_its_only_slice():
    orientation = orient(np.diag([1.0, 2, 3, 1]), 2)
    assert orientation.to_display((1, 0), (3, 4)) == (0, 3, 1)  # front to back, then right to left
    assert orientation.to_image((0, 3, 1), (3, 4)) == (1, 0)


def test_tilt_is_told():
    angle = np.radians(30)
    affine = RAS.copy()
    affine[:3, :3] = (
        np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]) @ RAS[:3, :3]
    )
    assert orient(affine, 3).tilt == pytest.approx(30)
    figure = Planes(dpi=40)(attribution(np.ones((1, *SHAPE)), affine=affine)).figure
    texts = [text.get_text() for text in figure.texts]
    assert any("oblique by 30°" in text for text in texts)
    assert not any("z =" in text for text in texts)


def test_square_pixels():
    assert square_size((10, 20), (4, 1)) == (40, 20)
    assert square_size((10, 20), (1, 4)) == (10, 80)
    assert square_size((10, 20), (0.5, 0.5), least=50) == (30, 60)
    assert square_size((1, 1), (1, 1), least=256) == (256, 256)
    assert square_size((5000, 4000), (0.1, 0.1)) == (5000, 4000)
    assert square_size((5000, 4000), (0.1, 0.1), most=100) == (100, 80)
    height, width = square_size((512, 30), (0.1, 10))
    assert max(height, width) == 2048
    assert height / width == pytest.approx(51.2 / 300, rel=0.01)


def test_spacing_1_1_4_gives_pictures_in_proportion():
    affine = np.diag([1, 1, 4, 1.0])
    a = attribution(np.ones((1, 10, 12, 5)), affine=affine)
    assert Blend(size=1)(a).frames.shape[1:3] == (12, 10)
    assert Blend(size=1, frame_axis=0)(a).frames.shape[1:3] == (20, 12)
    assert Blend(size=1, frame_axis=1)(a).frames.shape[1:3] == (20, 10)
    figure = Planes(dpi=40)(a).figure
    width, height = figure.get_size_inches()
    for panel, aspect in ((0, 12 / 10), (1, 20 / 10), (2, 20 / 12)):
        box = next(ax for ax in figure.axes if ax.get_label() == f"plane {panel}").get_position()
        assert box.height * height / (box.width * width) == pytest.approx(aspect)


def test_one_or_four_axes_are_refused():
    with pytest.raises(ValueError, match="4 spatial axes"):
        orient(None, 4)
