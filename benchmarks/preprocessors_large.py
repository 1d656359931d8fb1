"""Measure time and memory of every preprocessor without weights on one picture of 4096 x 4096.

    python benchmarks/preprocessors_large.py [--side 4096] [--only canny ...]

Each kind runs in a process of its own on the enlarged example photo. Memory is the peak of the process beyond what it
held before; it includes the hint (a float32 picture of 4096 x 4096 is 0.19 GiB). Times are wall time, and processor
time of all threads together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.catalog import ENTRIES
from comfyui_controlnet_core.preprocessors.examples import example


def main() -> None:
    """Print the table; with --measure, one row as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--only", nargs="*", help="only these kinds")
    parser.add_argument("--measure", metavar="KIND", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.side)))
        return
    print("| kind | wall, s | processor, s | memory, GiB |\n| --- | --- | --- | --- |")
    for entry in ENTRIES:
        if entry.weights or (args.only and entry.name not in args.only):
            continue
        command = [sys.executable, __file__, "--side", str(args.side), "--measure", entry.name]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"| {entry.name} | {row['wall']:.1f} | {row['cpu']:.1f} | {row['memory']:.2f} |", flush=True)


def measure(kind: str, side: int) -> dict[str, float]:
    """Measure one run, without a warm-up: a user waits for the first run too."""
    entry = preprocessors.get(kind)
    image, options = example(entry, _photo(side))
    image = image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image
    with _Peak() as peak:
        wall, cpu = time.perf_counter(), time.process_time()
        hint = preprocessors.process(entry, image, **options)
        row = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    if not np.isfinite(hint).all():
        raise SystemExit(f"{kind}: the hint is not finite")
    return {**row, "memory": peak.gained / 2**30}


def _photo(side: int) -> np.ndarray:
    folder = Path(preprocessors.__file__).parents[1] / "controlnet_core" / "assets" / "examples"
    photo = cv2.imdecode(np.frombuffer((folder / "coffee.jpg").read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    return cv2.resize(np.ascontiguousarray(photo[..., ::-1]), (side, side), interpolation=cv2.INTER_CUBIC)


class _Peak:
    """The peak memory of the process while the block runs, sampled every 3 ms."""

    def __enter__(self) -> _Peak:
        self._start = self._most = _resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.003):
            self._most = max(self._most, _resident())

    @property
    def gained(self) -> int:
        """Peak memory beyond the start, in bytes."""
        return self._most - self._start


def _resident() -> int:
    """Return the resident memory of the process in bytes, from Linux's /proc."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


if __name__ == "__main__":
    main()
