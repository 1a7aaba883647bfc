"""The demo's network, on the volume and the seeds that its training did not see."""

import pytest
import torch
from safetensors import safe_open

import medviz
from medviz.demo.measure import measure
from medviz.demo.network import CLASSES, WEIGHTS, LesionNet, Standardise, load_network
from medviz.demo.run import EXPLAINERS, SEED
from medviz.demo.scan import load_scan, plant

pytestmark = pytest.mark.realdata

HELD_OUT = range(2_000_000, 2_000_020)  # training takes its seeds from below 1,000,000
HALF_CELL_MM = 4.0  # half the longest edge of a cell of the last feature maps: 4 voxels of 2 mm
LESION = CLASSES.index("lesion")


@pytest.fixture(scope="module")
def network():
    return load_network()


@pytest.fixture(scope="module")
def scan():
    return load_scan(0)


@pytest.fixture(scope="module")
def plants(scan):
    return [plant(scan, seed) for seed in HELD_OUT]


@pytest.fixture(scope="module")
def maps(network, plants):
    return [medviz.explain(network, image, EXPLAINERS, LESION) for image, _ in plants]


def test_the_weights_are_small_and_no_pickle():
    assert WEIGHTS.stat().st_size <= 1_000_000
    with safe_open(WEIGHTS, framework="pt") as file:
        assert set(file.keys()) == set(LesionNet().state_dict())


def test_it_comes_ready_to_use(network):
    assert not network.training
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_it_finds_nothing_in_the_scan_as_it_is(network, scan):
    with torch.no_grad():
        assert CLASSES[int(network(scan.data[None]).argmax())] == "no lesion"


def test_it_finds_the_demos_lesion(network, scan):
    with torch.no_grad():
        assert CLASSES[int(network(plant(scan, SEED)[0].data[None]).argmax())] == "lesion"


def test_it_finds_unseen_lesions(network, plants):
    with torch.no_grad():
        answers = torch.cat([network(image.data[None]).argmax(1) for image, _ in plants])
    assert (answers == LESION).float().mean() >= 0.95


@pytest.mark.parametrize("i", range(len(EXPLAINERS)), ids=[name.rpartition("/")[2] for name in EXPLAINERS])
def test_maps_point_at_the_lesion(maps, plants, i):
    found = [measure(one[i], lesion) for one, (_, lesion) in zip(maps, plants, strict=True)]
    limits = [lesion.radius_mm + HALF_CELL_MM for _, lesion in plants]
    hits = sum(f.distance_mm <= limit for f, limit in zip(found, limits, strict=True))
    assert hits >= 0.9 * len(plants), [round(f.distance_mm, 1) for f in found]
    assert min(f.gain for f in found) >= 3


def test_the_automatic_layer_is_the_last_of_the_feature_maps(maps):
    for attribution in maps[0]:
        assert attribution.provenance["layers"] == ["layer4"]
        assert attribution.raw.shape == (1, 1, 32, 24, 12)


def test_cam_applies_and_says_the_same_as_gradcam(network, plants):
    image, lesion = plants[0]
    cam, gradcam = medviz.explain(network, image, ["medviz-xai/cam", EXPLAINERS[0]], LESION)
    assert measure(gradcam, lesion).distance_mm < lesion.radius_mm + HALF_CELL_MM
    assert torch.corrcoef(torch.stack([cam.values.flatten(), gradcam.values.flatten()]))[0, 1] > 0.99


def test_the_scanners_units_do_not_matter(network, plants):
    data = plants[0][0].data[None]
    with torch.no_grad():
        torch.testing.assert_close(network(data / 300), network(data), rtol=1e-3, atol=1e-3)


def test_standardise_by_hand():
    images = torch.tensor([[0.0, 2, 4], [0, 0, 5], [0, 0, 0], [-3, 3, 3]])[:, None]
    expected = torch.tensor([[0, 2 / 3, 4 / 3], [0, 0, 1], [0, 0, 0], [-1, 1, 1]])[:, None]
    torch.testing.assert_close(Standardise()(images), expected)


def test_batch_and_singles_agree(network, plants):
    batch = torch.stack([image.data for image, _ in plants[:3]])
    with torch.no_grad():
        singles = torch.cat([network(row[None]) for row in batch])
        torch.testing.assert_close(network(batch), singles, rtol=1e-4, atol=1e-4)
