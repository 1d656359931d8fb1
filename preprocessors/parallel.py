"""Threads over frames, or over bands of rows of one frame. cv2 and numpy release Python's lock while they compute.

The number of threads is cv2's own, so that `cv2.setNumThreads` of a host counts here too. Results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# For fewer pixels, starting a thread takes longer than the work.
_MIN_PIXELS = 1 << 17
# Of frames in work at the same time, so that only a few large ones are in memory.
_MAX_PIXELS = 1 << 25
# The temporary arrays of a band fit into the cache.
_BAND_PIXELS = 1 << 18
# A band is high compared with the rows that it shares with its neighbours.
_BAND_ROWS = 256


def thread_count() -> int:
    """The number of threads that cv2 uses, at least one."""
    import cv2

    return max(1, cv2.getNumThreads())


def worker_count(count: int, pixels: int) -> int:
    """How many of `count` frames with `pixels` each run at the same time."""
    if count * pixels < 2 * _MIN_PIXELS:
        return 1
    return max(1, min(thread_count(), count, _MAX_PIXELS // pixels))


def run_each(work: Callable[[int], None], count: int, threads: int, done: Callable[[int], None]) -> None:
    """Call work(0) to work(count - 1) on several threads, and done(1) to done(count) in order on the caller's thread.

    An exception of either ends the run: work that has not begun by then does not begin.
    """
    if threads < 2:
        for index in range(count):
            work(index)
            done(index + 1)
        return
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work, index) for index in range(count)]
        try:
            for index, future in enumerate(futures):
                future.result()
                done(index + 1)
        finally:
            for future in futures:
                future.cancel()


def run_bands(
    function: Callable[[np.ndarray], np.ndarray], picture: np.ndarray, *, reach: int, threads: int, dtype: type
) -> np.ndarray:
    """Compute function((H,W,C)) -> (H,W) of `dtype` in bands of rows: in less memory, and on several threads.

    The result equals function(picture) bit for bit if no row of it depends on a row farther away than `reach`.
    """
    height, width = picture.shape[:2]
    threads = min(threads, max(1, height * width // _MIN_PIXELS))
    count = max(threads, min(-(-height * width // _BAND_PIXELS), height // _BAND_ROWS))
    if count < 2:
        return function(picture)
    rows = -(-height // count)
    result = np.empty((height, width), dtype)

    def band(index: int) -> None:
        top = index * rows
        low = max(0, top - reach)
        made = function(picture[low : top + rows + reach])
        result[top : top + rows] = made[top - low :][:rows]

    run_each(band, -(-height // rows), threads, lambda done: None)
    return result
