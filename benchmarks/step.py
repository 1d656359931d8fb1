"""Measure seconds per guided step with 0 to 3 ControlNets: ours, diffusers and ComfyUI in one process, in turn.

    python benchmarks/step.py [--sizes 128 256] [--nets 0 1 2 3] [--batches 1] [--dtype fp32] [--json FILE]
    COMFYUI_DIR=... python benchmarks/step.py     adds ComfyUI
    COMFYUI_DIR=... python benchmarks/step.py --accelerate    adds ComfyUI behind our Accelerate node
    python benchmarks/step.py --fast --compiled   adds diffusers' fast recipe, plain and compiled
    python benchmarks/step.py --openvino --busy 1 adds OpenVINO, and times with a busy process per core

Full-size SD1.5 with random weights (speed does not depend on them). All engines have the same weights, so there is an
error beside each time: max |x0 - x0 of diffusers in float32| / max |x0|, for the guided prediction. After a warm-up
the engines are called in turn, forwards and backwards. Times are the median and the spread (largest less smallest).
Memory is the peak of bytes of tensors during a step that were not alive before it.

first         seconds of an engine's first call in a case, with compiling and packing for a new size
busy          with --busy K: median and spread while K endless processes per core run, and the ratio to the quiet time
prepare       seconds of what is done once per run; the weights are packed before
other seed    the same for a run that differs only in the seed: what was prepared is used again

Rows of the same case and options in FILE are replaced, the others are kept.
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
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.runtime.device import DTYPES, Runtime
from load import busy
from measure import machine, peak_bytes, seconds
from openvino_peer import OpenVINO
from peers import (
    RECIPES,
    SHAPES,
    Accelerated,
    Case,
    Comfy,
    Diffusers,
    Ours,
    Pool,
    Step,
    make_case,
    write_weights,
)
from torch import Tensor

COLUMNS = {
    **{"size": 6, "batch": 6, "nets": 6, "seconds": 10, "spread": 9, "peak MB": 9, "error": 10},
    **{"first": 9, "prepare": 9, "other seed": 12},
}
OURS = ("graphs", "side_by_side", "wide", "compile")
"""The options of our engine, by the names that kept rows have."""
FIELDS = {"side_by_side": "parallel_nets", "wide": "fused_qkv"}
"""Those whose field of `Runtime` has another name."""
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
    parser.add_argument("--fast", action="store_true", help="add diffusers with channels_last and fused projections")
    parser.add_argument("--compiled", action="store_true", help="add the same under torch.compile")
    parser.add_argument("--openvino", action="store_true", help="add OpenVINO (pip install openvino), on a CPU")
    parser.add_argument("--without-diffusers", action="store_true", help="do not time diffusers; errors stay")
    parser.add_argument(
        "--busy", type=int, nargs="+", default=[], help="busy processes per core, one or several levels"
    )
    parser.add_argument("--weights", type=Path, help="keep the random weights here and use them the next time")
    parser.add_argument("--accelerate", action="store_true", help="add ComfyUI behind our Accelerate node")
    parser.add_argument("--ours-only", action="store_true", help="measure only ours, without errors, for a quick look")
    for name in OURS:
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help="the same as in `controlnet run`")
    parser.add_argument("--json", type=Path, help="file with the rows, a list; each row names its machine")
    args = parser.parse_args()
    ours = {name: getattr(args, name) for name in OURS}
    runtime = replace(
        Runtime.choose(args.device, args.dtype), **{FIELDS.get(name, name): on for name, on in ours.items()}
    )
    began = datetime.now().isoformat(timespec="seconds")
    of_run = {"shape": args.shape, "run": began, "machine": machine(runtime.device)}
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = (args.weights or Path(temporary)) / args.shape
        if not (folder / f"net{max(args.nets) - 1}" if max(args.nets) else folder / "unet").exists():
            write_weights(folder, max(args.nets), args.shape)
        cases = [make_case(*axes) for axes in product(args.sizes, args.batches, args.nets)]
        truths = [None] * len(cases) if args.ours_only else exact_outputs(folder, cases, runtime)
        engines = make_engines(args, folder, runtime)
        print(HEAD)
        for case, truth in zip(cases, truths, strict=True):
            size, batch = 8 * case.x.shape[-1], len(case.x)
            about = {"size": size, "batch": batch, "nets": case.nets, "dtype": args.dtype, **ours, **of_run}
            made = compare(engines, case, args.repeats, runtime.device, truth, args.busy)
            rows = [{**row, **about} for row in made]
            print("\n".join(line(row) for row in rows), flush=True)
            if args.json:  # after each case, so that an interruption does not lose the earlier ones
                keep(args.json, rows)
    return 0


def keep(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows to a file. They replace rows of the same case and options, and follow the others."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    mine = {_case(row) for row in rows}
    whole = [*(row for row in kept if _case(row) not in mine), *rows]
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("engine", "shape", "dtype", "size", "batch", "nets", *OURS))


def make_engines(args: argparse.Namespace, folder: Path, runtime: Runtime) -> list[Any]:
    """Return our engine, then the other packages that were requested."""
    count = max(args.nets)
    engines: list[Any] = [Ours(folder, count, runtime)]
    if args.ours_only:
        return engines
    if args.openvino:
        engines.append(OpenVINO(folder, runtime))
    pool = Pool(runtime.device)
    recipes = [name for name in RECIPES if (not args.without_diffusers if name == "plain" else getattr(args, name))]
    engines += [Diffusers(folder, count, runtime, pool, recipe) for recipe in recipes]
    if os.environ.get("COMFYUI_DIR"):
        comfy = Comfy(folder, count, runtime, pool, Path(os.environ["COMFYUI_DIR"]))
        engines.append(comfy)
        if args.accelerate:
            engines += [Accelerated(comfy, folder, count, weights) for weights in ("shared", "packed")]
    return engines


def exact_outputs(folder: Path, cases: Sequence[Case], runtime: Runtime) -> list[Tensor]:
    """Return the prediction of diffusers in float32 for each case, (B, 4, h, w). Its weights are freed again."""
    plain = replace(runtime, dtype=torch.float32)
    engine = Diffusers(folder, max(case.nets for case in cases), plain, Pool(runtime.device))
    outputs: list[Tensor] = []
    for case in cases:
        engine.run(case, lambda step: outputs.append(step().float().cpu()))
    return outputs


def compare(
    engines: Sequence[Any],
    case: Case,
    repeats: int,
    device: torch.device,
    truth: Tensor | None = None,
    busy_levels: Sequence[int] = (),
) -> Iterator[dict[str, Any]]:
    """Measure a case. Yields one row per engine.

    truth: (B, 4, h, w), what errors are measured against; None: diffusers' output in the same dtype, if it is there.
    """
    steps: dict[str, Step] = {}
    rows: list[dict[str, Any]] = []

    def inside(remaining: Sequence[Any]) -> None:
        """Enter the run of each engine in turn; in the innermost call, all steps are ready."""
        if not remaining:
            rows.extend(measure(steps, repeats, device, truth, busy_levels))
            for row, engine in zip(rows, engines, strict=True):
                counted = engine.counts_memory
                row["peak_bytes"] = peak_bytes(steps[engine.name], device) + engine.buffer_bytes if counted else None
            return

        def ready(step: Step) -> None:
            steps[remaining[0].name] = step
            inside(remaining[1:])

        remaining[0].run(case, ready)

    prepared = preparing(engines[0], case, device)
    inside(engines)
    nothing = dict.fromkeys(prepared)
    for row in rows:
        yield {**row, **(prepared if row["engine"] == engines[0].name else nothing)}


def preparing(ours: Ours, case: Case, device: torch.device) -> dict[str, float]:
    """Measure the seconds that our engine needs to prepare a run, and a second run that differs only in the seed."""
    ours.prepare(case)  # packs the weights, once per model
    runs = ours.prepare_with_new_seeds(case)
    made: list[Any] = []
    first, further = (seconds(lambda: made.append(next(runs)), device) for _ in range(2))
    if made[0] is not made[1]:
        raise RuntimeError("a run with another seed was prepared again instead of using what the first run prepared")
    return {"prepare": first, "other_seed": further}


def measure(
    steps: dict[str, Step], repeats: int, device: torch.device, truth: Tensor | None, busy_levels: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Measure time and error of each step, quiet and at each level of load."""
    outputs: dict[str, Tensor] = {}
    first: dict[str, float] = {}
    for name, step in steps.items():
        first[name] = seconds(lambda name=name, step=step: outputs.update({name: step()}), device)
    outputs = {name: output.float().cpu() for name, output in outputs.items()}
    times = in_turn(steps, repeats, device)
    loaded: dict[int, dict[str, list[float]]] = {}
    for level in busy_levels:
        with busy(level):
            loaded[level] = in_turn(steps, repeats, device)
    truth = outputs.get("diffusers") if truth is None else truth
    for name in steps:
        error = None if truth is None else float((outputs[name] - truth).abs().max() / truth.abs().max())
        quiet = statistics.median(times[name])
        yield {
            "engine": name,
            "seconds": quiet,
            "spread": max(times[name]) - min(times[name]),
            "error": error,
            "first": first[name],
            **({"busy": [busy_row(level, loaded[level][name], quiet) for level in loaded]} if loaded else {}),
        }


def in_turn(steps: dict[str, Step], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Measure the seconds of each step, called in turn, forwards and backwards."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats):
        for name in list(steps) if repeat % 2 else list(steps)[::-1]:
            times[name].append(seconds(steps[name], device))
    return times


def busy_row(level: int, times: Sequence[float], quiet: float) -> dict[str, float]:
    """Return median, spread and ratio to the quiet time, with `level` busy processes per core."""
    median = statistics.median(times)
    return {"per_core": level, "seconds": median, "spread": max(times) - min(times), "ratio": median / quiet}


def line(row: dict[str, Any]) -> str:
    """Return a row of the printed table."""
    cells = {
        "peak_bytes": (9, lambda peak: f"{peak / 1e6:.1f}"),
        "error": (10, lambda error: f"{error:.1e}"),
        "first": (9, lambda seconds: f"{seconds:.2f}"),
        "prepare": (9, lambda seconds: f"{seconds:.3f}"),
        "other_seed": (12, lambda seconds: f"{seconds:.4f}"),
    }
    case = f"{row['engine']:20}{row['size']:6}{row['batch']:6}{row['nets']:6}{row['seconds']:10.3f}{row['spread']:9.3f}"
    case += "".join(f"{'' if row[k] is None else words(row[k]):>{width}}" for k, (width, words) in cells.items())
    for load in row.get("busy", ()):
        case += f"\n{'':10}{load['per_core']} busy per core: {load['seconds']:.3f} s ({load['spread']:.3f}), "
        case += f"{load['ratio']:.2f} of the quiet time"
    return case


if __name__ == "__main__":
    sys.exit(main())
