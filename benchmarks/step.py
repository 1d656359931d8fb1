"""Seconds per CFG step with 0 to 3 ControlNets: ours beside diffusers and ComfyUI, in one process, alternating.

    python benchmarks/step.py [--sizes 128 256] [--nets 0 1 2 3] [--batches 1] [--dtype fp32] [--json FILE]
    COMFYUI_DIR=... python benchmarks/step.py     with ComfyUI as well
    COMFYUI_DIR=... python benchmarks/step.py --accelerate    with ComfyUI behind our Accelerate node as well
    python benchmarks/step.py --compiled          with diffusers under torch.compile as well

Full-size SD1.5 with random weights (speed does not depend on them), the same in all engines, so that the error
beside each time means something: max |x0 - x0 of diffusers in this dtype| / max |x0|, for the guided prediction.
Each engine is warmed up and then called in turn, forwards and backwards; median and spread (largest less
smallest). Memory is the most bytes of tensors alive during a step that were not there before it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.engine.runtime import DTYPES, Runtime
from measure import machine, peak_bytes, seconds
from peers import SHAPES, Accelerated, Case, Comfy, Diffusers, Ours, Step, make_case, write_weights

COLUMNS = {"size": 6, "batch": 6, "nets": 6, "seconds": 10, "spread": 9, "peak MB": 9, "error": 10, "prepare": 9}
OURS = ("graphs", "side_by_side", "wide", "compile")
"""What our engine does by choice."""
HEAD = f"{'engine':20}" + "".join(f"{name:>{width}}" for name, width in COLUMNS.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--nets", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shape", choices=list(SHAPES), default="sd15")
    parser.add_argument("--compiled", action="store_true", help="diffusers under torch.compile as well")
    parser.add_argument("--accelerate", action="store_true", help="ComfyUI behind our Accelerate node as well")
    parser.add_argument("--ours-only", action="store_true", help="no peers and no error, for a quick look")
    for name in OURS:
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help="as in `controlnet run`")
    parser.add_argument("--json", type=Path, help="where the rows are written, a list; each with its machine")
    args = parser.parse_args()
    ours = {name: getattr(args, name) for name in OURS}
    runtime = replace(Runtime.choose(args.device, args.dtype), **ours)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_weights(Path(folder), max(args.nets), args.shape)
        engines = make_engines(args, Path(folder), runtime)
        print(HEAD)
        rows = []
        for size in args.sizes:
            for batch in args.batches:
                for nets in args.nets:
                    for row in compare(engines, make_case(size, batch, nets), args.repeats, runtime.device):
                        rows.append({**row, "size": size, "batch": batch, "nets": nets, "dtype": args.dtype, **ours})
                        print(line(rows[-1]), flush=True)
    if args.json:
        about = {"shape": args.shape, "machine": machine(runtime.device)}
        args.json.write_text(json.dumps([{**row, **about} for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0


def make_engines(args: argparse.Namespace, folder: Path, runtime: Runtime) -> list[Any]:
    """Ours, then the peers that were asked for."""
    count = max(args.nets)
    engines: list[Any] = [Ours(folder, count, runtime)]
    if args.ours_only:
        return engines
    engines.append(Diffusers(folder, count, runtime))
    if args.compiled:
        engines.append(Diffusers(folder, count, runtime, compiled=True))
    if os.environ.get("COMFYUI_DIR"):
        comfy = Comfy(folder, count, runtime, Path(os.environ["COMFYUI_DIR"]))
        engines.append(comfy)
        if args.accelerate:
            engines += [Accelerated(comfy, folder, count, weights) for weights in ("shared", "packed")]
    return engines


def compare(engines: Sequence[Any], case: Case, repeats: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """One row per engine for a case."""
    steps: dict[str, Step] = {}
    rows: list[dict[str, Any]] = []

    def inside(remaining: Sequence[Any]) -> None:
        """Go into each engine's run in turn; in the innermost, all have their step ready."""
        if not remaining:
            rows.extend(measure(steps, repeats, device))
            return

        def ready(step: Step) -> None:
            steps[remaining[0].name] = step
            inside(remaining[1:])

        remaining[0].run(case, ready)

    engines[0].prepare(case)  # packs the weights, once per model
    prepare_seconds = seconds(lambda: engines[0].prepare(case), device)
    inside(engines)
    for row in rows:
        yield {**row, "prepare": prepare_seconds if row["engine"] == engines[0].name else None}


def measure(steps: dict[str, Step], repeats: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Time, memory and error of each step."""
    outputs = {name: step().float().cpu() for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats):
        for name in list(steps) if repeat % 2 else list(steps)[::-1]:
            times[name].append(seconds(steps[name], device))
    truth = outputs.get("diffusers")
    for name, step in steps.items():
        error = None if truth is None else float((outputs[name] - truth).abs().max() / truth.abs().max())
        yield {
            "engine": name,
            "seconds": statistics.median(times[name]),
            "spread": max(times[name]) - min(times[name]),
            "peak_bytes": peak_bytes(step, device),
            "error": error,
        }


def line(row: dict[str, Any]) -> str:
    """A row of the printed table."""
    error, prepare = row["error"], row["prepare"]
    return (
        f"{row['engine']:20}{row['size']:6}{row['batch']:6}{row['nets']:6}{row['seconds']:10.3f}{row['spread']:9.3f}"
        f"{row['peak_bytes'] / 1e6:9.1f}{'' if error is None else f'{error:.1e}':>10}"
        f"{'' if prepare is None else f'{prepare:.3f}':>9}"
    )


if __name__ == "__main__":
    sys.exit(main())
