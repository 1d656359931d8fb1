"""A load generator: processes that keep every core busy while something is measured."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SPIN = "while True: pass"
START_SECONDS = 0.5
"""Until the processes have started and have their share of the cores."""


@contextmanager
def busy(per_core: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run this many endless loops per core inside the context, and yield their processes. They never wait."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # -S and -I: without site-packages, so that they start at once.
    loops = [subprocess.Popen([sys.executable, "-I", "-S", "-c", SPIN]) for _ in range(per_core * cores)]
    try:
        time.sleep(START_SECONDS)
        yield loops
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()
