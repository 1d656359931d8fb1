"""Compare the ranking of blocks by BlockSensitivity with brute-force ablation, on the demo ControlNets.

    python benchmarks/sensitivity.py [--scenes 8] [--json FILE] [--picture FILE]

For each net and scene it measures:

information     the Fisher information about the strength of each block, at 4 of 12 steps, on the picture that the net
                made; the node measures the same
moved           how far the finished latent moves (mean square) if the weight of one block is 0
fidelity lost   how much fidelity is lost then

rank: Spearman's correlation of two rankings of the blocks, of medians over the scenes. Means are not used: without one
block, a single scene sometimes becomes a different picture, and would decide alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.analysis.plots import (
    BAR,
    BAR_HEIGHT,
    FAINT,
    MARGIN,
    SECOND,
    draw_bars,
    new_page,
)
from comfyui_controlnet_core.controlnet_core.analysis.sensitivity import Sensitivity, measure, sampled_steps
from comfyui_controlnet_core.controlnet_core.control.modes import block_names
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.pipeline import SampleSettings
from comfyui_controlnet_core.controlnet_core.training.demo_world import render_seed
from fidelity import ASSETS, FIRST_SEED, KINDS, SCORES, SETTINGS, Demo, hint, load_demo, load_net
from scipy.stats import spearmanr
from torch import Tensor

BLOCKS = 7
STEPS, SAMPLES = 12, 4
PROBE = SampleSettings(7, STEPS, cfg=1.0, sampler="euler", scheduler="normal", leftover_noise=False)
ERROR = "#d55e00"


def without(block: int) -> tuple[float, ...]:
    """Return block weights of 1, and 0 for one block."""
    return tuple(0.0 if i == block else 1.0 for i in range(BLOCKS))


def information(demo: Demo, row: int, unit: ControlUnit, x0: Tensor) -> Sensitivity:
    """Measure the Fisher information on one picture."""
    points = sampled_steps(STEPS, SAMPLES)

    def predict(point: int, factors: tuple[float, ...]) -> Tensor:
        settings = replace(PROBE, start_step=points[point], end_step=points[point] + 1)
        return demo.latent(row, (replace(unit, block_weights=factors),), x0, settings)

    return measure(predict, x0, BLOCKS, [str(p + 1) for p in points])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation."""
    return float(spearmanr(a, b).statistic)


def study(demo: Demo, kind: str, net: torch.nn.Module, count: int) -> dict[str, Any]:
    """Measure information and ablation of one net; medians over the first `count` scenes that its score counts."""
    score = SCORES[kind][1]
    rows = [i for i, scene in enumerate(demo.scenes) if score(scene, scene.image)][:count]
    informations, moved, lost = [], [], []
    for row in rows:
        scene, unit = demo.scenes[row], ControlUnit(net, hint(kind, demo.scenes[row]), name=kind)
        empty = torch.zeros(1, 4, 16, 16)
        whole = demo.latent(row, (unit,), empty, SETTINGS)
        informations.append(information(demo, row, unit, whole).information)
        cut = [demo.latent(row, (replace(unit, block_weights=without(b)),), empty, SETTINGS) for b in range(BLOCKS)]
        moved.append([float((latent - whole).square().mean()) for latent in cut])
        scores = [float(np.mean(score(scene, picture))) for picture in demo.decode(torch.cat([whole, *cut]))]
        lost.append([scores[0] - s for s in scores[1:]])
    each = {"information": informations, "moved": moved, "fidelity lost": lost}
    found: dict[str, Any] = {name: np.median(values, axis=0).tolist() for name, values in each.items()}
    found["scenes"] = len(rows)
    found["by scene"] = each
    found["rank"] = spearman(found["information"], found["moved"])
    found["rank by fidelity"] = spearman(found["information"], found["fidelity lost"])
    found["rank of the two ablations"] = spearman(found["moved"], found["fidelity lost"])
    found["rank of the means"] = spearman(*(np.mean(each[name], axis=0).tolist() for name in ("information", "moved")))
    found["weights"] = Sensitivity(tuple(found["information"]), (), (), ()).weights
    return found


def draw(results: dict[str, dict], path: Path) -> None:
    """Draw one row for each net: information, ablation and loss of fidelity by block."""
    from PIL import Image

    row = 26 + BAR_HEIGHT * BLOCKS + 60
    parts = (("information", BAR), ("moved", SECOND), ("fidelity lost", ERROR))
    words = {"moved": "change of the latent without it", "information": "Fisher information"}
    with new_page(1180, 20 + row * len(results)) as page:
        for line, (kind, result) in enumerate(results.items()):
            top = 20 + line * row
            page.text(MARGIN, top, kind, 16)
            page.text(MARGIN + 110, top + 2, f"rank correlation {result['rank']:.2f}", color=FAINT)
            for column, (name, color) in enumerate(parts):
                values = [max(0.0, v) for v in result[name]]
                heading = words.get(name, "fidelity lost without it")
                draw_bars(page, 60 + column * 380, top + 28, 320, block_names(BLOCKS), values, heading, color)
        pixels = page.pixels()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255.0 + 0.5).astype(np.uint8)).save(path, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", default=[k for k in KINDS if (ASSETS / f"demo_{k}.safetensors").exists()])
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="a PNG with the bars of all nets")
    args = parser.parse_args()
    started = time.monotonic()
    # only a third of the scenes has a mannequin, and the pose net needs `args.scenes` of them
    demo = load_demo(args.assets, [render_seed(FIRST_SEED + i) for i in range(3 * args.scenes)])
    results = {}
    print(f"{'net':14}{'rank':>6}{'of means':>10}{'by fidelity':>13}   information by block, the middle block last")
    for kind in args.kinds:
        net = load_net(args.assets / f"demo_{kind}.safetensors", demo.model.unet)
        result = results[kind] = study(demo, kind, net, args.scenes)
        figures = " ".join(f"{v:.3g}" for v in result["information"])
        ranks = f"{result['rank']:6.2f}{result['rank of the means']:10.2f}{result['rank by fidelity']:13.2f}"
        print(f"{kind:14}{ranks}   {figures}", flush=True)
    report = {"scenes": args.scenes, "nets": results, "seconds": round(time.monotonic() - started, 1)}
    print(f"lowest rank {min(r['rank'] for r in results.values()):.2f}, {report['seconds']} s")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.picture:
        draw(results, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
