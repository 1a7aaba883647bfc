"""`blend_images`: closed forms, the defects it must not have, wrong input, and parity where the peer is right."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medviz.renderers import blending
from medviz.renderers.blending import blend_images
from medviz.renderers.colour import colour_labels, colour_table

GREY = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 3, 4)


def rgb(image, *at):
    return tuple(np.asarray(image)[(slice(None), *at)].round(6).tolist())


def test_one_voxel_by_hand():
    image = np.array([[[0.0, 1.0]]])
    heat = np.array([[[0.0, 2.0]]])
    blended = blend_images(image, heat, alpha=0.25, cmap="gray")
    assert rgb(blended, 0, 0) == (0, 0, 0)
    assert rgb(blended, 0, 1) == (1, 1, 1)
    blended = blend_images(image[..., ::-1], heat, alpha=0.25, cmap="hsv")
    red = colour_table("hsv")[255].numpy()
    np.testing.assert_allclose(blended[:, 0, 1], 0.25 * red, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_kind_shape_dtype_and_range(shape, channels, kind):
    rng = np.random.default_rng(0)
    image, label = kind(rng.normal(size=(channels, *shape))), kind(rng.random((1, *shape)))
    blended = blend_images(image, label)
    assert type(blended) is type(image)
    assert tuple(blended.shape) == (3, *shape)
    assert str(blended.dtype).endswith("float32")
    assert 0 <= float(blended.min()) <= float(blended.max()) <= 1


def test_all_ones_label_is_visible_everywhere():
    for label in (np.ones((1, 3, 4)), np.ones((1, 3, 4), int), np.ones((1, 3, 4), bool)):
        blended = blend_images(GREY, label, alpha=1.0)
        np.testing.assert_allclose(blended, np.broadcast_to(colour_table("hsv")[255].numpy()[:, None, None], (3, 3, 4)))


def test_smallest_label_stays_visible_without_background():
    heat = np.array([[[1.0, 2.0]]])
    blended = blend_images(np.array([[[0.0, 1.0]]]), heat, alpha=1.0, cmap="viridis")
    np.testing.assert_allclose(blended[:, 0, 0], colour_table("viridis")[128].numpy(), atol=1e-6)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("cmap", ["hsv", "twilight", "tab10", "inferno", "prism"])
def test_label_colours_do_not_depend_on_other_labels(cmap, rescale):
    alone = blend_images(GREY, np.full((1, 3, 4), 2), 1.0, cmap, rescale)
    among = blend_images(GREY, np.arange(12).reshape(1, 3, 4), 1.0, cmap, rescale)
    assert rgb(alone, 0, 0) == rgb(among, 0, 2)
    assert rgb(among, 0, 0) == rgb(np.repeat(GREY, 3, 0), 0, 0)


@pytest.mark.parametrize(
    ("cmap", "count"), [("hsv", 600), ("twilight", 600), ("tab10", 600), ("inferno", 600), ("gray", 256), ("prism", 30)]
)
def test_no_two_labels_share_a_colour(cmap, count):
    labels = torch.arange(1, count + 1)
    colours = colour_labels(labels, colour_table(cmap)).T
    assert len(torch.unique(colours, dim=0)) == len(labels)
    assert colours.min() >= 0
    assert colours.max() <= 1


def test_labels_below_zero_have_colours_of_their_own():
    colours = colour_labels(torch.arange(-20, 21), colour_table("tab10")).T
    assert len(torch.unique(colours, dim=0)) == 41


def test_labels_halve_a_gradient_and_take_a_list_in_its_own_order():
    gradient = torch.linspace(0, 1, 100)[:, None].expand(100, 3).contiguous()
    assert torch.equal(colour_labels(torch.arange(1, 5), gradient).T, gradient[[99, 49, 74, 24]])
    for name in ("tab10", "tab20"):
        table = colour_table(name)
        assert torch.equal(colour_labels(torch.arange(1, len(table) + 1), table).T, table)


def test_neighbouring_labels_differ_clearly():
    colours = colour_labels(torch.arange(1, 9), colour_table("hsv")).T
    distance = torch.cdist(colours, colours) + 9 * torch.eye(8)
    assert distance.min() > 0.3


def test_background_is_where_the_label_as_given_is_zero():
    label = np.array([[[-1.0, 0.0, 1.0]]])
    image = np.array([[[0.0, 0.5, 1.0]]])
    blended = blend_images(image, label, alpha=1.0, cmap="bwr")
    assert rgb(blended, 0, 0) == (0, 0, 1)
    assert rgb(blended, 0, 1) == (0.5, 0.5, 0.5)
    assert rgb(blended, 0, 2) == (1, 0, 0)
    opaque = blend_images(image, label, alpha=1.0, cmap="bwr", transparent_background=False)
    assert rgb(opaque, 0, 1) == pytest.approx((1, 1, 1), abs=0.01)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("lead", [(), (1,), "C"])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2)])
def test_alpha_of_every_documented_shape_is_used_and_never_changed(channels, lead, shape):
    rng = np.random.default_rng(1)
    lead = (channels,) if lead == "C" else lead
    image, label = rng.random((channels, *shape)), (rng.random((1, *shape)) > 0.5).astype(float)
    for alpha in (np.full((*lead, *shape), 0.5), torch.full((*lead, *shape), 0.5)):
        before = np.copy(alpha) if isinstance(alpha, np.ndarray) else alpha.clone().numpy()
        np.testing.assert_allclose(blend_images(image, label, alpha), blend_images(image, label, 0.5))
        np.testing.assert_array_equal(np.asarray(alpha), before)


def test_inputs_are_never_changed():
    image, label = torch.rand(3, 4, 5, requires_grad=True), torch.randint(0, 3, (1, 4, 5))
    copies = image.detach().clone(), label.clone()
    blended = blend_images(image, label)
    assert torch.equal(image.detach(), copies[0])
    assert torch.equal(label, copies[1])
    assert not blended.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int16, torch.float64])
def test_dtypes_of_images(dtype):
    image = (torch.arange(12).reshape(1, 3, 4) * 10).to(dtype)
    expected = blend_images(image.double(), torch.ones(1, 3, 4))
    torch.testing.assert_close(blend_images(image, torch.ones(1, 3, 4)), expected, atol=4e-3, rtol=0)


def test_big_endian_and_strided_arrays():
    image = GREY.astype(">f4")[:, ::-1]
    np.testing.assert_allclose(
        blend_images(image, image), blend_images(np.ascontiguousarray(image, np.float32), np.array(image, np.float32))
    )


def test_an_array_that_nobody_may_write_to():
    image = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 3, 4)
    expected = blend_images(image, image)
    image.flags.writeable = False
    np.testing.assert_array_equal(blend_images(image, image), expected)


def test_a_colour_map_object_is_as_good_as_its_name():
    import matplotlib

    label = np.ones((1, 3, 4))
    np.testing.assert_array_equal(
        blend_images(GREY, label, cmap=matplotlib.colormaps["jet"]), blend_images(GREY, label, cmap="jet")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((2, 3, 4))}, "C 1 or 3"),
        ({"image": np.zeros((3, 4))}, "expected \\(C, H, W\\)"),
        ({"image": np.zeros((1, 0, 4)), "label": np.zeros((1, 0, 4))}, "expected"),
        ({"image": np.full((1, 3, 4), np.nan)}, "12 values that are NaN"),
        ({"label": np.zeros((2, 3, 4))}, "one channel"),
        ({"label": np.zeros((1, 3, 5))}, "`label` has shape \\(1, 3, 5\\)"),
        ({"label": np.full((1, 3, 4), np.inf)}, "`label` holds 12"),
        ({"alpha": 1.5}, "\\[0, 1\\]; got 1.5"),
        ({"alpha": float("nan")}, "\\[0, 1\\]"),
        ({"alpha": np.full((1, 3, 4), -0.5)}, "\\[0, 1\\]"),
        ({"alpha": np.full((3, 5), 0.5)}, "`alpha` has shape \\(3, 5\\)"),
        ({"cmap": "infern"}, "did you mean 'inferno'"),
        ({"image": GREY * 255, "rescale_arrays": False}, "spans 0 to 255"),
        ({"image": GREY - 1, "rescale_arrays": False}, "spans -1 to 0"),
    ],
)
def test_wrong_values(change, message):
    with pytest.raises(ValueError, match=message):
        blend_images(**{"image": GREY, "label": GREY, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"image": [[1.0]]},
        {"alpha": "half"},
        {"cmap": 3},
        {"label": GREY.astype(complex)},
        {"label": GREY.astype(object)},
    ],
)
def test_wrong_types(change):
    with pytest.raises(TypeError, match="`"):
        blend_images(**{"image": GREY, "label": GREY, **change})


@pytest.mark.parametrize("lead", [1, 3])
def test_a_volume_of_many_parts_is_the_same_as_its_slices(lead):
    rng = np.random.default_rng(3)
    image, alpha = rng.random((lead, 31, 29, 37)), rng.random((lead, 31, 29, 37))
    heat, label = rng.uniform(-4, 4, (1, 31, 29, 37)), rng.integers(-3, 60_000, (1, 31, 29, 37))
    image[:, :, 0, :2], heat[:, :, 0, :2] = [0, 1], [-4, 4]  # every slice has the whole's range
    for layer in (heat, label, label % 7, label % 2 == 0):
        whole = blend_images(image, layer, alpha, "jet")
        for i in (0, 17, 30):
            one = (x[:, i] for x in (image, layer, alpha))
            np.testing.assert_array_equal(whole[:, i], blend_images(*one, "jet"))


@pytest.mark.parametrize("lead", [1, 3])
def test_in_how_many_parts_it_is_made_does_not_matter(monkeypatch, lead):
    rng = np.random.default_rng(3)
    image, alpha = rng.random((lead, 5, 6, 7)), rng.random((lead, 5, 6, 7))
    for layer in (rng.uniform(-4, 4, (1, 5, 6, 7)), rng.integers(-3, 9, (1, 5, 6, 7))):
        monkeypatch.undo()
        whole = blend_images(image, layer, alpha, "jet")
        monkeypatch.setattr(blending, "_AT_ONCE", 16)
        np.testing.assert_array_equal(blend_images(image, layer, alpha, "jet"), whole)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_result_is_contiguous_whatever_the_order_in_memory(order):
    image = np.asarray(np.random.default_rng(0).random((1, 5, 6, 7)), order=order)
    blended = blend_images(image, image)
    assert blended.flags.c_contiguous
    np.testing.assert_array_equal(blended, blend_images(image.copy("C"), image.copy("C")))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64, np.int64])
def test_wide_integers_as_image_and_as_label(dtype):
    numbers = np.arange(12).reshape(1, 3, 4)
    np.testing.assert_array_equal(blend_images(numbers.astype(dtype), GREY), blend_images(numbers, GREY))
    np.testing.assert_array_equal(blend_images(GREY, numbers.astype(dtype)), blend_images(GREY, numbers))


def test_labels_too_large_for_a_float_keep_their_own_colours():
    labels = np.array([[[2**60, 2**60 + 1, 2**60 + 2]]])
    assert len(np.unique(blend_images(GREY[:, :1, :3], labels, 1.0), axis=2).T) == 3


def test_labels_far_apart():
    labels = np.array([[[1, 2**45]]])
    expected = colour_labels(torch.from_numpy(labels[0]), colour_table("hsv"))
    np.testing.assert_array_equal(blend_images(GREY[:, :1, :2], labels, 1.0), expected)


def test_a_range_narrower_than_float32_can_tell():
    image = 1e9 + np.array([[[0, 0.5, 1]]])
    np.testing.assert_allclose(blend_images(image, np.zeros((1, 1, 3)))[0, 0], [0, 0.5, 1])


def test_what_is_not_rescaled_is_cut_off():
    image, heat = np.array([[[-5e-4, 0.5, 1.0005]]]), np.array([[[-2.0, 0, 3]]])
    np.testing.assert_array_equal(blend_images(image, heat, 0.0, rescale_arrays=False)[0, 0], [0, 0.5, 1])
    ends = blend_images(image, heat, 1.0, "jet", rescale_arrays=False)[:, 0, ::2]
    np.testing.assert_array_equal(ends, colour_table("jet")[[0, -1]].T)


def test_a_range_wider_than_float32_can_hold():
    image = np.array([[[-3e38, 0, 3e38]]], np.float32)
    np.testing.assert_allclose(blend_images(image, np.zeros((1, 1, 3)))[0, 0], [0, 0.5, 1])


def test_the_default_dtype_does_not_matter():
    image, labels = torch.rand(3, 4, 5, dtype=torch.float32), torch.randint(0, 5, (1, 4, 5))
    expected = blend_images(image, labels), blend_images(image, labels.float(), 0.3)
    torch.set_default_dtype(torch.float64)
    try:
        actual = blend_images(image, labels), blend_images(image, labels.float(), 0.3)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6), st.sampled_from([1, 3]), st.floats(0, 1, width=32), st.sampled_from(["hsv", "jet", "tab10"])
)
def test_a_blend_lies_between_image_and_colour(seed, channels, alpha, cmap):
    rng = np.random.default_rng(seed)
    image, label = rng.random((channels, 4, 3)), rng.random((1, 4, 3))
    none, some, full = (blend_images(image, label, a, cmap) for a in (0.0, alpha, 1.0))
    np.testing.assert_allclose(some, (1 - alpha) * none + alpha * full, atol=1e-6)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(7, 5), (6, 5, 4)])
@pytest.mark.parametrize("cmap", ["hsv", "jet", "viridis", "tab10", "twilight"])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("transparent", [True, False])
def test_parity_with_monai_where_it_is_right(channels, shape, cmap, rescale, transparent):
    from monai.visualize import blend_images as peer

    rng = np.random.default_rng(len(shape))
    image = rng.random((channels, *shape)).astype(np.float32)
    heat = rng.random((1, *shape)).astype(np.float32) * (3 if rescale else 1)
    heat.flat[:4] = 0
    for make in (np.copy, torch.tensor):
        arguments = (make(image), make(heat), 0.3, cmap, rescale, transparent)
        np.testing.assert_allclose(blend_images(*arguments), peer(*arguments), atol=1e-6)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_parity_with_monai_for_a_binary_integer_label():
    from monai.visualize import blend_images as peer

    label = np.array([[[0, 1, 1, 0]] * 3])
    np.testing.assert_allclose(blend_images(GREY, label), peer(GREY, label), atol=1e-6)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_a_metatensor_keeps_its_affine():
    from monai.data import MetaTensor

    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    blended = blend_images(MetaTensor(torch.rand(3, 4, 5, 6), affine=affine), torch.ones(1, 4, 5, 6))
    assert isinstance(blended, MetaTensor)
    assert blended.shape == (3, 4, 5, 6)
    torch.testing.assert_close(blended.affine, affine)
