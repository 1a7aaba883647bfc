"""Copy boxes on a CPU in either way, so that what a GPU does is tested without one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest

from medviz.incremental import copying

WAYS = pytest.mark.parametrize("by_index", [False, True], ids=["one by one", "by index"])


@contextlib.contextmanager
def copied(by_index: bool) -> Iterator[None]:
    """Copy boxes by an index, in one kernel, or one by one, whatever the device."""
    with mock.patch.object(copying, "_by_index", return_value=by_index):
        yield
