"""Settings of a test run: each of several workers (`pytest -n auto`) computes on its own share of the cores."""

from __future__ import annotations

import gc
import os
import sys

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

if WORKERS > 1:
    # Before torch is imported, and for the commands that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

# The commands that tests start would compile the package again each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Garbage collections walk all that the imports made, again and again: a seventh of the time of the tests.
gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from here on, only among what the tests make, and all of it at every tenth test or so."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(1000, 10, 50)
    gc.enable()
