"""Does correcting the strength while sampling make fidelity more even? Closed against open loop, on the demo model.

    python benchmarks/closed_loop.py [--scenes 16] [--kind canny] [--target 0.75] [--start 0.6] [--json FILE]

The closed loop measures the prediction of every k-th step as Sample to Target does, and corrects the strength. The open
loop samples the same scenes with one constant strength: the mean of the closed loop's over all scenes and steps.

fidelity    edge F1 of the picture and its hint: mean over the scenes
spread      its standard deviation over the scenes
error       median distance from the target
near        scenes within 0.03 of the target
moved       mean square difference of the finished latent from that of the open loop, median; `one step` is that of a
            strength which is 0.05 higher, for comparison
cost        seconds of a run over those of the open loop

Finished scenes are kept beside FILE until all are done, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.analysis.closed_loop import INTEGRAL, PROPORTIONAL, StrengthLoop
from comfyui_controlnet_core.controlnet_core.analysis.fidelity import compare_edges
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.samplers import Step
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.pipeline import generate
from comfyui_controlnet_core.controlnet_core.run_options import DEFAULTS
from comfyui_controlnet_core.controlnet_core.training.demo_world import render_seed
from comfyui_controlnet_core.preprocessors import process
from fidelity import ASSETS, FIRST_SEED, SETTINGS, Demo, hint, load_demo
from torch import Tensor

STEPS, NEAR, HIGHER = 20, 0.03, 0.05
TUNED = 8
"""The default gains were chosen on so many scenes, the first ones. The others are summarised on their own too."""


@dataclass
class Lab:
    """The demo model with one net."""

    demo: Demo
    net: ControlNet
    kind: str

    def fidelity(self, row: int, latent: Tensor) -> float:
        """Return the edge F1 of a latent (1, 4, h, w) and the hint of a scene."""
        edges = hint(self.kind, self.demo.scenes[row])[0].amax(0).numpy() > 0.5
        found = np.asarray(process(self.kind, self.demo.decode(latent)[0][None]))[0].max(-1) > 0.5
        return compare_edges(edges, found).score

    def sample(self, row: int, strength: float, loop: StrengthLoop | None = None) -> tuple[Tensor, float]:
        """Sample a scene, with a loop or without. Returns the latent (1, 4, h, w) and the seconds."""
        schedule = self.demo.model.schedule

        def on_step(step: Step) -> None:
            if loop is not None and loop.is_due(step.index):
                loop.observe(
                    step.index, schedule.sigma_to_percent(float(step.sigma)), self.fidelity(row, step.denoised)
                )

        unit = ControlUnit(self.net, hint(self.kind, self.demo.scenes[row]), strength, curve=loop)
        halves = [Condition(self.demo.texts[row : row + 1], (unit,))], [Condition(self.demo.empty, (unit,))]
        began = time.perf_counter()
        made = generate(
            self.demo.model, *halves, torch.zeros(1, 4, 16, 16), replace(SETTINGS, steps=STEPS),
            backend=self.demo.backend, batch_index=[0], options=replace(DEFAULTS, on_step=on_step),
        )  # fmt: skip
        return made, time.perf_counter() - began


def closed(lab: Lab, row: int, args: argparse.Namespace, every: int) -> dict[str, Any]:
    """Measure one scene in closed loop. The latent is kept to compare it with the open loop's."""
    loop = StrengthLoop(args.target, args.start, every, args.proportional, args.integral)
    latent, seconds = lab.sample(row, args.start, loop)
    return {
        "fidelity": lab.fidelity(row, latent), "strength": loop.mean_strength, "seconds": seconds,
        "strengths": [round(m.strength, 3) for m in loop.measured], "latent": latent.flatten().tolist(),
    }  # fmt: skip


def opened(lab: Lab, row: int, strength: float) -> dict[str, Any]:
    """Measure one scene with a constant strength, and how far a slightly higher one moves its latent."""
    latent, seconds = lab.sample(row, strength)
    other, _ = lab.sample(row, strength + HIGHER)
    return {
        "fidelity": lab.fidelity(row, latent), "strength": strength, "seconds": seconds,
        "one step": float((other - latent).square().mean()), "latent": latent.flatten().tolist(),
    }  # fmt: skip


def summarise(rows: list[dict[str, Any]], reference: list[dict[str, Any]], target: float) -> dict[str, float]:
    """Compare runs of some scenes with the open loop's."""
    fidelities = np.array([row["fidelity"] for row in rows])
    pairs = zip(rows, reference, strict=True)
    moved = [float(np.mean(np.square(np.subtract(a["latent"], b["latent"])))) for a, b in pairs]
    errors = np.abs(fidelities - target)
    return {
        "scenes": len(rows), "fidelity": float(fidelities.mean()), "spread": float(fidelities.std()),
        "error": float(np.median(errors)), "near": int((errors <= NEAR).sum()),
        "strength": float(np.mean([row["strength"] for row in rows])), "moved": float(np.median(moved)),
        "cost": float(np.median([a["seconds"] / b["seconds"] for a, b in zip(rows, reference, strict=True)])),
    }  # fmt: skip


def summarise_all(rows: dict[str, list[dict[str, Any]]], target: float) -> dict[str, dict[str, float]]:
    """Compare every loop with the open one, on the same scenes."""
    table = {name: summarise(own, rows["open"], target) for name, own in rows.items()}
    table["open"]["one step"] = float(np.median([row["one step"] for row in rows["open"]]))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--kind", default="canny", choices=["canny", "scribble"])
    parser.add_argument("--target", type=float, default=0.75)
    parser.add_argument("--start", type=float, default=0.6)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--proportional", type=float, default=PROPORTIONAL)
    parser.add_argument("--integral", type=float, default=INTEGRAL)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "scenes", "every")}
    rows: dict[str, list[dict[str, Any]]] = {}
    part = None if args.json is None else args.json.with_suffix(".part")
    if part is not None and part.exists():
        rows = json.loads(part.read_text("utf-8"))
    scenes = [render_seed(FIRST_SEED + i) for i in range(args.scenes)]
    net = load_controlnet(ASSETS / f"demo_{args.kind}.safetensors", dtype=torch.float32)[0]
    lab = Lab(load_demo(ASSETS, scenes), net, args.kind)

    def measure(name: str, one: Any) -> list[dict[str, Any]]:
        own = rows.setdefault(name, [])
        while len(own) < args.scenes:
            own.append(one(len(own)))
            if part is not None:
                part.write_text(json.dumps(rows), encoding="utf-8")
        return own

    loops = {every: measure(f"every {every}", lambda row, k=every: closed(lab, row, args, k)) for every in args.every}
    strength = float(np.mean([row["strength"] for row in loops[args.every[0]]]))
    measure("open", lambda row: opened(lab, row, strength))
    tables = {"all scenes": summarise_all(rows, args.target)}
    if args.scenes > TUNED:
        others = {name: own[TUNED:] for name, own in rows.items()}
        tables[f"scenes {TUNED + 1} to {args.scenes}"] = summarise_all(others, args.target)
    for which, table in tables.items():
        for name, result in table.items():
            print(f"{which}, {name}", {key: round(value, 4) for key, value in result.items()})
    if args.json is not None and part is not None:
        # The latents are needed no more.
        kept = {name: [{k: v for k, v in row.items() if k != "latent"} for row in own] for name, own in rows.items()}
        report = {"settings": settings, "tables": tables, "rows": kept}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        part.unlink()


if __name__ == "__main__":
    main()
