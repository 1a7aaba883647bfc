"""TensorBoard logs, read back with TensorBoard's own reader, for both writers."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import tensorboardX
from helpers_results import Tiny, attribution, colourful_movie
from PIL import Image as PilImage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch.utils.tensorboard import SummaryWriter

from medviz.rendering import Rendering
from medviz.results import ResultKey
from medviz.sinks.tensorboard import TensorBoard

WRITERS = [SummaryWriter, tensorboardX.SummaryWriter]


def written(writer) -> None:
    """Wait until the log is complete: tensorboardX has no other way than to close it."""
    if isinstance(writer, tensorboardX.SummaryWriter):
        writer.close()


def images(folder: Path) -> dict[str, list]:
    log = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: log.Images(tag) for tag in log.Tags()["images"]}


def frames(event) -> np.ndarray:
    with PilImage.open(io.BytesIO(event.encoded_image_string)) as movie:
        return np.stack(
            [np.asarray((movie.seek(i), movie.convert("RGB"))[1]) for i in range(getattr(movie, "n_frames", 1))]
        )


@pytest.fixture(params=WRITERS, ids=["torch", "tensorboardX"])
def writer(request, tmp_path):
    with request.param(str(tmp_path / "log")) as opened:
        yield opened


def test_one_frame_is_an_exact_picture(writer, tmp_path):
    frame = colourful_movie(1)[:, :40]
    sink = TensorBoard(writer=writer, renderer=Tiny())
    assert sink(Rendering(frame), tag="epoch/first map", step=7) == str(tmp_path / "log")
    written(writer)
    (event,) = images(tmp_path / "log")["epoch/first map"]
    assert np.array_equal(frames(event), frame)
    assert (event.step, event.height, event.width) == (7, 40, 64)
    assert event.encoded_image_string.startswith(b"\x89PNG")


def test_several_frames_are_a_movie_in_colour(writer, tmp_path):
    movie = colourful_movie()[:, :40]
    TensorBoard(writer=writer, renderer=Tiny())(Rendering(movie, fps=5), tag="t", step=3)
    written(writer)
    (event,) = images(tmp_path / "log")["t"]
    decoded = frames(event)
    assert decoded.shape == movie.shape
    assert np.abs(decoded.astype(int) - movie).max() < 32
    assert (event.step, event.height, event.width) == (3, 40, 64)
    assert event.encoded_image_string.startswith(b"GIF89a")


def test_the_summary_says_that_it_is_coloured(writer, tmp_path):
    sink = TensorBoard(writer=writer, renderer=Tiny())
    sink(Tiny()(attribution()))
    sink(Tiny(frames=3)(attribution()))
    written(writer)
    (path,) = (tmp_path / "log").iterdir()
    spaces = [
        value.image.colorspace for event in LegacyEventFileLoader(str(path)).Load() for value in event.summary.value
    ]
    assert spaces == [3, 3]


def test_a_given_writer_stays_open(writer, tmp_path):
    sink = TensorBoard(writer=writer, renderer=Tiny())
    for step in (0, 1, 2):
        sink(attribution(), tag="t", step=step)
        writer.add_scalar("loss", 1.0, step)
    writer.flush()
    written(writer)
    assert [e.step for e in images(tmp_path / "log")["t"]] == [0, 1, 2]
    assert len(list((tmp_path / "log").iterdir())) == 1


def test_a_closed_writer_is_refused(writer):
    writer.close()
    with pytest.raises(ValueError, match="`writer` is closed"):
        TensorBoard(writer=writer, renderer=Tiny())(attribution())


def test_a_writer_of_a_derived_class(tmp_path):
    class Mine(SummaryWriter):
        pass

    with Mine(str(tmp_path)) as writer:
        TensorBoard(writer=writer, renderer=Tiny())(attribution(), tag="t")
    assert list(images(tmp_path)) == ["t"]


def test_a_path_opens_and_closes_a_log(tmp_path):
    folder = tmp_path / "runs" / "one"
    assert TensorBoard(folder, renderer=Tiny())(attribution(), step=2) == str(folder)
    ((tag, (event,)),) = images(folder).items()
    assert (tag, event.step) == ("gradcam:layer=layer4/class 2", 2)


def test_steps_written_one_by_one_to_a_path_are_all_there(tmp_path):
    sink = TensorBoard(tmp_path, renderer=Tiny())
    for step in range(12):
        sink(attribution(), tag="t", step=step)
    assert sorted(e.step for e in images(tmp_path)["t"]) == list(range(12))


def test_a_path_may_hold_placeholders(tmp_path):
    TensorBoard(tmp_path / "{target}", renderer=Tiny())(attribution())
    assert list(images(tmp_path / "class-2")) == ["gradcam:layer=layer4/class 2"]


def test_images_of_a_batch_have_their_own_tags(tmp_path):
    TensorBoard(tmp_path, renderer=Tiny())(attribution(3))
    made = "gradcam:layer=layer4/class 2"
    found = images(tmp_path)
    assert sorted(found) == [made, f"{made}/1", f"{made}/2"]
    assert [frames(found[tag][0])[0, 0, 0, 0] for tag in sorted(found)] == [10, 20, 30]


def test_the_users_tag_gets_the_index_too(tmp_path):
    TensorBoard(tmp_path, renderer=Tiny())(attribution(2), tag="val")
    assert sorted(images(tmp_path)) == ["val", "val/1"]


def test_one_tag_for_several_methods_or_targets_hides_none(tmp_path):
    other = attribution(target="class 1")
    TensorBoard(tmp_path, renderer=Tiny())([attribution(), other], tag="val")
    assert sorted(images(tmp_path)) == [f"val/gradcam:layer=layer4/class {i}" for i in (1, 2)]


def test_results_that_would_hide_one_another_are_refused(tmp_path):
    """Three images, explained one by one: each is the first of its own batch."""
    sink = TensorBoard(tmp_path, renderer=Tiny())
    for tag in (None, "val"):
        with pytest.raises(ValueError, match=r"two results would have the tag .* at step 3; tell them apart"):
            sink([attribution(), attribution()], tag=tag, step=3)
    assert not list(tmp_path.iterdir())
    TensorBoard(tmp_path / "{target}", renderer=Tiny())([attribution(), attribution(target="class 1")], tag="val")


def test_a_bare_picture_beside_a_map_keeps_the_tag(tmp_path):
    TensorBoard(tmp_path, renderer=Tiny())([attribution(), Rendering(colourful_movie(1))], tag="val")
    assert sorted(images(tmp_path)) == ["val", "val/gradcam:layer=layer4/class 2"]


def test_a_bare_picture_is_called_by_its_title(tmp_path):
    TensorBoard(tmp_path, renderer=Tiny())(
        [Rendering(colourful_movie(1), title="a spot"), Rendering(colourful_movie(1))]
    )
    assert sorted(images(tmp_path)) == ["a spot", "medviz"]


def test_it_needs_a_path_or_a_writer(tmp_path):
    with pytest.raises(ValueError, match="either `path`, a log folder, or `writer`"):
        TensorBoard(renderer=Tiny())
    with SummaryWriter(str(tmp_path)) as writer, pytest.raises(ValueError, match="either `path`"):
        TensorBoard(tmp_path, writer=writer, renderer=Tiny())


@pytest.mark.parametrize("wrong", ["runs", object(), 5])
def test_a_writer_of_neither_library_is_refused(wrong):
    with pytest.raises(TypeError, match="expected a SummaryWriter"):
        TensorBoard(writer=wrong, renderer=Tiny())


def test_a_file_is_no_log_folder(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(NotADirectoryError, match="runs' is a file; a folder is needed there"):
        TensorBoard(tmp_path / "runs", renderer=Tiny())(attribution())


def test_what_cannot_be_written_is_known_before_the_network_runs(tmp_path, monkeypatch):
    with SummaryWriter(str(tmp_path)) as writer:
        pass
    with pytest.raises(ValueError, match="`writer` is closed"):
        TensorBoard(writer=writer, renderer=Tiny()).check([ResultKey()])
    TensorBoard(tmp_path / "{tag}" / "runs", renderer=Tiny()).check([ResultKey()])
    monkeypatch.setattr(os, "access", lambda folder, mode: Path(folder) != tmp_path)
    with pytest.raises(PermissionError, match=r"runs' cannot be written: you have no permission to write to"):
        TensorBoard(tmp_path / "{tag}" / "runs", renderer=Tiny()).check([ResultKey()])


def test_a_link_that_leads_to_nothing_is_no_log_folder(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    with pytest.raises(NotADirectoryError, match=r"runs', a link to .*gone', leads to nothing"):
        TensorBoard(tmp_path / "runs", renderer=Tiny())(attribution())


def test_a_writer_that_writes_nothing_is_no_error(tmp_path):
    writer = tensorboardX.SummaryWriter(str(tmp_path), write_to_disk=False)
    TensorBoard(writer=writer, renderer=Tiny())(attribution())
    assert list(tmp_path.iterdir()) == []


def test_one_tag_in_two_folders_hides_nothing(tmp_path):
    sink = TensorBoard(tmp_path / "{target}", renderer=Tiny())
    sink.check([ResultKey(target=target, tag="t") for target in ("a", "b")])
    with pytest.raises(ValueError, match="two results would have the tag 't' at step 0"):
        sink.check([ResultKey(target="a", tag="t")] * 2)
