"""Guidance without a prompt: control in both halves, in the conditional half alone, and with resolution weights.

    python benchmarks/paper/guidance.py [--seeds 0 1 2] [--quick]

Inference only, with the shipped canny and depth nets. Budget: 0.15 hours of one core for three seeds of the noise.
Source: Zhang et al. 2023, section 3.4 and figure 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from fidelity import ASSETS, SCORES, SETTINGS, hint
from laboratory import Laboratory
from report import Experiment, Row, Verdict, draw_groups, main, new_page, save_page, seeds_of, select

KINDS = ("canny", "depth")
WAYS: Mapping[str, Mapping[str, Any]] = {
    "both halves": {},
    "conditional half": {"negative": 0.0},
    "resolution weights": {"mode": "cfg-rw"},
}
CLEAR = 0.02
"""Differences of fidelity below this count as equal."""


def measure(laboratory: Laboratory) -> list[Row]:
    """Sample the scored scenes without a prompt, for each net, way and seed of the noise."""
    demo = laboratory.with_prompt("none")
    nets = {kind: load_controlnet(ASSETS / f"demo_{kind}.safetensors", dtype=torch.float32)[0] for kind in KINDS}
    rows = []
    for seed in laboratory.settings.seeds:
        for kind in KINDS:
            for way, changes in WAYS.items():
                units = [(ControlUnit(nets[kind], hint(kind, s), **changes),) for s in laboratory.scored]
                settings = replace(SETTINGS, seed=seed)
                empty = torch.zeros(1, 4, 16, 16)
                latents = torch.cat([demo.latent(i, unit, empty, settings) for i, unit in enumerate(units)])
                scored = zip(laboratory.scored, demo.decode(latents), strict=True)
                scores = [float(np.mean(SCORES[kind][1](scene, picture))) for scene, picture in scored]
                # Latents of true pictures have a standard deviation of 1: more is too much contrast.
                contrast = float(latents.std())
                rows.append({"net": kind, "way": way, "seed": seed, "fidelity": scores, "contrast": contrast})
                print(f"{kind} {way} seed {seed}: {np.mean(scores):.3f}", flush=True)
    return rows


def means(rows: Sequence[Row], kind: str, way: str) -> list[float]:
    """Mean fidelity of each seed."""
    return [float(np.mean(row["fidelity"])) for row in select(rows, net=kind, way=way)]


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """Resolution weights should follow the hint better than control in both halves, which has no guidance at all.

    And they should not cost fidelity against the conditional half alone.
    """
    better, found = [], []
    for kind in KINDS:
        both, alone, weighted = (float(np.mean(means(rows, kind, way))) for way in WAYS)
        better.append((weighted - both >= CLEAR, weighted - alone >= -CLEAR))
        found.append(f"{kind}: both halves {both:.3f}, conditional half {alone:.3f}, resolution weights {weighted:.3f}")
    contrast = {way: float(np.mean([row["contrast"] for row in select(rows, way=way)])) for way in WAYS}
    listed = ", ".join(f"{value:.2f}" for value in contrast.values())
    text = f"Fidelity without a prompt, {'; '.join(found)}. Contrast (1 is right): {listed} ({seeds_of(rows)})."
    holds = "yes" if all(map(all, better)) else "partly" if any(map(all, better)) else "no"
    claim = (
        "Without a prompt, control in both halves removes the guidance, and in the conditional half alone makes it too "
        "strong; weights by resolution are better than both"
    )
    return [Verdict(claim, text, holds)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Fidelity and contrast by way."""
    groups = {kind: {way: means(rows, kind, way) for way in WAYS} for kind in KINDS}
    contrast = {
        kind: {way: [row["contrast"] for row in select(rows, net=kind, way=way)] for way in WAYS} for kind in KINDS
    }
    with new_page(1240, 360) as page:
        draw_groups(page, (64, 52, 380, 240), "fidelity without a prompt", groups, legend=False)
        draw_groups(page, (520, 52, 380, 240), "standard deviation of the latents; 1 for true pictures", contrast)
        save_page(page, path)


EXPERIMENT = Experiment(
    "guidance", "Do resolution weights help guidance without a prompt?", "section 3.4, figure 5", 0.15, (),
    measure, judge, draw,
    setup="The shipped canny and depth nets, no prompt, guidance scale 4, in three ways: control in both halves of "
    "the guidance (which then are equal, so that there is no guidance), in the conditional half alone, and there with "
    "the paper's weights 64 / h, scaled to this latent. Fidelity is edge F1 for canny and the IoU of the objects for "
    "depth. It holds if the weights are at least 0.02 better than both halves and not 0.02 worse than the "
    "conditional half.",
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
