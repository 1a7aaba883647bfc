"""`run_demo`: one call, one folder, and everything in it can be read back."""

import os
import re
from pathlib import Path

import imageio.v3 as iio
import nibabel
import numpy as np
import pytest
import torch

import medviz
from medviz.demo.measure import measure
from medviz.demo.run import EXPLAINERS, SEED, run_demo
from medviz.demo.scan import load_scan, plant
from medviz.image import spacing_of

pytestmark = pytest.mark.realdata

METHODS = ("gradcam", "gradcampp", "layercam")
PICTURES = {f"{method}-planes.png" for method in METHODS} | {"gradcam-blend.gif", "gradcam-sheet.png"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("demo") / "a {folder}", []
    run_demo(folder, False, "cpu", False, said.append)
    return folder, "\n".join(said)


@pytest.fixture(scope="module")
def planted():
    return plant(load_scan(0), SEED)


def test_it_writes_these_files_and_says_so(demo):
    folder, said = demo
    expected = PICTURES | {f"{method}-map.nii.gz" for method in METHODS}
    expected |= {"scan-planted.nii.gz", "scan-lesion.nii.gz", "scan-lesion.png", "tensorboard"}
    assert {path.name for path in folder.iterdir()} == expected
    assert {line.strip() for line in said.splitlines()} >= {str(folder / name) for name in expected}


def test_it_gives_both_answers(demo):
    _, said = demo
    assert re.search(r"without the lesion +no lesion \(probability (0\.9\d\d|1\.000)\)", said)
    assert re.search(r"with the lesion +lesion \(probability (0\.9\d\d|1\.000)\)", said)


def test_its_table_holds_what_the_written_maps_say(demo, planted):
    folder, said = demo
    image, lesion = planted
    for method in METHODS:
        values = torch.from_numpy(np.asarray(nibabel.load(folder / f"{method}-map.nii.gz").dataobj))
        found = measure(medviz.Attribution(values[None, None], image.data[None], affine=image.affine[None]), lesion)
        row = re.search(rf"^{method} +([\d.]+) mm +(\d+)% +(\d+)$", said, re.MULTILINE)
        assert row, said
        assert float(row[1]) == pytest.approx(found.distance_mm, abs=0.06)
        assert float(row[2]) == pytest.approx(100 * found.inside, abs=0.6)
        assert float(row[3]) == pytest.approx(found.gain, abs=0.6)
        assert found.distance_mm < lesion.radius_mm


def test_scan_lesion_and_maps_share_one_space(demo, planted):
    folder, _ = demo
    image, lesion = planted
    files = [nibabel.load(path) for path in sorted(folder.glob("*.nii.gz"))]
    assert len(files) == 5
    for file in files:
        assert file.shape == (128, 96, 24)
        np.testing.assert_allclose(file.affine, image.affine, atol=1e-4)
    read = medviz.read(folder / "scan-planted.nii.gz")
    assert torch.equal(read.data, image.data)
    mask = medviz.read(folder / "scan-lesion.nii.gz")
    assert torch.equal(mask.data[0] > 0, lesion.mask)
    assert read.spacing == pytest.approx(spacing_of(image.affine, 3))


def test_pictures_are_pictures(demo):
    folder, _ = demo
    for path in [*folder.glob("*.png"), *folder.glob("*.gif")]:
        frames = iio.imread(path, index=None if path.suffix == ".gif" else 0)
        assert len(frames) == 24 or path.suffix == ".png"
        assert min(frames.shape[-3:-1]) > 150
        assert frames.std() > 10


def test_the_log_holds_every_picture(demo):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = demo
    log = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert set(log.Tags()["images"]) == {name.partition(".")[0].replace("-", "/") for name in PICTURES}


def test_nothing_is_replaced_unless_it_may_be(demo):
    folder, _ = demo
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(FileExistsError, match="exists already; choose another folder, or overwrite=True"):
        run_demo(folder, False, "cpu", False, lambda _: pytest.fail("the demo began"))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_old_log_alone_is_refused_too(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.x.medviz-demo").touch()
    with pytest.raises(FileExistsError, match="tfevents"):
        run_demo(tmp_path, False, "cpu", False, str)


def test_overwriting_replaces_its_own_files_only(demo):
    folder, said = demo
    mine = folder / "tensorboard" / "notes.txt"
    mine.write_text("keep me")
    (folder / "gradcam-planes.png").write_bytes(b"old")
    again, threads = [], torch.get_num_threads()
    run_demo(folder, True, "cpu", False, again.append)
    assert torch.get_num_threads() == threads
    mine.unlink()
    assert "\n".join(again) == said
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert iio.imread(folder / "gradcam-planes.png").ndim == 3


def test_a_folder_without_permission_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda folder, mode: Path(folder) != tmp_path)
    said = []
    with pytest.raises(PermissionError, match="no permission to write to"):
        run_demo(tmp_path / "demo", True, "cpu", False, said.append)
    assert not said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", ["", "tensorboard"])
def test_a_file_in_the_folders_place_is_refused(tmp_path, inside):
    folder = tmp_path / "demo"
    (folder / inside).parent.mkdir(exist_ok=True)
    (folder / inside).write_text("a file")
    with pytest.raises(NotADirectoryError, match="is a file; a folder is needed there"):
        run_demo(folder, True, "cpu", False, str)


@pytest.mark.parametrize("device", ["gpu", "cuda:97"])
def test_a_device_that_is_not_there_is_refused(tmp_path, device):
    with pytest.raises(ValueError, match=f"`device` '{device}'"):
        run_demo(tmp_path, False, device, False, str)
    assert not list(tmp_path.iterdir())


def test_its_explainers_cannot_be_swapped_by_accident():
    assert all(name.startswith("medviz-xai/") for name in EXPLAINERS)
