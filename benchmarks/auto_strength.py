"""Does the search for a strength hit its target? On held-out scenes of the demo world, with the demo's ControlNets.

    python benchmarks/auto_strength.py [--scenes 64] [--kinds canny scribble] [--json FILE]

A scene counts if its target can be reached (by the search, or by strength 0.5, 1 or 1.5) and is not reached without
control already. Cost is in full runs of the sampler, the last one included, whose picture is the result.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.analysis.fidelity import compare_edges
from comfyui_controlnet_core.controlnet_core.analysis.target_strength import TOLERANCE, Measure, find_strength
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.training.demo_world import render_seed
from comfyui_controlnet_core.preprocessors import process
from fidelity import ASSETS, FIRST_SEED, SETTINGS, Demo, hint, load_demo

STEPS = 20


def main() -> None:
    """Search on every scene, and print how often the target was hit, and at what cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--kinds", nargs="+", default=["canny", "scribble"], choices=["canny", "scribble"])
    parser.add_argument("--targets", nargs="+", type=float, default=[0.6, 0.8])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    scenes = [render_seed(FIRST_SEED + i) for i in range(args.scenes)]
    demo, empty = load_demo(ASSETS, scenes), torch.zeros(1, 4, 16, 16)
    rows = []
    for kind in args.kinds:
        net = load_controlnet(ASSETS / f"demo_{kind}.safetensors", dtype=torch.float32)[0]
        for target in args.targets:
            rows.append({"kind": kind, "target": target, **measured(demo, net, kind, target, empty)})
            print(rows[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps({"steps": STEPS, "tolerance": TOLERANCE, "rows": rows}, indent=2), "utf-8")


def fidelity_of(demo: Demo, net: ControlNet, kind: str, row: int, empty: torch.Tensor) -> Measure:
    """What `find_strength` measures: the edge F1 of a scene's picture and its hint."""
    picture = hint(kind, demo.scenes[row])
    edges = picture[0].amax(0).numpy() > 0.5

    def fidelity(strength: float, steps: int) -> float:
        units = (ControlUnit(net, picture, strength),) if strength else ()
        latent = demo.latent(row, units, empty, replace(SETTINGS, steps=steps))
        found = np.asarray(process(kind, demo.decode(latent)[0][None]))[0].max(-1) > 0.5
        return compare_edges(edges, found).score

    return fidelity


def measured(demo: Demo, net: ControlNet, kind: str, target: float, empty: torch.Tensor) -> dict[str, object]:
    """One row: scenes in which the target can be reached, and of these how many were hit."""
    errors, costs, said, missed = [], [], 0, 0
    for row in range(len(demo.scenes)):
        fidelity = fidelity_of(demo, net, kind, row, empty)
        if fidelity(0.0, STEPS) > target:
            continue  # there is nothing to search
        found = find_strength(fidelity, target, STEPS)
        if not found.reached and max(fidelity(s, STEPS) for s in (0.5, 1.0, 1.5)) < target - TOLERANCE:
            said += 1
            continue
        missed += not found.reached
        errors.append(abs(found.best.fidelity - target))
        costs.append(len(found.short) / 2 + len(found.full))
    hit = int(sum(error <= TOLERANCE for error in errors))
    return {
        "scenes": len(errors), "hit": hit, "median error": round(float(np.median(errors)), 4),
        "largest error": round(float(max(errors)), 4), "said to be out of reach": int(said),
        "said so wrongly": int(missed), "mean cost": round(float(np.mean(costs)), 2), "largest cost": max(costs),
    }  # fmt: skip


if __name__ == "__main__":
    main()
