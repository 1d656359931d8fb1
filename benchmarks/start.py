"""Measure how long the command `controlnet` needs to start: its help, and a run up to its first node.

    python benchmarks/start.py [--workflow canny_to_image] [--repeats 7]

Each is a new process. Wall time and processor time (all threads), the smallest and the median of the repeats. `python`
and `import torch` are the floor: the first is what the interpreter needs, the second what no run can avoid.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

COMMAND = [sys.executable, "-m", "comfyui_controlnet_core"]
FIRST_NODE = "1/"
"""The beginning of the line that a run prints when its first node is done."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workflow", default="canny_to_image")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(f"{'':24}{'wall s':>9}{'median':>9}{'cpu s':>9}{'median':>9}")
    with tempfile.TemporaryDirectory() as folder:
        run = [*COMMAND, "run", args.workflow, "--output", folder]
        starts = {
            "python": ([sys.executable, "-c", "pass"], ""),
            "import torch": ([sys.executable, "-c", "import torch"], ""),
            "controlnet --help": ([*COMMAND, "--help"], ""),
            "run, to the first node": (run, FIRST_NODE),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in starts}
        # In turn, so that a disturbance of the machine meets all of them.
        for _ in range(args.repeats):
            for name, (command, line) in starts.items():
                taken[name].append(start(command, line))
    for name, times in taken.items():
        columns = (value for each in zip(*times, strict=True) for value in (min(each), statistics.median(each)))
        print(f"{name:24}" + "".join(f"{value:9.3f}" for value in columns))
    return 0


def start(command: list[str], line: str) -> tuple[float, float]:
    """Return wall and processor seconds of a command until it prints a line with this beginning; "": until its end."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        last = next((text for text in process.stderr if line and text.lstrip().startswith(line)), "")
        wall, used = time.perf_counter() - began, sum(processor_seconds(process.pid))
        process.kill()
    if line and not last:
        raise SystemExit(f"{' '.join(command)} printed no line that begins with {line!r}")
    return wall, used


def processor_seconds(process: int) -> Iterator[float]:
    """Yield user and system seconds of a process, also of one that has ended and was not waited for (Linux)."""
    # The name may contain spaces; fields are counted from behind it.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    yield from (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:13])


if __name__ == "__main__":
    sys.exit(main())
