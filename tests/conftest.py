"""Only what has to happen before torch is imported."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes with several threads each would fight for the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
