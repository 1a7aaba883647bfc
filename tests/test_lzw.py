"""The pixels of a long movie: encoded by several threads, they are the same bytes as one after another."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from medviz.sinks import lzw

SIZES = [(64, 48), (1, 1), (33, 7), (200, 200), (5, 300)]


@pytest.fixture
def regions() -> list[np.ndarray]:
    numbers = np.random.default_rng(0)
    smooth = [np.add.outer(np.arange(h), np.arange(w)).astype(np.uint8) for h, w in SIZES]
    noise = [numbers.integers(0, 256, size, np.uint8) for size in SIZES]
    return [*smooth, *noise, smooth[3][10:150, 7:99]]


@pytest.fixture
def expected(regions: list[np.ndarray]) -> list[bytes]:
    return [Image.fromarray(np.ascontiguousarray(region)).tobytes("gif", "L", 8) for region in regions]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Let short movies be worth three threads; return those that have encoded."""
    seen: set[int] = set()
    by_file = lzw._by_file

    def noted(regions: Any) -> Any:
        seen.add(threading.get_ident())
        return by_file(regions)

    monkeypatch.setattr(lzw, "_WORTH", 1)
    monkeypatch.setattr(lzw, "_by_file", noted)
    monkeypatch.setattr(lzw, "_cores", lambda: 3)
    return seen


def test_threads_encode_the_same_bytes(regions, expected, threads):
    assert [bytes(block) for block in lzw.compressed(regions)] == expected
    assert threads
    assert threading.get_ident() not in threads


def test_files_on_disk_do_where_there_are_none_in_memory(regions, expected, threads, monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert [bytes(block) for block in lzw.compressed(regions)] == expected
    assert threads


@pytest.mark.parametrize("missing", ["scratch", "helper", "arguments", "threads"])
def test_one_after_another_where_threads_cannot(missing, regions, expected, threads, monkeypatch):
    def refuse(*args: Any) -> Any:
        raise {"scratch": OSError, "threads": RuntimeError}.get(missing, TypeError)("not here")

    if missing == "scratch":
        monkeypatch.setattr(lzw, "_scratch", refuse)
    elif missing == "threads":
        monkeypatch.setattr(threading.Thread, "start", refuse)
    elif missing == "helper":
        monkeypatch.delattr(ImageFile, "_save")
    else:
        monkeypatch.setattr(ImageFile, "_save", refuse)
    assert [bytes(block) for block in lzw.compressed(regions)] == expected
    assert bool(threads) == (missing != "threads")


@pytest.mark.parametrize("room", [0, 1, 4000, -100, -1])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_write_that_is_cut_short_loses_nothing(in_memory, room, regions, expected, threads, monkeypatch):
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(lzw, "_cores", lambda: 2)
    longest = max(sum(map(len, expected[:6])), sum(map(len, expected[6:])))  # of the two workers' files
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room if room >= 0 else longest + room, before[1]))
    try:
        made = [bytes(block) for block in lzw.compressed(regions)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert made == expected
    assert threads


def test_a_short_movie_starts_no_thread(regions, expected, monkeypatch):
    monkeypatch.setattr(lzw, "_by_file", None)
    assert lzw.compressed(regions) == expected
    assert lzw.compressed([]) == []


def test_more_workers_than_frames(threads):
    assert [len(block) > 0 for block in lzw.compressed([np.zeros((9, 9), np.uint8)])] == [True]
