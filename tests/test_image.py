"""What counts as an image, and as its place in the world."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medviz.image import Image, as_affine, as_batch, like, spacing_of

AFFINE = np.array([[0.0, -2, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])


def test_an_image_is_float32_and_keeps_its_axes():
    image = Image(np.arange(24).reshape(1, 2, 3, 4), AFFINE, "scan.nii")
    assert image.data.dtype == torch.float32
    assert image.data[0, 1, 2, 3] == 23
    assert image.path == Path("scan.nii")
    assert image.spacing == (3, 2, 4)


def test_the_spacing_of_a_flat_image_has_two_numbers():
    assert Image(torch.zeros(1, 3, 4), AFFINE).spacing == (3, 2)
    assert Image(torch.zeros(1, 3, 4)).spacing is None
    assert spacing_of(AFFINE, 3) == (3, 2, 4)


@pytest.mark.parametrize("shape", [(3, 4), (1, 2, 3, 4, 5), (1, 0, 4), ()])
def test_data_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"`data` has shape .*expected \(C, H, W\)"):
        Image(torch.zeros(shape))


@pytest.mark.parametrize(
    "affine",
    [
        np.eye(3),
        np.zeros((4, 4)),
        np.diag([1, 0, 1, 1.0]),
        np.diag([1, np.nan, 1, 1]),
        np.diag([1, np.inf, 1, 1]),
        np.diag([1, 1, 1, 2.0]),
        AFFINE.T,
        np.eye(4)[None],
        5,
    ],
)
def test_what_is_no_affine(affine):
    with pytest.raises(ValueError, match="`affine` must be finite"):
        as_affine(affine)


def test_an_affine_may_be_a_tensor_or_a_list():
    for affine in (torch.from_numpy(AFFINE), AFFINE.tolist()):
        assert np.array_equal(as_affine(affine), AFFINE)
    assert as_affine(None) is None


def test_gradients_stay_outside():
    data = torch.zeros(1, 2, 2, requires_grad=True)
    assert not Image(data).data.requires_grad
    assert not as_batch(data[None])[0].requires_grad


# batches


def test_a_tensor_is_its_own_batch():
    x = torch.rand(2, 1, 3, 4)
    batch, affine = as_batch(x)
    assert torch.equal(batch, x)
    assert affine is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_batch_keeps_its_precision(dtype):
    assert as_batch(torch.zeros(1, 1, 2, 2, dtype=dtype))[0].dtype == dtype


def test_arrays_and_parameters_become_plain_tensors():
    assert type(as_batch(np.zeros((1, 1, 2, 2)))[0]) is torch.Tensor
    assert type(as_batch(torch.nn.Parameter(torch.zeros(1, 1, 2, 2)))[0]) is torch.Tensor


def test_one_affine_serves_all():
    _, affine = as_batch(torch.zeros(2, 1, 3, 4, 5), AFFINE)
    assert np.array_equal(affine, np.stack([AFFINE, AFFINE]))
    _, affine = as_batch(torch.zeros(2, 1, 3, 4, 5), np.stack([AFFINE, np.eye(4)]))
    assert np.array_equal(affine[1], np.eye(4))


@pytest.mark.parametrize("affine", [np.eye(3), np.stack([AFFINE] * 3), np.ones(4)])
def test_an_affine_of_another_shape_is_refused(affine):
    with pytest.raises(ValueError, match="`affine` must be finite"):
        as_batch(torch.zeros(2, 1, 3, 4, 5), affine)


def test_images_become_a_batch_with_their_affines():
    images = [Image(torch.full((1, 2, 3), i), AFFINE) for i in (1, 2)]
    batch, affine = as_batch(images)
    assert batch[:, 0, 0, 0].tolist() == [1, 2]
    assert affine.shape == (2, 4, 4)
    assert as_batch(images[0])[0].shape == (1, 1, 2, 3)
    assert np.array_equal(as_batch(images[0], np.eye(4))[1][0], np.eye(4))


def test_images_of_several_shapes_are_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        as_batch([Image(torch.zeros(1, 2, 3)), Image(torch.zeros(1, 3, 3))])


def test_an_affine_is_not_lost_beside_an_image_without_one():
    images = [Image(torch.zeros(1, 2, 3), AFFINE), Image(torch.zeros(1, 2, 3))]
    with pytest.raises(ValueError, match="1 of 2 images have no affine"):
        as_batch(images)
    assert as_batch(images, AFFINE)[1].shape == (2, 4, 4)


def test_arrays_that_torch_cannot_wrap_are_copied():
    array = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    frozen = array.copy()
    frozen.flags.writeable = False
    for given in (np.flip(np.flip(array).copy()), array.astype(">f4"), frozen):
        assert np.array_equal(as_batch(given)[0].numpy(), array)
        assert np.array_equal(Image(given[0]).data.numpy(), array[0])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), TypeError, r"image\.float\(\)"),
        (torch.zeros(1, 2, 2), ValueError, r"image\[None\]"),
        (torch.zeros(0, 1, 2, 2), ValueError, "empty"),
        (torch.full((1, 1, 2, 2), torch.nan), ValueError, "4 values of 4 that are NaN or infinite"),
        ("scan.nii", TypeError, "`image` is a str"),
        ([torch.zeros(1, 2, 2)], TypeError, "`image` is a list"),
        ([], TypeError, "`image` is a list"),
        (None, TypeError, "`image` is a NoneType"),
    ],
)
def test_what_is_no_batch(image, error, message):
    with pytest.raises(error, match=message):
        as_batch(image)


# MetaTensor


@pytest.fixture
def meta():
    return pytest.importorskip("monai.data").MetaTensor


def test_a_metatensor_brings_its_affine_and_leaves_as_a_plain_tensor(meta):
    batch, affine = as_batch(meta(torch.rand(2, 1, 3, 4, 5), affine=torch.from_numpy(AFFINE)))
    assert type(batch) is torch.Tensor
    assert np.array_equal(affine, np.stack([AFFINE, AFFINE]))
    assert type(Image(meta(torch.rand(1, 3, 4))).data) is torch.Tensor


@pytest.mark.parametrize("first", [(), (1, 2), (1, 2, 3)])
def test_a_part_of_a_metatensor_lies_where_it_was(meta, first):
    image = meta(torch.rand(1, 1, 4, 5, 6)[..., 0] if len(first) == 2 else torch.rand(1, 1, 4, 5, 6), affine=AFFINE)
    part = like(torch.zeros(1, 1, 2, 2), image, first)
    at = np.array([*first, 0, 0, 0])[:3]
    np.testing.assert_allclose(np.asarray(part.affine) @ [0, 0, 0, 1], AFFINE @ [*at, 1])
    np.testing.assert_allclose(np.asarray(part.affine)[:3, :3], AFFINE[:3, :3])
    np.testing.assert_allclose(np.asarray(image.affine), AFFINE)


def test_the_stand_in_that_monai_gives_is_no_place_in_the_world(meta):
    assert as_batch(meta(torch.rand(1, 1, 3, 4)))[1] is None
    from_file = meta(torch.rand(1, 1, 3, 4), meta={"original_affine": torch.eye(4), "affine": torch.eye(4)})
    assert np.array_equal(as_batch(from_file)[1], np.eye(4)[None])


def from_file(meta, diagonal, **more):
    """A scan `(1, 3, 4, 5)` as MONAI's readers of medical formats return it."""
    known = {"original_affine": np.diag(diagonal), "affine": np.diag(diagonal), "qform_code": 0, "sform_code": 1}
    return meta(torch.rand(1, 3, 4, 5), meta={**known, **more})


RAS, LPI = [1.0, 1, 1, 1], [-1.0, -1, 1, 1]


@pytest.mark.parametrize(
    "made",
    [
        torch.stack,
        lambda scans: torch.cat([scan[None] for scan in scans]),
        lambda scans: scans[0].permute(3, 0, 1, 2),
        lambda scans: collate(scans).chunk(2)[0],
    ],
    ids=["stack", "cat", "slices", "part"],
)
def test_several_images_do_not_share_the_affine_of_one_file(meta, made, caplog):
    batch = made([from_file(meta, RAS), from_file(meta, LPI)])
    with caplog.at_level(logging.WARNING):
        assert as_batch(batch)[1] is None
    assert "no affine; give `affine`" in caplog.text
    affines = as_batch(batch, AFFINE)[1]
    assert all(np.array_equal(affine, AFFINE) for affine in affines)


def collate(scans):
    return pytest.importorskip("monai.data").list_data_collate(scans)


def test_a_collated_batch_has_an_affine_for_each_image(meta):
    batch = collate([from_file(meta, RAS), from_file(meta, LPI, space="left-posterior-superior")])
    assert as_batch(batch)[1][:, 0, 0].tolist() == [1, 1]
    by_hand = collate([meta(torch.rand(1, 3, 4, 5), affine=torch.from_numpy(AFFINE)) for _ in range(2)])
    assert np.array_equal(as_batch(by_hand)[1], np.stack([AFFINE, AFFINE]))
    with pytest.raises(ValueError, match="1 of 2 images have no affine"):
        as_batch(collate([from_file(meta, RAS), from_file(meta, LPI, sform_code=0)]))


def test_an_affine_that_grew_from_a_stand_in_is_none_either(meta, caplog):
    transforms = pytest.importorskip("monai.transforms")
    resized = transforms.Resize((2, 8, 10))(meta(torch.rand(1, 3, 4, 5)))
    with caplog.at_level(logging.WARNING):
        assert as_batch(resized[None])[1] is None
    assert "give `affine`" in caplog.text


def test_a_batch_that_grew_from_stand_ins_has_no_affine_either(meta):
    resampled = pytest.importorskip("monai.transforms").Spacing((2.0, 1.0, 1.0))
    known = meta(torch.rand(1, 3, 4, 5), affine=torch.from_numpy(AFFINE))
    assert as_batch(collate([resampled(meta(torch.rand(1, 3, 4, 5))) for _ in range(2)]))[1] is None
    assert as_batch(collate([resampled(known) for _ in range(2)]))[1].shape == (2, 4, 4)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("first", ["Orientation", "Spacing"])
def test_what_monai_notes_before_a_transform_is_believed(meta, first, known):
    transforms = pytest.importorskip("monai.transforms")
    scan = meta(torch.rand(1, 3, 4, 5), **({"affine": torch.from_numpy(AFFINE)} if known else {}))
    order = [transforms.Orientation("LPS", labels=None), transforms.Spacing((1.0, 1.0, 1.0))]
    turned = transforms.Compose(order if first == "Orientation" else order[::-1])(scan)
    affine = as_batch(turned[None])[1]
    assert (affine is None) is not known
    assert not known or np.allclose(affine[0], turned.affine)


def test_what_nibabel_makes_up_is_no_place_in_the_world(meta):
    assert np.array_equal(as_batch(from_file(meta, LPI)[None])[1][0], np.diag(LPI))
    assert as_batch(from_file(meta, LPI, sform_code=0)[None])[1] is None


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("LPS", (-1, -1)),
        ("left-posterior-superior", (-1, -1)),
        ("right-anterior-superior", (1, 1)),
        ("LAS", (-1, 1)),
        ("RPS", (1, -1)),
    ],
)
def test_another_space_is_turned_into_ras(meta, space, signs):
    affine = as_batch(from_file(meta, RAS, space=space)[None])[1][0]
    assert np.array_equal(affine, np.diag([*signs, 1, 1]))


def test_the_world_is_turned_and_not_the_voxels(meta):
    scan = meta(torch.rand(1, 3, 4, 5), meta={"original_affine": AFFINE, "affine": AFFINE, "space": "LPS"})
    voxel = np.array([1, 2, 3, 1])
    assert (as_batch(scan[None])[1][0] @ voxel).tolist() == [-1, -9, 19, 1]  # in LPS it lies at 1, 9, 19


def test_a_space_that_nobody_knows_is_no_place_in_the_world(meta, caplog):
    with caplog.at_level(logging.WARNING):
        assert as_batch(from_file(meta, RAS, space="scanner-xyz")[None])[1] is None
    assert "space 'scanner-xyz' is not known" in caplog.text


def test_the_users_affine_goes_before_that_of_the_metatensor(meta):
    x = meta(torch.rand(1, 1, 3, 4), affine=torch.from_numpy(AFFINE))
    assert np.array_equal(as_batch(x, np.diag([2, 2, 2, 1]))[1][0], np.diag([2, 2, 2, 1]))


@pytest.mark.parametrize(
    "change", [lambda scan: scan[:, 1:], lambda scan: F.interpolate(scan[None], (6, 8, 10))[0], lambda scan: scan.mT]
)
def test_another_size_does_not_keep_the_affine_of_its_file(meta, change, caplog):
    """Unless one of MONAI's transforms has made it, which notes that, or gives another affine."""
    scan = from_file(meta, LPI, spatial_shape=np.array([3, 4, 5]))
    assert as_batch(scan[None])[1] is not None
    with caplog.at_level(logging.WARNING):
        assert as_batch(change(scan)[None])[1] is None
    assert "voxels and was read with (3, 4, 5), and notes no transform of MONAI's: no affine" in caplog.text
    noted, moved = change(scan), change(scan)
    noted.applied_operations = [{"class": "SpatialCrop"}]
    moved.affine = torch.diag(torch.tensor([-2.0, -1, 1, 1], dtype=torch.float64))
    assert all(as_batch(image[None])[1] is not None for image in (noted, moved))


def test_a_batch_of_another_size_does_not_keep_the_affines_of_its_files(meta, caplog):
    """Collated: of what nothing was noted, MONAI says "none"."""
    for count in (1, 2):
        batch = collate([from_file(meta, LPI, spatial_shape=np.array([3, 4, 5])) for _ in range(count)])
        assert as_batch(batch)[1].shape == (count, 4, 4)
        with caplog.at_level(logging.WARNING):
            assert as_batch(batch[:, :, 1:])[1] is None
        assert "notes no transform of MONAI's" in caplog.text


@pytest.mark.parametrize("cut", [lambda scan: scan[:, 1], lambda scan: scan[..., 2], lambda scan: scan[:, :, 3]])
def test_a_slice_does_not_keep_the_affine_of_its_volume(meta, cut, caplog):
    scan = from_file(meta, LPI, spatial_shape=np.array([3, 4, 5]))
    with caplog.at_level(logging.WARNING):
        assert as_batch(cut(scan)[None])[1] is None
        assert Image(cut(scan)).affine is None
    assert caplog.text.count("looks like a slice of a volume") == 2
    assert np.array_equal(as_batch(cut(scan)[None], AFFINE)[1][0], AFFINE)


def test_slices_of_a_batch_do_not_keep_the_affine_of_its_volumes(meta, caplog):
    batch = meta(torch.rand(2, 1, 3, 4, 5), affine=torch.from_numpy(AFFINE), meta={"spatial_shape": [3, 4, 5]})
    assert as_batch(batch)[1].shape == (2, 4, 4)
    with caplog.at_level(logging.WARNING):
        assert as_batch(batch[..., 2])[1] is None
    assert "looks like a slice of a volume" in caplog.text


def test_a_slice_of_a_volume_beside_a_scan_of_one_slice_has_no_affine(
    meta: Any, caplog: pytest.LogCaptureFixture
) -> None:
    batch = collate([from_file(meta, LPI, spatial_shape=np.array([3, 4, depth]))[..., 0] for depth in (5, 1)])
    with caplog.at_level(logging.WARNING):
        assert as_batch(batch)[1] is None
    assert "looks like a slice of a volume" in caplog.text


def test_an_image_that_was_one_slice_in_its_file_keeps_its_affine(meta):
    known = {"original_affine": np.diag(LPI), "affine": np.diag(LPI), "qform_code": 0, "sform_code": 1}
    for sizes in ([3, 4, 1], [3, 4]):
        flat = meta(torch.rand(1, 3, 4), meta={**known, "spatial_shape": np.array(sizes)})
        assert np.array_equal(as_batch(flat[None])[1][0], np.diag(LPI))
        assert np.array_equal(Image(flat).affine, np.diag(LPI))


def test_an_affine_of_two_axes_says_no_place(meta, caplog):
    transforms = pytest.importorskip("monai.transforms")
    scan = from_file(meta, LPI, spatial_shape=np.array([3, 4, 5]))
    flat = transforms.SqueezeDim(-1)(scan[..., 2:3])
    with caplog.at_level(logging.WARNING):
        assert as_batch(flat[None])[1] is None
    assert "no affine; give `affine`" in caplog.text


def test_an_affine_of_two_axes_says_no_place_of_a_scan_of_one_slice_either(meta, caplog):
    transforms = pytest.importorskip("monai.transforms")
    flat = transforms.SqueezeDim(-1)(from_file(meta, LPI, spatial_shape=np.array([3, 4, 1]))[..., :1])
    with caplog.at_level(logging.WARNING):
        assert as_batch(flat[None])[1] is None
    assert "the MetaTensor's affine is (3, 3) and not (4, 4): no affine" in caplog.text


def test_an_image_takes_the_affine_of_a_metatensor(meta):
    scan = from_file(meta, LPI)
    assert np.array_equal(Image(scan).affine, np.diag(LPI))
    assert np.array_equal(Image(scan, AFFINE, "a.nii").affine, AFFINE)
    assert Image(meta(torch.rand(1, 3, 4))).affine is None
    assert Image(scan.as_tensor()).affine is None


def test_an_image_is_shown_in_one_line() -> None:
    assert repr(Image(torch.zeros(1, 3, 4))) == "<Image: (1, 3, 4)>"
    assert repr(Image(torch.zeros(1, 2, 3, 4), np.eye(4), "a.nii")) == "<Image: a.nii (1, 2, 3, 4), affine>"
