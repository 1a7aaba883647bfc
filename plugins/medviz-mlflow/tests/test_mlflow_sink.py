"""What is logged to a real tracking store on disk, in SQLite, comes back as it was."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

import mlflow
from medviz_mlflow import Mlflow
from mlflow import MlflowClient

import medviz
import medviz.testing
from medviz.sinks.file_sink import check_destinations

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty database; to make its tables takes a second."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where a store is made, there its artifacts go
        MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture(autouse=True)
def client(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(store)
    yield MlflowClient()
    mlflow.set_tracking_uri(None)


def attribution(images: int = 1, **changed: Any) -> medviz.Attribution:
    """Return a map of a 3-D image with a peak, and its metadata."""
    values = torch.rand(images, 1, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    known: dict[str, Any] = {
        "target": "class 1",
        "classes": (1,) * images,
        "scores": (2.5,) * images,
        "affine": np.stack([AFFINE] * images),
        "provenance": {
            "method": "gradcam",
            "explainer": "gradcam:layer=deep",
            "parameters": {"layer": "deep"},
            "package": "medviz-xai",
            "package_version": "1.2",
            "layers": ["deep"],
            "seed": None,
            "versions": {"medviz": "1.2", "torch": "2"},
        },
    }
    return medviz.Attribution(**{"values": values, "image": values + 1, **known, **changed})


def split(uri: str) -> tuple[str, str]:
    """Return the run and the folder of what the sink returned."""
    assert uri.startswith("runs:/")
    run, _, folder = uri.removeprefix("runs:/").partition("/")
    return run, folder


def files(client: MlflowClient, uri: str) -> dict[str, Path]:
    run, folder = split(uri)
    return {
        Path(item.path).name: Path(client.download_artifacts(run, item.path))
        for item in client.list_artifacts(run, folder)
    }


@medviz.testing.conformance([Mlflow()])
def test_conformance(check: Any, instance: Mlflow) -> None:
    check(instance)


def test_a_new_run_holds_picture_map_and_metadata(client: MlflowClient) -> None:
    given = attribution()
    uri = medviz.get_sink("mlflow", experiment="lesions")(given, step=3)
    assert split(uri)[1] == "medviz/gradcam-layer=deep/class-1/image-0/step-3"
    found = files(client, uri)
    assert sorted(found) == ["map.npz", "metadata.json", "picture.png"]
    assert torch.equal(medviz.Attribution.load(found["map.npz"]).values, given.values)
    drawn = medviz.get_renderer("medviz-xai/planes")(given)
    assert np.array_equal(np.asarray(Image.open(found["picture.png"])), drawn.frames[0])
    run = client.get_run(split(uri)[0])
    assert client.get_experiment(run.info.experiment_id).name == "lesions"
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"score": 2.5}
    assert run.data.params == {
        "target": "class 1",
        "signed": "false",
        "method": "gradcam",
        "explainer": "gradcam:layer=deep",
        "parameters": '{"layer": "deep"}',
        "package": "medviz-xai",
        "package_version": "1.2",
        "layers": '["deep"]',
        "seed": "null",
        "class": "1",
    }
    assert run.data.tags["medviz.versions.torch"] == "2"
    metadata = json.loads(found["metadata.json"].read_text())
    assert metadata == {**given.provenance, "target": "class 1", "signed": False, "class": 1, "score": 2.5}


def test_a_movie_and_a_map_in_patient_space(client: MlflowClient) -> None:
    import nibabel

    given = attribution()
    found = files(client, medviz.get_sink("mlflow:maps=nifti,renderer=medviz-xai/blend")(given))
    assert sorted(found) == ["map.nii.gz", "metadata.json", "movie.gif"]
    image = nibabel.load(found["map.nii.gz"])
    assert np.allclose(image.affine, AFFINE)
    assert np.array_equal(np.asarray(image.dataobj), given.values[0, 0].numpy())
    assert Image.open(io.BytesIO(found["movie.gif"].read_bytes())).n_frames > 1


def test_the_active_run_is_joined_and_keeps_its_params(client: MlflowClient) -> None:
    sink = medviz.get_sink("mlflow", maps="none")
    with mlflow.start_run() as active:
        mlflow.log_param("method", "training")
        uris = [sink(attribution(), tag="validation/lesion", step=step) for step in (0, 1)]
        assert mlflow.active_run() is not None
    assert {split(uri)[0] for uri in uris} == {active.info.run_id}
    assert [split(uri)[1] for uri in uris] == [f"medviz/validation/lesion/image-0/step-{s}" for s in (0, 1)]
    assert sorted(files(client, uris[1])) == ["metadata.json", "picture.png"]
    run = client.get_run(active.info.run_id)
    assert run.data.params == {"method": "training"}
    tag = json.loads(run.data.tags["medviz/validation/lesion/image-0/step-1"])
    assert tag["explainer"] == "gradcam:layer=deep"


def test_an_existing_run_by_its_id_and_another_store(store: str, tmp_path: Path) -> None:
    elsewhere = f"sqlite:///{shutil.copy(store.removeprefix('sqlite:///'), tmp_path / 'other.db')}"
    other = MlflowClient(elsewhere)
    run = other.create_run(other.create_experiment("elsewhere")).info.run_id
    uri = medviz.get_sink("mlflow", run=run, tracking_uri=elsewhere)(attribution())
    assert split(uri)[0] == run
    assert "picture.png" in files(other, uri)
    assert other.get_run(run).info.status == "RUNNING"


def test_an_experiment_is_preferred_to_the_active_run() -> None:
    with mlflow.start_run() as active:
        uri = medviz.get_sink("mlflow", experiment="apart", maps="none")(attribution())
    assert split(uri)[0] != active.info.run_id


def test_the_images_of_a_batch_lie_apart(client: MlflowClient) -> None:
    with mlflow.start_run():
        uris = medviz.get_sink("mlflow")(attribution(images=2))
    assert [split(uri)[1].split("/")[-2] for uri in uris] == ["image-0", "image-1"]
    maps = [medviz.Attribution.load(files(client, uri)["map.npz"]) for uri in uris]
    assert [each.index for each in maps] == [(0,), (1,)]


def test_nothing_is_replaced_unless_asked(client: MlflowClient) -> None:
    with mlflow.start_run():
        first = medviz.get_sink("mlflow")(attribution(), tag="a")
        with pytest.raises(FileExistsError, match=r"holds 'medviz/a/image-0/step-0' already.*overwrite=true"):
            medviz.get_sink("mlflow")(attribution(), tag="a")
        other = attribution(values=torch.ones(1, 1, 6, 5, 4))
        again = medviz.get_sink("mlflow", overwrite=True)(other, tag="a")
    assert first == again
    assert medviz.Attribution.load(files(client, again)["map.npz"]).values.eq(1).all()


def test_a_picture_without_a_map() -> None:
    rendering = medviz.Rendering(np.zeros((1, 4, 4, 3), np.uint8), title="drawn by hand")
    with pytest.raises(ValueError, match="holds no map; give the attribution too, or set maps=none"):
        medviz.get_sink("mlflow")(rendering)
    assert split(medviz.get_sink("mlflow", maps="none")(rendering))[1] == "medviz/drawn-by-hand/image-0/step-0"


def test_a_failed_upload_marks_the_new_run_as_failed(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(MlflowClient, "log_artifacts", fail)
    with pytest.raises(OSError, match="the disk is full"):
        medviz.get_sink("mlflow", experiment="failing")(attribution())
    experiment = client.get_experiment_by_name("failing").experiment_id
    assert [run.info.status for run in client.search_runs([experiment])] == ["FAILED"]


def test_a_failed_drawing_makes_no_run(client: MlflowClient) -> None:
    broken = attribution(values=torch.full((1, 1, 6, 5, 4), float("nan")))
    with pytest.raises(ValueError, match=r"NaN|finite"):
        medviz.get_sink("mlflow", experiment="never")(broken)
    assert client.get_experiment_by_name("never") is None


def test_long_values_are_cut_in_params_only(client: MlflowClient) -> None:
    known = attribution().provenance
    given = attribution(provenance={**known, "parameters": {"long": "x" * 9000}})
    uri = medviz.get_sink("mlflow", maps="none")(given)
    value = client.get_run(split(uri)[0]).data.params["parameters"]
    assert len(value) == 500
    assert value.endswith("…")
    assert json.loads(files(client, uri)["metadata.json"].read_text())["parameters"] == {"long": "x" * 9000}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"maps": "tiff"}, "maps"),
        ({"folder": "../up"}, "`folder` is '../up'"),
        ({"folder": "/root"}, "`folder` is '/root'"),
        ({"run": "r", "experiment": "e"}, "give either `run` 'r' or `experiment` 'e'"),
        ({"experiment": ""}, "experiment"),
        ({"overwrite": "yes"}, "overwrite"),
        ({"renderer": "plans"}, "did you mean 'planes'"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(medviz.PluginError, match=message):
        medviz.get_sink("mlflow", **parameters)


def test_a_store_that_cannot_be_opened() -> None:
    with pytest.raises(ValueError, match=r"cannot open its tracking store 'nowhere://x': .*needs the full MLflow"):
        medviz.get_sink("mlflow", tracking_uri="nowhere://x")(attribution())


def test_an_unknown_run() -> None:
    with pytest.raises(mlflow.exceptions.MlflowException, match="nowhere"):
        medviz.get_sink("mlflow", run="nowhere")(attribution())


def test_what_a_run_holds_and_what_is_not_there_is_known_before_the_network_runs() -> None:
    given = attribution()
    key = medviz.ResultKey.of(given)
    with mlflow.start_run():
        sink = medviz.get_sink("mlflow")
        check_destinations([sink], [key])
        sink(given)
        sink(given, tag="a")
        with pytest.raises(FileExistsError, match="holds 'medviz/gradcam-layer=deep/class-1/image-0/step-0' already"):
            check_destinations([sink], [key])
        check_destinations([medviz.get_sink("mlflow", overwrite=True)], [key])
        check_destinations([sink], [medviz.ResultKey.of(given, "a", step=1)])
        # two results with one tag lie in folders of their own, below the one that is there
        two = [medviz.ResultKey.of(given, "a"), medviz.ResultKey.of(attribution(target="class 2"), "a")]
        check_destinations([sink], two)
        sink([given, attribution(target="class 2")], tag="a")
        with pytest.raises(ValueError, match=r"two results would go to .* of one run; tell them apart"):
            sink([given, given], tag="b")
        with pytest.raises(FileExistsError, match="holds 'medviz/a/gradcam-layer=deep/class-1/image-0/step-0' already"):
            check_destinations([sink], two)
    with pytest.raises(mlflow.exceptions.MlflowException, match="nowhere"):
        check_destinations([medviz.get_sink("mlflow", run="nowhere")], [key])
