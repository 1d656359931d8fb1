"""Measure what the node Shortcuts saves inside ComfyUI: seconds of a sampling, and number of runs of the ControlNets.

    COMFYUI_DIR=... python benchmarks/shortcuts_editor.py [--size 128] [--nets 1] [--steps 20] [--repeats 3]
        [--weights packed] [--shape small] [--json FILE]

SD1.5 of full size with random weights at cfg 7. One sampling of ComfyUI, with its start and its end, does as many
evaluations as there are steps. The row "native" has ComfyUI's own nets and UNet, the other rows have ours behind
Accelerate. All run in one process, each row once per turn after a warm-up; the times are medians. The loss of exactness
is measured by `shortcuts.py`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.run_options import EXACT, RunOptions, Shortcuts
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from measure import machine, seconds
from peers import SHAPES, Accelerated, Comfy, Pool, make_case, write_weights

ROWS = {
    "exact": EXACT,
    "nets at every 2nd step": Shortcuts(reuse_every=2),
    "nets at every 3rd step": Shortcuts(reuse_every=3),
    "encoder at every 2nd step": Shortcuts(encoder_every=2),
    "nets and lower levels at every 2nd step": Shortcuts(deep_every=2),
    "nets and lower levels at every 3rd step": Shortcuts(deep_every=3),
}
NATIVE = "native"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--nets", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", choices=("shared", "packed"), default="shared")
    parser.add_argument("--shape", choices=list(SHAPES), default="sd15")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if "COMFYUI_DIR" not in os.environ:
        parser.error("COMFYUI_DIR is not set: set it to a checkout of ComfyUI")
    runtime, case = Runtime.choose(args.device, "fp32"), make_case(args.size, 1, args.nets)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_weights(Path(folder), args.nets, args.shape)
        engines = make_engines(Path(folder), args.nets, runtime, args.weights)
        rows: dict[str, dict[str, Any]] = {name: {"what": name, "times": []} for name in engines}
        for turn in range(args.repeats + 1):
            for name, engine in engines.items():
                runs = counted(engine)
                took = seconds(lambda engine=engine: engine.run(case, repeated(args.steps)), runtime.device)
                rows[name]["net_runs"] = runs()
                if turn:
                    rows[name]["times"].append(took)
    print(f"{'what':42}{'seconds':>9}{'spread':>8}{'of exact':>10}{'of native':>11}{'net runs':>10}")
    for row in rows.values():
        print(line(row, rows))
    if args.json:
        about = {key: value for key, value in vars(args).items() if key != "json"}
        report = {"machine": machine(runtime.device), **about, "rows": list(rows.values())}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def make_engines(folder: Path, nets: int, runtime: Runtime, weights: str) -> dict[str, Any]:
    """Return plain ComfyUI, and ComfyUI with Accelerate and Shortcuts, all on one set of nets and weights."""
    comfy = Comfy(folder, nets, runtime, Pool(runtime.device), Path(os.environ["COMFYUI_DIR"]))
    ours = Accelerated(comfy, folder, nets, weights)
    wrappers = importlib.import_module("comfyui_controlnet_core.nodes.comfyui.shortcut_wrappers")
    engines: dict[str, Any] = {NATIVE: comfy}
    for name, shortcuts in ROWS.items():
        engines[name] = copy(ours)
        engines[name].unet = wrappers.with_options(ours.unet, RunOptions(shortcuts), None)
    return engines


def repeated(steps: int) -> Callable[[Callable[[], Any]], None]:
    """Return the body of a sampling: a number of evaluations."""

    def body(step: Callable[[], Any]) -> None:
        for _ in range(steps):
            step()

    return body


def counted(engine: Any) -> Callable[[], int]:
    """Start counting the runs of an engine's nets. Returns a function that stops and returns the count."""
    calls: list[int] = []
    nets = [net.control_model if hasattr(net, "control_model") else net.shared.placed.net for net in engine.nets]
    middles = [net.middle_block if hasattr(net, "middle_block") else net.middle for net in nets]
    handles = [middle.register_forward_hook(lambda *_: calls.append(1)) for middle in middles]

    def stop() -> int:
        for handle in handles:
            handle.remove()
        return len(calls)

    return stop


def line(row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """Return a row of the table, with its median as a fraction of exact and native."""
    median = {name: statistics.median(other["times"]) for name, other in rows.items()}
    own, spread = median[row["what"]], max(row["times"]) - min(row["times"])
    shares = own / median["exact"], own / median[NATIVE]
    return f"{row['what']:42}{own:9.2f}{spread:8.2f}{shares[0]:10.2f}{shares[1]:11.2f}{row['net_runs']:10}"


if __name__ == "__main__":
    sys.exit(main())
