"""Installed plugins are listed from metadata that is read again exactly where it may have changed."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import medviz
from medviz import health, metadata, registry


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, still empty."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def add(place: Path, package: str, *names: str, version: str = "1.0") -> Path:
    folder = place / f"{package.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    write(folder, *names)
    # what changes within one tick of the file system's clock has the same time
    os.utime(place, ns=(0, os.stat(place).st_mtime_ns + 10**9))
    return folder


def write(folder: Path, *names: str) -> None:
    lines = "".join(f"{name} = made_up:{name.title()}\n" for name in names)
    (folder / "entry_points.txt").write_text(f"[medviz.readers]\n{lines}")


def offered(package: str) -> list[tuple[str, str]]:
    return [(entry.name, entry.version) for entry in registry.entries("readers") if entry.package == package]


def test_a_package_that_is_installed_later_is_seen(place: Path) -> None:
    assert offered("made-up") == []
    add(place, "made-up", "one", "two")
    assert offered("made-up") == [("one", "1.0"), ("two", "1.0")]


def test_a_line_that_is_added_later_is_seen(place: Path) -> None:
    folder = add(place, "made-up", "one")
    assert offered("made-up") == [("one", "1.0")]
    write(folder, "one", "two")
    assert offered("made-up") == [("one", "1.0"), ("two", "1.0")]


def test_another_version_and_a_removal_are_seen(place: Path) -> None:
    folder = add(place, "made-up", "one")
    assert offered("made-up") == [("one", "1.0")]
    shutil.rmtree(folder)
    add(place, "made-up", "one", version="2.0")
    assert offered("made-up") == [("one", "2.0")]


def test_the_folder_that_python_was_started_in_is_looked_at_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.path", ["", *(other for other in sys.path if other != str(place))])
    assert offered("made-up") == []
    add(place, "made-up", "one")
    assert offered("made-up") == [("one", "1.0")]


def test_a_place_that_leaves_the_path_takes_its_packages_along(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(place, "made-up", "one")
    assert offered("made-up")
    monkeypatch.setattr("sys.path", [p for p in metadata.sys.path if p != str(place)])
    assert not offered("made-up")


def test_nothing_is_read_again_where_nothing_has_changed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    medviz.get_explainer("medviz-xai/gradcam")  # some imports register another finder of packages
    before = registry.entries()
    read = importlib.metadata.entry_points

    def refused(**wanted: Any) -> Any:
        assert not wanted["group"].startswith("medviz."), "the metadata of all packages was read again"
        return read(**wanted)

    monkeypatch.setattr(importlib.metadata, "entry_points", refused)
    assert registry.entries() == before
    assert isinstance(medviz.get_explainer("medviz-xai/gradcam"), medviz.Explainer)


def test_places_that_do_not_exist_do_no_harm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "nowhere"))
    assert "gradcam" in registry.names("explainers")


def break_it(place: Path, how: str) -> None:
    """A package that is half there, as after an interrupted removal."""
    folder = add(place, "half-there", "lost")
    if how == "no metadata":
        (folder / "METADATA").unlink()
    elif how == "no name":
        (folder / "METADATA").write_text("Metadata-Version: 2.1\n")
    elif how == "no text":
        (folder / "METADATA").write_bytes(b"Name: \xff\xfe\n")
    else:
        (folder / "entry_points.txt").write_text("[other.group]\nno equals sign\n")


@pytest.mark.parametrize("how", ["no metadata", "no name", "no text", "no pair"])
def test_one_damaged_package_costs_the_others_nothing(
    place: Path, how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(place, how)
    add(place, "whole", "found")
    (place / "further").mkdir()
    add(place / "further", "whole", "found", version="0.9")  # the first on the path counts
    monkeypatch.setattr("sys.path", [*sys.path, str(place / "further")])
    with caplog.at_level("WARNING"):
        assert offered("whole") == [("found", "1.0")]
    assert "gradcam" in registry.names("explainers")
    assert "gradcam" not in registry.names("readers")
    assert isinstance(medviz.get_explainer("medviz-xai/gradcam"), medviz.Explainer)
    broken = {entry.name: entry.package for entry, error in health.check("readers") if error}
    if how == "no pair":
        assert "half_there-1.0.dist-info cannot be read, and is left out" in caplog.text
    else:
        assert broken["lost"] == "half-there"
        assert registry.find("readers", "half-there/lost")


def test_a_group_that_nobody_looks_into_is_said(place: Path) -> None:
    folder = add(place, "made-up")
    (folder / "entry_points.txt").write_text("[medviz.explainer]\nmine = made_up:Mine\n")
    messages = [str(error) for entry, error in health.check() if entry.name == "mine"]
    assert len(messages) == 1
    assert (
        "lists 'mine' under 'medviz.explainer', which is no group of medviz's; did you mean 'explainers'" in messages[0]
    )


def test_a_name_that_plugin_strings_cannot_hold_is_said(place: Path) -> None:
    add(place, "made-up", "a/b")
    (error,) = [error for entry, error in health.check("readers") if entry.name == "a/b"]
    assert "'made-up/a/b' cannot be asked for: '/' means something else in plugin strings" in str(error)
