"""Measure what `controlnet run --each` adds to a run of a workflow: keys, locks, manifest, names, and Ray.

    python benchmarks/each_overhead.py [--rows 100] [--steps 1] [--ray]

The demo model draws one picture for each row (128 x 128, prompts differ). In one process with one thread, and in turns,
a row is made by a plain run of the workflow, and by all that --each does for it. The difference of each pair is the
overhead; median and quartiles are printed, in seconds of the processor too, which do not depend on what else runs. The
computation itself differs from run to run, so what is done before and after the run is timed alone.

With --ray the command is run as a whole: serially, with one worker and with two, each with one thread, and the seconds
per row between the first row and the last are printed, and the seconds until the first row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen

import numpy as np
from comfyui_controlnet_core.workflows import cli
from comfyui_controlnet_core.workflows.bundled import find_workflow
from comfyui_controlnet_core.workflows.combinations import Combinations
from comfyui_controlnet_core.workflows.each_run import open_runner
from comfyui_controlnet_core.workflows.each_sources import Entry
from comfyui_controlnet_core.workflows.formats import read_document
from comfyui_controlnet_core.workflows.reporting import Reporter
from comfyui_controlnet_core.workflows.row_log import RowLog

WORKFLOW = "canny_to_image"
PROMPT = "CNCore_EncodePrompt.prompt"


def spread(values: Sequence[float]) -> str:
    """Median and quartiles in milliseconds."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{1000 * middle:.1f} ms ({1000 * low:.1f} to {1000 * high:.1f})"


def in_one_process(count: int, steps: int) -> None:
    """Print the overhead of a row."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        options = ["run", WORKFLOW, "--output", str(output), "--set", f"CNCore_Sample.steps={steps}", "--device", "cpu"]
        args = cli.build_parser("run").parse_args([*options, "--threads", "1", "--quiet"])
        runner = open_runner(args, read_document(find_workflow(WORKFLOW)), {}, Reporter(quiet=True))
        entries = [Entry(f"p{index}", {PROMPT: f"a red ball {index}"}) for index in range(2 * count + 4)]
        rows = Combinations([entries], (None,), paired=False)
        log = RowLog(output, [], lambda line: None)
        plain, each, before, after = [], [], [], []
        for index in range(0, len(rows), 2):
            began = now()
            runner.run(runner.graph_of(rows[index]))
            plain.append(now() - began)
            began = now()
            (task,) = log.waiting([rows[index + 1]], runner.key)
            before.append(now() - began)
            made = runner.make(task, output)
            run = now()
            log.record(task, made)
            after.append(now() - run)
            each.append(now() - began)
    # The first pairs load models.
    pairs = [two - one for one, two in zip(plain, each, strict=True)][2:]
    for kind, name in enumerate(("wall clock", "processor")):
        shown = [spread([value[kind] for value in values]) for values in (plain[2:], each[2:], pairs)]
        print(f"{name}: plain run {shown[0]}, row of --each {shown[1]}, difference {shown[2]}")
        print(f"  plan and lock {spread([t[kind] for t in before[2:]])}, record {spread([t[kind] for t in after[2:]])}")


def now() -> np.ndarray:
    """Seconds: wall clock, and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def whole_command(count: int, steps: int) -> None:
    """Print seconds until the first row and per row, serially and with Ray."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.txt")
        prompts.write_text("".join(f"a red ball {index}\n" for index in range(count)))
        base = [sys.executable, "-m", "comfyui_controlnet_core", "run", WORKFLOW, "--each", f"{PROMPT}={prompts}"]
        base += ["--set", f"CNCore_Sample.steps={steps}", "--device", "cpu", "--threads", "1", "--quiet", "--output"]
        ways = {"serial": [], "Ray, 1 worker": ["--ray", "--workers", "1"], "Ray, 2 workers": ["--ray"]}
        for name, more in ways.items():
            output = Path(folder, name)
            manifest = output / "manifest.jsonl"
            began = time.perf_counter()
            process = Popen([*base, str(output), *more, *(["--worker-cores", "1"] if more else [])])
            ends: list[float] = []
            while process.poll() is None:
                lines = manifest.read_bytes().count(b"\n") if manifest.exists() else 0
                ends += [time.perf_counter()] * (lines - len(ends))
                time.sleep(0.002)
            seconds = [json.loads(line)["seconds"] for line in manifest.read_text().splitlines()]
            # What a row takes besides its making: with one worker, the way there and back.
            gap = (ends[-1] - ends[2]) / len(ends[3:]) - statistics.fmean(seconds[3:]) / (2 if "2" in name else 1)
            print(
                f"{name}: first row after {ends[0] - began:.1f} s, end {time.perf_counter() - ends[-1]:.1f} s after "
                f"the last; a row {spread(seconds[3:])}, and {1000 * gap:.1f} ms between rows"
            )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--ray", action="store_true")
    args = parser.parse_args()
    (whole_command if args.ray else in_one_process)(args.rows, args.steps)


if __name__ == "__main__":
    main()
