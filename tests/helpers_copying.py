"""Copy boxes on a CPU in either way, so that what accelerators do is tested without one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest

from medviz.incremental import copying

WAYS = pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])


@contextlib.contextmanager
def copied(together: bool) -> Iterator[None]:
    """Copy boxes together, in one kernel, or one by one, whatever the device."""
    with mock.patch.object(copying, "_by_index", return_value=together):
        yield
