"""Where sinks write: names, placeholders, replacement, and nothing half-written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
from helpers_results import attribution
from hypothesis import given, settings
from hypothesis import strategies as st

import medviz
from medviz import relay
from medviz.attribution import Attribution
from medviz.files import atomic
from medviz.hookspecs import hookimpl
from medviz.results import ResultKey, as_template
from medviz.sinks.file_sink import FileSink, check_destinations


@attrs.frozen(eq=False)
class Text(FileSink):
    """Writes the largest value."""

    suffixes = (".txt", ".txt.gz")

    @hookimpl
    def write(self, attribution: Attribution | None, tag: str | None, step: int) -> Path:
        path = self.destination(attribution, tag, step)
        with atomic(path, self.overwrite) as part:
            part.write_text(f"{float(attribution.values.max()):.0f}")
        return path


def write_half(path: Path, failure: type[BaseException]) -> None:
    with atomic(path, overwrite=True) as part:
        part.write_text("half")
        raise failure


def write_while_somebody_else_does(path: Path) -> None:
    with atomic(path) as part:
        part.write_text("mine")
        path.write_text("theirs")


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_every_placeholder_is_filled_in():
    place = ResultKey(3, "gradcam:layer=layer4", "class 2", "epoch end", 12)
    filled = place.expand("{index}_{explainer}_{target}_{tag}_{step}.png")
    assert filled == Path("3_gradcam-layer=layer4_class-2_epoch-end_12.png")


def test_quotes_and_brackets_of_a_parameter_leave_no_sign() -> None:
    described = "occlusion:mask_size=(4, 6),occluder=gaussian(sigma=2)"
    name = ResultKey(explainer=described).expand("{explainer}.png").name
    assert name == "occlusion-mask_size=4-6-occluder=gaussian-sigma=2.png"
    assert ResultKey(explainer="gradcam:layer='3'").expand("{explainer}.png").name == "gradcam-layer=3.png"


def test_numbers_can_be_padded_and_braces_doubled():
    assert ResultKey(3, step=7).expand("{index:03d}-{step:04}-{{a}}.png") == Path("003-0007-{a}.png")


def test_a_placeholder_without_content_keeps_its_place():
    assert ResultKey().expand("{tag}/{target}/{explainer}.png") == Path("no-tag/no-target/no-explainer.png")


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ResultKey().expand("~/a.png") == tmp_path / "a.png"


def test_a_long_name_is_cut_and_stays_unlike_others():
    one, other = (ResultKey(explainer="x" * 300 + end).expand("{explainer}.png").name for end in "ab")
    assert len(one) < 100
    assert one != other


@settings(derandomize=True, deadline=None)
@given(st.text(), st.sampled_from(["target", "explainer", "tag"]))
def test_no_name_leaves_its_folder(text, placeholder):
    filled = ResultKey(**{placeholder: text}).expand(f"/maps/{{{placeholder}}}/a.png")
    assert filled.parts[:2] == ("/", "maps")
    assert len(filled.parts) == 4
    assert filled.parts[2] not in ("", ".", "..")
    assert filled.name == "a.png"
    assert len(os.fsencode(filled.parts[2])) <= 80


@pytest.mark.parametrize("name", [".hidden", "-rf", "../hidden", "hidden.", "hidden-"])
def test_a_name_neither_begins_nor_ends_with_a_dot_or_a_hyphen(name: str) -> None:
    assert ResultKey(target=name).expand("{target}.png") == Path(f"{name.strip('./-')}.png")


def test_names_in_other_scripts_stay_apart():
    names = ["肝", "肺", "Müller", "M ller", "Ærø", "肝" * 40, "肝" * 41, "कि", "की", "กี", "กิ", "→", "←"]
    filled = [ResultKey(tag=name).expand("{tag}.png").name for name in names]
    assert len(set(filled)) == len(names)
    assert filled[0] == "肝.png"
    for decomposed, composed in (("Mu\u0308ller", "M\u00fcller"), ("u\u0308" * 60, "\u00fc" * 60)):
        assert ResultKey(tag=decomposed).expand("{tag}") == ResultKey(tag=composed).expand("{tag}")


def test_a_file_system_that_takes_no_umlaut_gets_none(monkeypatch):
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("ascii"))
    first, second = (ResultKey(tag=name).expand("{tag}").name for name in ("Müller", "Möller"))
    assert first.isascii()
    assert first.startswith("M-ller-")
    assert first != second


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{layer}.txt", "placeholder 'layer'; known are {index}, {explainer}, {target}, {tag}, {step}"),
        ("{}.txt", "placeholder ''"),
        ("{index.__class__}.txt", "placeholder 'index.__class__'"),
        ("{index.txt", "cannot be used"),
        ("{target:03d}.txt", "cannot be used"),
        ("{index:{width}}.txt", "cannot be used"),
        ("map.png", "must end in .txt or .txt.gz, the format that Text writes"),
        ("map", "must end in"),
        (".txt", "no name before its suffix"),
        ("gs://bucket/map.txt", "is an address"),
        (Path("gs://bucket/map.txt"), "is an address"),
    ],
)
def test_a_bad_path_is_refused_when_the_sink_is_made(path, message):
    with pytest.raises(ValueError, match="`path`") as error:
        Text(path)
    assert message in str(error.value)


@pytest.mark.parametrize("path", ["", "  ", "a\0.txt", None, 5, b"a.txt"])
def test_what_is_no_path_is_a_type_error(path):
    with pytest.raises(TypeError, match="expected a string"):
        as_template(path)


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.b.txt.gz"])
def test_suffixes_that_fit(name):
    assert Text(name).path.name == name


def test_overwrite_is_a_bool():
    with pytest.raises(TypeError, match="overwrite"):
        Text("a.txt", overwrite="yes")


@pytest.mark.parametrize("position", [{"step": 1.5}, {"index": "2"}])
def test_positions_are_integers(position):
    with pytest.raises(TypeError):
        ResultKey(**position)


def test_numpy_integers_are_integers():
    assert ResultKey(step=np.int64(4)).expand("{step:02d}.txt") == Path("04.txt")


def test_missing_folders_are_made(tmp_path):
    with atomic(tmp_path / "a" / "b" / "c.txt") as part:
        part.write_text("x")
    assert files(tmp_path) == ["a/b/c.txt"]


def test_the_temporary_file_keeps_the_double_suffix(tmp_path):
    with atomic(tmp_path / "scan.nii.gz") as part:
        assert part.name.endswith(".nii.gz")
        assert part.parent == tmp_path


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_leaves_no_part_and_the_old_file(tmp_path, failure, old):
    path = tmp_path / "a.txt"
    if old:
        path.write_text(old)
    with pytest.raises(failure):
        write_half(path, failure)
    assert files(tmp_path) == (["a.txt"] if old else [])
    assert not old or path.read_text() == old


def test_an_existing_file_is_replaced_only_on_demand(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileExistsError, match="overwrite=true"), atomic(path):
        pytest.fail("the block must not run")
    with atomic(path, overwrite=True) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert files(tmp_path) == ["a.txt"]


def test_a_file_that_appears_in_the_meantime_is_kept(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(FileExistsError, match="in the meantime"):
        write_while_somebody_else_does(path)
    assert path.read_text() == "theirs"
    assert files(tmp_path) == ["a.txt"]


def test_a_file_system_without_links_works(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with atomic(tmp_path / "a.txt") as part:
        part.write_text("x")
    assert files(tmp_path) == ["a.txt"]


def test_the_users_umask_is_respected(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic(tmp_path / "a.txt") as part:
            part.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_replaced_file_hands_on_its_permissions(tmp_path):
    (tmp_path / "a.txt").touch(0o600)
    Text(tmp_path / "a.txt", overwrite=True)(attribution())
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_followed(tmp_path, dangling):
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target.txt"
    (tmp_path / "link.txt").symlink_to(target)
    if not dangling:
        target.touch()
    Text(tmp_path / "link.txt", overwrite=not dangling)(attribution())
    assert (tmp_path / "link.txt").is_symlink()
    assert target.read_text() == "1"


def test_a_link_gives_its_suffix_and_not_that_of_its_target(tmp_path):
    (tmp_path / "blob").write_text("old")
    (tmp_path / "a.txt").symlink_to(tmp_path / "blob")
    with atomic(tmp_path / "a.txt", overwrite=True) as part:
        assert part.suffix == ".txt"
        part.write_text("new")
    assert files(tmp_path) == ["a.txt", "blob"]
    assert (tmp_path / "blob").read_text() == "new"


def test_what_a_link_leads_to_is_checked(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "a.txt").symlink_to(tmp_path / "file" / "inside.txt")
    with pytest.raises(NotADirectoryError, match=r"a\.txt', a link to .*inside\.txt', cannot be made"):
        check_destinations([Text(tmp_path / "a.txt")], [ResultKey()])


def test_a_folder_without_permission_is_found_before_the_network_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda folder, mode: Path(folder) != tmp_path)
    with pytest.raises(PermissionError, match=r"a/b\.txt' cannot be written: you have no permission to write to"):
        check_destinations([Text(tmp_path / "a" / "b.txt")], [ResultKey()])


def test_a_folder_is_not_a_file(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        Text(tmp_path / "a.txt")(attribution())


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_destinations([Text(tmp_path / "a" / "b" / "c.txt")], [ResultKey()])


def test_a_sink_that_writes_no_file_says_what_it_cannot_write(tmp_path):
    class Store(medviz.Sink):
        def check(self, keys: Sequence[ResultKey]) -> None:
            if len(keys) > 1:
                raise ConnectionError(f"the store is full: no image {keys[1].index}")

    check_destinations([Store()], [ResultKey()])
    with pytest.raises(ConnectionError, match="no image 1"):
        check_destinations([Text(tmp_path / "{index}.txt"), Store()], [ResultKey(), ResultKey(index=1)])


def test_a_batch_gives_one_file_each(tmp_path):
    paths = Text(tmp_path / "{index}.txt")(attribution(3))
    assert [p.read_text() for p in paths] == ["1", "2", "3"]


def test_one_image_gives_one_path_and_a_list_a_list(tmp_path):
    assert Text(tmp_path / "a.txt")(attribution()) == tmp_path / "a.txt"
    assert Text(tmp_path / "b.txt")([attribution()]) == [tmp_path / "b.txt"]


def test_colliding_results_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"two results would be written to .*\{index\}"):
        Text(tmp_path / "{target}.txt")(attribution(2))
    assert files(tmp_path) == []


def test_colliding_results_of_a_list_and_of_two_sinks(tmp_path):
    with pytest.raises(ValueError, match="two results"):
        relay.write(Text(tmp_path / "a.txt"), [attribution(), attribution()])
    sinks = [Text(tmp_path / "a.txt"), Text(tmp_path / "sub" / ".." / "a.txt")]
    with pytest.raises(ValueError, match="two results"):
        check_destinations(sinks, [ResultKey()])


def test_explainers_targets_tags_and_steps_tell_results_apart(tmp_path):
    other = attribution(target="class 0", provenance={"method": "cam"})
    sink = Text(tmp_path / "{explainer}/{target}/{tag}-{step}.txt")
    sink([attribution(), other], tag="t", step=5)
    assert files(tmp_path) == ["cam/class-0/t-5.txt", "gradcam-layer=layer4/class-2/t-5.txt"]


def test_an_existing_file_stops_all_before_the_first_is_written(tmp_path):
    (tmp_path / "1.txt").write_text("old")
    with pytest.raises(FileExistsError, match="exists already"):
        Text(tmp_path / "{index}.txt")(attribution(2))
    assert files(tmp_path) == ["1.txt"]
    Text(tmp_path / "{index}.txt", overwrite=True)(attribution(2))
    assert (tmp_path / "1.txt").read_text() == "2"


@pytest.mark.parametrize("label", ["../../etc/passwd", "/etc/passwd", "..", "", "a\\b", "a\0b", "~root", "{index}"])
def test_hostile_labels_stay_in_the_folder(tmp_path, label):
    folder = tmp_path / "maps"
    path = Text(folder / "{target}.txt")(attribution(target=label), tag=label)
    assert path.parent == folder
    assert [p.name for p in folder.iterdir()] == [path.name]
    assert files(tmp_path) == [f"maps/{path.name}"]


def test_an_index_of_a_batch_is_its_place_in_the_whole_batch(tmp_path):
    assert Text(tmp_path / "{index}.txt")(attribution(3)[2]).name == "2.txt"
