"""Ctrl-C and SIGTERM call a function of ours while something runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals(on_signal: Callable[[int], None]) -> Iterator[None]:
    """Call `on_signal` with the signal's number at each Ctrl-C or SIGTERM, until the block ends."""
    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda number, frame: on_signal(number))
    except ValueError:
        # Not in the main thread, where Python delivers no signals anyway.
        pass
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
