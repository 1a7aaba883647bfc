"""The demo's scan and the lesion planted in it: the place is known exactly, and it is inside the brain."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medviz.attribution import Attribution
from medviz.demo import scan as demo_scan
from medviz.demo.measure import localise, measure
from medviz.demo.scan import RADII_MM, Lesion, brain, distances_mm, load_scan, plant, scan_path
from medviz.image import Image

pytestmark = pytest.mark.realdata

SEEDS = range(12)


@pytest.fixture(scope="module")
def scan():
    return load_scan(0)


@pytest.fixture(scope="module")
def plants(scan):
    return [plant(scan, seed) for seed in SEEDS]


def test_the_scan_is_the_one_that_nibabel_ships(scan):
    file = nibabel.load(scan_path())
    assert scan.data.shape == (1, 128, 96, 24)
    np.testing.assert_array_equal(scan.data[0].numpy(), np.asarray(file.dataobj)[..., 0])
    np.testing.assert_allclose(scan.affine, file.affine)
    assert scan.spacing == pytest.approx((2.0, 2.0, 2.2), abs=1e-5)


def test_the_two_volumes_differ(scan):
    other = load_scan(1)
    assert other.data.shape == scan.data.shape
    assert not torch.equal(other.data, scan.data)


def test_there_is_no_third_volume():
    with pytest.raises(ValueError, match="`volume` is 0 or 1; got 2"):
        load_scan(2)


def test_another_file_in_its_place_is_refused(monkeypatch, tmp_path):
    (tmp_path / "tests/data").mkdir(parents=True)
    (tmp_path / "tests/data/example4d.nii.gz").write_bytes(b"something else")
    monkeypatch.setattr(nibabel, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ValueError, match=r"has SHA-256 .*; expected 42097dfb.*reinstall"):
        load_scan()


def test_a_nibabel_without_its_data_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(nibabel, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(
        FileNotFoundError, match=r"nibabel .* has no file 'nibabel/tests/data/example4d.nii.gz'; reinst"
    ):
        scan_path()


def test_the_brain_is_a_third_of_the_image_and_not_its_rim(scan):
    within = brain(scan)
    assert 0.3 < within.float().mean() < 0.4
    assert not within[:25].any()
    assert not within[103:].any()
    assert (scan.data[0][within] > 0).float().mean() > 0.99


def test_lesions_lie_inside_the_brain(scan, plants):
    within = brain(scan)
    for _, lesion in plants:
        assert within[lesion.mask].all()
        assert within[lesion.center]
        assert not lesion.mask[:, :, [0, -1]].any()


def test_the_volume_is_that_of_a_ball_of_the_radius(scan, plants):
    voxel = abs(np.linalg.det(scan.affine[:3, :3]))
    for _, lesion in plants:
        assert RADII_MM[0] <= lesion.radius_mm <= RADII_MM[1]
        volume = float(lesion.mask.sum()) * voxel
        assert volume == pytest.approx(4 / 3 * np.pi * lesion.radius_mm**3, abs=1.01 * voxel)


def test_voxels_and_millimetres_name_one_place(scan, plants):
    for _, lesion in plants:
        voxel = np.linalg.inv(scan.affine) @ [*lesion.center_mm, 1]
        np.testing.assert_allclose(voxel[:3], lesion.center, atol=1e-4)
        places = lesion.mask.nonzero().double().numpy()
        weights = scan.affine[:3, :3] @ (places.mean(0) - lesion.center)
        assert np.linalg.norm(weights) < 2.0  # the centre of mass, in mm
        farthest = distances_mm(scan.affine, lesion.mask.shape, lesion.center)[lesion.mask].max()
        assert lesion.radius_mm - 1 < farthest < 1.2 * lesion.radius_mm + 4


def test_distances_follow_the_affine():
    affine = np.array([[0, -2.0, 0, 5], [3, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])
    distances = distances_mm(affine, (3, 4, 5), (1, 1, 1))
    assert distances.shape == (3, 4, 5)
    assert distances[1, 1, 1] == 0
    assert distances[2, 1, 1] == 3
    assert distances[1, 3, 1] == 4
    assert distances[2, 3, 1] == 5


def test_only_the_lesion_changes(scan, plants):
    for image, lesion in plants:
        change = (image.data - scan.data)[0]
        far = distances_mm(scan.affine, change.shape, lesion.center) > 2.5 * lesion.radius_mm
        assert change[far].abs().max() < 1
        inside = change[lesion.mask].mean()
        assert inside.sign() == np.sign(lesion.contrast)
        assert inside.abs() > 50  # ordinary tissue has about 470


def test_no_lesion_is_a_bright_ball_that_a_threshold_would_find(scan, plants):
    for image, lesion in plants:
        assert image.data.max() < 1.15 * scan.data.max()
        assert image.data[0][lesion.mask].std() > 20


def test_bright_and_dark_ones_occur(plants):
    signs = {np.sign(lesion.contrast) for _, lesion in plants}
    assert signs == {-1, 1}


def test_one_seed_gives_one_lesion_and_others_give_others(scan, plants):
    again, lesion = plant(scan, 0)
    assert torch.equal(again.data, plants[0][0].data)
    assert lesion.center == plants[0][1].center
    assert len({lesion.center for _, lesion in plants}) == len(plants)


def test_planting_leaves_the_scan_and_the_random_state_alone(scan):
    before, state = scan.data.clone(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    plant(scan, 3)
    assert torch.equal(scan.data, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_no_room_is_an_error(scan):
    with pytest.raises(ValueError, match=r"no room for a lesion of radius 60\.0 mm"):
        plant(scan, 0, (60, 60))


@pytest.mark.parametrize("data", [torch.rand(2, 8, 8, 8), torch.rand(1, 8, 8)])
def test_other_images_are_refused(data):
    with pytest.raises(ValueError, match=r"expected one channel \(1, D, H, W\) and an affine"):
        plant(Image(data, np.eye(4)), 0)


def test_an_image_without_an_affine_is_refused():
    with pytest.raises(ValueError, match="and an affine"):
        plant(Image(torch.rand(1, 8, 8, 8)), 0)


def cube() -> Lesion:
    coverage = torch.zeros(10, 10, 10)
    coverage[4:6, 4:6, 4:6] = 1
    return Lesion((4, 4, 4), (8.0, 4.0, 4.0), 2.0, 0.5, coverage)


def test_localisation_by_hand():
    values = torch.zeros(10, 10, 10)
    values[4, 4, 4], values[7, 4, 4] = 1, 3
    found = localise(values, np.diag([2.0, 1, 1, 1]), cube())
    assert found.distance_mm == 6
    assert found.inside == 0.25
    assert found.volume_share == 8 / 1000
    assert found.gain == pytest.approx(0.25 * 125)


def test_a_map_that_points_nowhere_gains_nothing():
    found = localise(torch.ones(10, 10, 10), np.eye(4), cube())
    assert found.gain == pytest.approx(1)


def test_a_map_of_zeros_is_infinitely_far():
    found = localise(torch.zeros(10, 10, 10), np.eye(4), cube())
    assert (found.distance_mm, found.inside, found.gain) == (float("inf"), 0, 0)


@pytest.mark.parametrize("values", [torch.ones(10, 10, 9), -torch.ones(10, 10, 10)])
def test_wrong_maps_are_refused(values):
    with pytest.raises(ValueError, match="must be non-negative on the lesion's grid"):
        localise(values, np.eye(4), cube())


def test_measure_needs_one_image_and_its_affine():
    image = torch.rand(2, 1, 10, 10, 10)
    two = Attribution(image, image, affine=np.stack([np.eye(4)] * 2))
    with pytest.raises(ValueError, match=r"expected \(1, 1, \*S\) and an affine"):
        measure(two, cube())
    with pytest.raises(ValueError, match="and an affine"):
        measure(Attribution(image[:1], image[:1]), cube())
    assert measure(two[1], cube()) == localise(image[1, 0], np.eye(4), cube())


def test_the_scan_is_found_through_nibabel_and_not_through_a_path_of_this_machine():
    assert Path(nibabel.__file__).parent in scan_path().parents
    assert not Path(demo_scan.SCAN).is_absolute()
