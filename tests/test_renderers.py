"""What the three renderers share: contract, colours, channels, scaling, refusals, and that they leave all as it was."""

import math

import attrs
import matplotlib
import numpy as np
import pytest
import torch
from helpers_renderers import attribution

import medviz
from medviz.attribution import Attribution
from medviz.renderers.blend import Blend
from medviz.renderers.map_renderer import describe
from medviz.renderers.matshow3d import Matshow3d
from medviz.renderers.planes import Planes

SMALL = {"blend": {"size": 64}, "matshow3d": {"dpi": 40}, "planes": {"dpi": 40}}
RNG = np.random.default_rng(0)
AFFINE = np.diag([-1.5, 1.5, 3, 1])


def flat(values, image=None, size=1, **options):
    """One frame without letters, of a 2-D image that is black unless given."""
    values = np.asarray(values, dtype=np.float32)
    fields = {key: options.pop(key) for key in ("signed", "affine") if key in options}
    image = np.zeros((1, *values.shape[1:])) if image is None else image
    return Blend(size=size, letters=False, **options)(attribution(values, image, **fields)).frames[0]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("affine", [None, AFFINE])
@pytest.mark.parametrize(
    ("map_shape", "image_shape"),
    [((1, 5, 6, 7), (1, 5, 6, 7)), ((2, 5, 6, 7), (2, 5, 6, 7)), ((1, 9, 8), (3, 9, 8)), ((3, 9, 8), (3, 9, 8))],
)
def test_contract(name, signed, affine, map_shape, image_shape):
    values = RNG.normal(size=map_shape) if signed else RNG.random(map_shape)
    a = attribution(values, RNG.random(image_shape), affine, signed=signed)
    before = attrs.evolve(
        a, values=a.values.clone(), image=a.image.clone(), affine=None if affine is None else a.affine.copy()
    )
    rendering = medviz.get_renderer(name, **SMALL[name])(a)
    assert rendering.frames.dtype == np.uint8
    assert len(rendering.frames) == (1 if name != "blend" or len(map_shape) == 3 else 5 if affine is None else 7)
    assert rendering.attribution.method == "gradcam"
    assert rendering.title.startswith("gradcam  ·  class 1  ·  score 2.5")
    assert (rendering.figure is None) == (name == "blend")
    assert rendering.frames.std() > 0
    assert torch.equal(a.values, before.values)
    assert torch.equal(a.image, before.image)
    np.testing.assert_array_equal(a.affine, before.affine)


@pytest.mark.parametrize("name", SMALL)
def test_several_images_and_no_pyplot_figures(name):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    a = Attribution(values=torch.rand(3, 1, 8, 9), image=torch.rand(3, 1, 8, 9))
    renderings = medviz.get_renderer(name, **SMALL[name])(a)
    assert len(renderings) == 3
    assert [r.attribution.index for r in renderings] == [(0,), (1,), (2,)]
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("field", ["values", "image"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(name, field, bad):
    a = attribution(np.ones((1, 4, 5)))
    getattr(a, field)[0, 0, 1, 1] = bad
    with pytest.raises(ValueError, match=f"`{field}` of the attribution"):
        medviz.get_renderer(name)(a)


@pytest.mark.parametrize("name", SMALL)
def test_negative_values_that_are_not_declared_are_refused(name):
    with pytest.raises(ValueError, match="signed=True"):
        medviz.get_renderer(name)(attribution(-np.ones((1, 4, 5))))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (1, 40), (2, 1, 1), (1, 1, 30)])
@pytest.mark.parametrize("affine", [None, AFFINE])
@pytest.mark.parametrize("level", [0.0, 3.0])
def test_tiny_empty_and_constant_maps(name, shape, affine, level):
    a = attribution(np.full((1, *shape), level), np.full((1, *shape), 7.0), affine)
    options = {"crosshair": False} if name == "planes" else {}
    rendering = medviz.get_renderer(name, **SMALL[name], **options)(a)
    coloured = bool((rendering.frames.max(-1).astype(int) - rendering.frames.min(-1) > 40).any())
    assert coloured == (level > 0)


def test_zero_is_transparent_and_high_is_hot():
    image = np.linspace(0, 1, 12).reshape(1, 3, 4)
    ramp = np.linspace(0, 1, 12).reshape(1, 3, 4)
    grey = flat(np.zeros((1, 3, 4)), image, window=(0, 1))
    np.testing.assert_array_equal(grey, np.rint(255 * image[0])[..., None].repeat(3, -1))
    hot = flat(ramp, alpha=1.0, cmap="inferno").astype(int).sum(-1).ravel()
    assert (np.diff(hot) > 0).all()
    assert hot[0] == 0


def test_opacity_grows_with_the_value_and_is_capped_by_alpha():
    image, values = np.ones((1, 1, 5)), np.array([0, 0.25, 0.5, 0.75, 1])
    frame = flat(values.reshape(1, 1, 5), image, window=(0, 1), alpha=0.5, cmap="gray_r").astype(int)
    assert frame[0, 0, 0] == 255
    assert frame[0, -1, 0] == 128  # half of white, half of the last colour, black
    np.testing.assert_allclose(frame[0, :, 0], 255 * (1 - 0.5 * values**0.7 * values), atol=1)


@pytest.mark.parametrize(("signed", "values"), [(False, [0.0, 0.5, 1.0]), (True, [-1.0, 0.0, 1.0])])
def test_contours_have_the_full_colours_of_their_values(signed, values):
    scene = Planes(cmap="gray").scene(attribution(np.ones((1, 2, 2)), signed=signed))
    np.testing.assert_allclose(scene.colours(np.array(values)), np.repeat([[0], [0.5], [1]], 3, 1), atol=0.003)


@pytest.mark.parametrize("renderer", [Blend, Planes, Matshow3d])
def test_an_opaque_map_may_be_rounded_above_its_last_colour(renderer):
    scene = renderer(alpha=1.0, cmap="gray").scene(attribution(np.ones((1, 2, 2))))
    assert scene.wash(torch.zeros(1, 2, 2), torch.full((2, 2), 1 + 2**-23)).min() == 1
    values = np.random.default_rng(0).random((1, 16, 20, 12))
    renderer(alpha=1.0, vmax=0.5)(attribution(values, affine=np.diag([1, 1, 2.5, 1])))


def test_signed_maps_get_diverging_colours_centred_at_zero():
    frame = flat(np.array([[[-2.0, -0.5, 0, 0.5, 1]]]), signed=True, alpha=1.0).astype(int)[0]
    assert (frame[2] == 0).all()
    assert frame[0, 2] > frame[0, 0] + 200  # blue: against
    assert frame[4, 0] > frame[4, 2]  # red: for
    np.testing.assert_allclose(frame[1], frame[3][::-1], atol=1)  # as far from zero, mirrored colours
    named = flat(np.array([[[-1.0, 1.0]]]), signed=True, alpha=1.0, cmap="gray")[0]
    assert named[0].tolist() == [0, 0, 0]
    assert named[1].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("reduce", "expected"), [("sum", [0.5, 1]), ("mean", [0.5, 1]), ("max_abs", [-1, 1]), (0, [-1, -0.5]), (1, [1, 1])]
)
def test_reduce(reduce, expected):
    values = np.array([[[-2.0, -1.0]], [[3.0, 3.0]]])
    expected = {"max_abs": [1, 1]}.get(reduce, expected)
    scene = Blend(reduce=reduce).scene(attribution(values, np.zeros((2, 1, 2)), signed=True))
    np.testing.assert_allclose(scene.scaled[0, 0], expected)


@pytest.mark.parametrize(("reduce", "top"), [("sum", 2), ("mean", 1), ("max_abs", 3), (0, 2), (1, 3)])
def test_what_is_reduced_keeps_its_unit(reduce, top):
    values = np.array([[[-2.0, -1.0]], [[3.0, 3.0]]])
    assert Blend(reduce=reduce).scene(attribution(values, np.zeros((2, 1, 2)), signed=True)).top == top


def test_max_abs_keeps_the_sign():
    values = np.array([[[-2.0, 1.0]], [[1.0, 0.5]]])
    scene = Blend(reduce="max_abs").scene(attribution(values, np.zeros((2, 1, 2)), signed=True))
    np.testing.assert_allclose(scene.values[0, 0], [-2, 1])


def test_scale_vmax_and_top():
    values = np.arange(1, 201, dtype=float).reshape(1, 10, 20)
    a = attribution(values)
    for options, top in (({}, 200), ({"scale": "percentile"}, 198), ({"vmax": 50}, 50), ({"vmax": 400}, 400)):
        scene = Blend(**options).scene(a)
        assert scene.top == top
        np.testing.assert_allclose(scene.scaled[0], np.minimum(values[0] / top, 1), rtol=1e-6)
    assert Blend(vmax=3).scene(attribution(np.zeros((1, 2, 2)))).top == 0


def test_backdrop_channel_mean_colours_and_window():
    zero = np.zeros((1, 2, 2))
    image = np.array([[[0, 1], [0, 1]], [[0, 0], [1, 1]], [[0, 0], [0, 0]]], dtype=float)
    np.testing.assert_array_equal(flat(zero, image) / 255, np.moveaxis(image, 0, -1))
    np.testing.assert_array_equal(flat(zero, image, channel=1)[..., 0] / 255, image[1])
    two = flat(zero, image[:2], window=(0, 1))
    np.testing.assert_allclose(two[..., 2] / 255, image[:2].mean(0), atol=0.003)
    volume = Blend(window=(0, 1)).scene(attribution(zero[None], image[:, None]))  # three channels are no colours in 3-D
    np.testing.assert_allclose(volume.backdrop[:, 0], image.mean(0, keepdims=True), rtol=1e-6)
    hounsfield = np.array([[[-1000.0, -160], [40, 240]]])
    np.testing.assert_array_equal(flat(zero, hounsfield, window=(-160, 240))[..., 0], [[0, 0], [128, 255]])


@pytest.mark.parametrize(("mean", "deviation"), [(0.45, 0.2), (0.5, 0.5), (0.0, 1 / 255)])
def test_colours_of_a_normalised_photograph_come_back(mean, deviation):
    photo = RNG.random((3, 6, 5))
    photo[:, 0, 0], photo[:, 1, 1] = 0, 1
    np.testing.assert_allclose(
        flat(np.zeros((1, 6, 5)), (photo - mean) / deviation), np.rint(np.moveaxis(photo, 0, -1) * 255), atol=1
    )


def test_outliers_do_not_darken_a_scan():
    image = RNG.random((1, 10, 20, 30)).astype(np.float32)
    image[0, 0, 0, 0] = 1e6
    frames = Blend(size=1)(attribution(np.zeros((1, 10, 20, 30)), image)).frames
    assert 100 < frames.mean() < 155


def test_black_and_white_are_percentiles():
    image = np.linspace(0, 1000, 1001)
    backdrop = Blend().scene(attribution(np.zeros((1, 7, 11, 13)), image.reshape(1, 7, 11, 13))).backdrop
    np.testing.assert_allclose(backdrop.flatten(), ((image - 5) / 990).clip(0, 1), atol=1e-6)


def test_a_sparse_scan_is_not_black():
    image = np.zeros((1, 10, 20, 30))
    image[0, 5, 5, 5] = 1
    assert Blend(size=1)(attribution(np.zeros((1, 10, 20, 30)), image)).frames.max() == 255


@pytest.mark.parametrize("shape", [(2000, 2000, 3), (1024, 1024, 2), (1000, 2000, 2)])
def test_the_window_is_taken_from_all_slices(shape):
    image = torch.linspace(1000, 2000, math.prod(shape)).reshape(1, 1, *shape)
    image[..., 0] = image[..., 0] / 2000  # air
    scene = Blend(window=None).scene(Attribution(values=torch.zeros(1, 1, *shape), image=image))
    assert float(scene.backdrop[..., 1].mean()) == pytest.approx(0.75, abs=0.05)


def test_numbers_near_the_end_of_their_range_can_be_drawn():
    image = torch.linspace(-1e300, 1e300, 20, dtype=torch.float64).view(1, 1, 4, 5)
    huge = Attribution(torch.full((1, 3, 4, 5), 3e38), image)
    scene = Blend().scene(huge)
    assert scene.top == pytest.approx(9e38, rel=1e-6)
    assert scene.backdrop.min() == 0
    assert scene.backdrop.max() == 1
    half = Attribution(torch.full((1, 3, 4, 5), 4e4, dtype=torch.float16), torch.rand(1, 1, 4, 5))
    assert Blend().scene(half).top == pytest.approx(1.2e5, rel=1e-3)


def test_numbers_of_numpy_and_torch_are_numbers():
    made = Blend(
        window=(np.float32(1), torch.tensor(2.0)), vmax=np.float32(1), alpha=np.float64(0.5), frame_axis=np.int64(1)
    )
    assert (made.window, made.vmax, made.alpha, made.frame_axis) == ((1, 2), 1, 0.5, 1)


@pytest.mark.parametrize("name", ["planes", "blend", "matshow3d"])
def test_matplotlibs_settings_do_not_turn_the_patient(name):
    scan = attribution(np.arange(6 * 7 * 8).reshape(1, 6, 7, 8), affine=np.diag([1.0, 1, 1, 1]))
    expected = medviz.get_renderer(name)(scan).frames
    with matplotlib.rc_context({"image.origin": "lower", "text.usetex": True}):
        np.testing.assert_array_equal(medviz.get_renderer(name)(scan).frames, expected)


def test_a_scene_is_of_one_image():
    two = Attribution(torch.rand(2, 1, 4, 5), torch.rand(2, 1, 4, 5))
    with pytest.raises(ValueError, match="draws one image; got 2"):
        Blend().scene(two)


def test_a_window_wider_than_half_precision_can_hold():
    image = torch.tensor([[[[-6e4, 0, 3e4]]]], dtype=torch.float16)
    scene = Blend(window=(-6e4, 6e4)).scene(Attribution(torch.rand(1, 1, 1, 3), image))
    torch.testing.assert_close(scene.backdrop.flatten(), torch.tensor([0, 0.5, 0.75]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("rows", [8, 64, 128])
def test_what_is_made_smaller_keeps_what_lies_between_its_pixels(rows):
    stripes = np.zeros((1, 4, 64, 64))
    stripes[..., ::8] = stripes[..., 1::8] = 1
    backdrop, scaled = Blend(window=(0, 1)).scene(attribution(stripes, stripes)).slices(0, [2], (rows, 8))
    for made in (backdrop, scaled):
        torch.testing.assert_close(made.squeeze()[:, 1:-1], torch.full((rows, 6), 0.25), atol=0.02, rtol=0)


def test_half_and_double_images():
    values = torch.rand(1, 1, 4, 5)
    frames = [
        Blend(size=1)(Attribution(values=values.to(v), image=torch.rand(1, 1, 4, 5).to(i).mul(0).add(0.5))).frames
        for v, i in ((torch.float32, torch.float32), (torch.float64, torch.float64), (torch.float32, torch.float16))
    ]
    for frame in frames[1:]:
        np.testing.assert_allclose(frame.astype(int), frames[0].astype(int), atol=1)


def test_frames_per_second_size_and_letters():
    a = attribution(np.ones((1, 10, 12, 4)), affine=np.eye(4))
    assert Blend(fps=3)(a).fps == 3
    assert Blend()(a).frames.shape == (4, 192, 160, 3)
    assert Blend(size=1)(a).frames.shape == (4, 12, 10, 3)
    plain, lettered = (
        Blend(letters=flag, window=(0, 1))(attribution(np.zeros((1, 8, 8, 2)), np.zeros((1, 8, 8, 2)), np.eye(4)))
        for flag in (False, True)
    )
    assert plain.frames.max() == 0
    assert lettered.frames.max() > 200
    middle = lettered.frames.shape[1] // 2
    assert lettered.frames[:, middle - 60 : middle + 60, middle - 60 : middle + 60].max() == 0


def test_sheet_shows_at_most_64_slices_or_what_was_asked_for():
    a = attribution(np.ones((1, 130, 3, 4)), np.ones((1, 130, 3, 4)))
    captions = {n: Matshow3d(dpi=30, every_n=n)(a).figure.texts[1].get_text() for n in (None, 1, 50, 500)}
    assert "43 of 130 slices" in captions[None]
    assert "64 of 128 slices" in Matshow3d(dpi=30)(attribution(np.ones((1, 128, 3, 4)))).figure.texts[1].get_text()
    assert "130 slices" in captions[1]
    assert "3 of 130 slices" in captions[50]
    assert "1 of 130 slices" in captions[500]
    wide = Matshow3d(dpi=30, every_n=50, frames_per_row=3)(a).frames
    assert wide.shape[2] > wide.shape[1]


def test_a_sheet_has_the_colours_of_its_slices_and_names_the_side():
    values = np.full((1, 4, 5, 6), 1.0)
    a = attribution(values, np.zeros_like(values), np.eye(4), signed=True)
    for axis, side in ((0, "A on the left"), (1, "R on the left"), (2, "R on the left")):
        rendering = Matshow3d(dpi=30, alpha=1.0, frame_axis=axis)(a)
        caption = rendering.figure.texts[1].get_text()
        assert side in caption
        assert "colours \N{MINUS SIGN}1 to 1" in caption
        redder = rendering.frames[..., 0].astype(int) - rendering.frames[..., 2]
        assert (redder > 200).sum() > 1000  # red: for
        assert redder.min() > -100


@pytest.mark.parametrize("place", [0, 64, 65, 66, 129])
@pytest.mark.parametrize("affine", [None, np.eye(4)])
def test_a_sheet_never_leaves_out_the_peak(place, affine):
    values = np.zeros((1, 130, 6, 130))
    values[(0, place) if affine is None else (..., place)] = 1  # one slice: the first axis, or foot to head
    sheet = Matshow3d(dpi=60)(attribution(values, np.zeros_like(values), affine=affine)).frames.astype(int)
    assert (sheet.max(-1) - sheet.min(-1)).max() > 50


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "gradcam  ·  class 1  ·  score 2.5"),
        ({"target": "predicted", "classes": (7,)}, "gradcam  ·  predicted class 7  ·  score 2.5"),
        ({"target": "class 12", "classes": (1,)}, "gradcam  ·  class 12 class 1  ·  score 2.5"),
        ({"target": "", "classes": None, "scores": None, "provenance": {}}, "map"),
        (
            {"target": "segmentation 1", "classes": None, "scores": (-0.0001234,)},
            "gradcam  ·  segmentation 1  ·  score -0.0001234",
        ),
    ],
)
def test_describe(fields, line):
    assert describe(attribution(np.ones((1, 2, 2)), **fields)) == line


@pytest.mark.parametrize("renderer", [Blend, Matshow3d, Planes])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cmap": "infern"}, "did you mean 'inferno'"),
        ({"alpha": 1.2}, "`alpha`"),
        ({"alpha": "0.5"}, "`alpha`"),
        ({"channel": -1}, "`channel`"),
        ({"channel": 1.0}, "`channel`"),
        ({"reduce": "max"}, "`reduce`"),
        ({"reduce": -1}, "`reduce`"),
        ({"scale": "min"}, "`scale`"),
        ({"vmax": 0}, "`vmax`"),
        ({"vmax": float("inf")}, "`vmax`"),
        ({"window": (3, 3)}, "`window`"),
        ({"window": (1, 2, 3)}, "`window`"),
        ({"window": ("a", "b")}, "`window`"),
        ({"window": 5}, "`window`"),
    ],
)
def test_wrong_fields(renderer, options, message):
    with pytest.raises(ValueError, match=message):
        renderer(**options)


@pytest.mark.parametrize(
    ("renderer", "options", "message"),
    [
        (Blend, {"channel": 1}, "`channel` is 1; the image has 1"),
        (Planes, {"reduce": 1}, "`reduce` is channel 1; the map has 1"),
        (Blend, {"frame_axis": 3}, "`frame_axis` is 3; the image has 3"),
        (Matshow3d, {"frame_axis": -4}, "`frame_axis` is -4"),
        (Planes, {"voxel": (1, 2)}, "does not lie in the image"),
        (Planes, {"voxel": (1, 2, 9)}, "does not lie in the image"),
    ],
)
def test_fields_that_do_not_fit_the_image(renderer, options, message):
    with pytest.raises(ValueError, match=message):
        renderer(**options)(attribution(np.ones((1, 4, 5, 6))))


def test_a_flat_image_has_no_frame_axis():
    with pytest.raises(ValueError, match="2-D image"):
        Blend(frame_axis=0)(attribution(np.ones((1, 4, 5))))
