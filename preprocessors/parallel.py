"""Several threads over frames, or over bands of rows of one frame. cv2 and numpy let go of the interpreter's lock.

The number of threads is cv2's own (`cv2.setNumThreads` of the host counts here too); results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_LEAST_PIXELS = 1 << 17  # below this a thread costs more to start than it saves
_MOST_PIXELS = 1 << 25  # in work at the same time, so that the memory in use stays that of a few frames
_BAND_PIXELS = 1 << 18  # a band's temporaries stay in the cache
_BAND_ROWS = 256  # and it is high beside what it shares with its neighbours


def thread_count() -> int:
    """How many threads cv2 uses, at least one."""
    import cv2

    return max(1, cv2.getNumThreads())


def workers(count: int, pixels: int) -> int:
    """How many of `count` frames of `pixels` each to work on at a time."""
    if count * pixels < 2 * _LEAST_PIXELS:
        return 1
    return max(1, min(thread_count(), count, _MOST_PIXELS // pixels))


def each(work: Callable[[int], None], count: int, threads: int, done: Callable[[int], None]) -> None:
    """work(0) to work(count - 1) on so many threads; done(1) to done(count) in order, on the caller's thread.

    What either raises ends the run: what has not begun by then does not begin.
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


def by_bands(
    function: Callable[[np.ndarray], np.ndarray], picture: np.ndarray, *, reach: int, threads: int, dtype: type
) -> np.ndarray:
    """function((H,W,C)) -> (H,W) of `dtype`, made in bands of rows: less memory, and as many threads as given.

    Equal to function(picture), bit for bit, where no row of the result depends on a row farther than `reach`.
    """
    height, width = picture.shape[:2]
    threads = min(threads, max(1, height * width // _LEAST_PIXELS))
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

    each(band, -(-height // rows), threads, lambda done: None)
    return result
