"""What has to happen before torch is imported, and the device that is only there for the tests that name it."""

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes with several threads each would fight for the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Let a test make the same networks and images whatever ran before it in its process."""
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _faraway(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the device of `faraway` exist for a test that has it as its parameter."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if parameters.get("device") != "faraway":
        yield
        return
    import faraway

    with faraway.there():
        yield


@pytest.fixture
def boxes_at_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small networks of a test run incrementally, which takes longer there than whole passes."""
    monkeypatch.setattr("medviz.incremental.engine._BOX", 0.0)
