"""Guidance without a prompt: control in both halves, in the conditional half alone, and with resolution weights.

    python benchmarks/paper/guidance.py [--seeds 0 1 2] [--quick]

Inference only, with the shipped canny and depth nets. Budget: 0.15 hours of one core for three seeds of the noise.
Source: Zhang et al. 2023, section 3.4 and figure 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from laboratory import ASSETS, SETTINGS, Laboratory, edges, hint
from report import Experiment, Row, Verdict, draw_groups, main, page_at, seeds_of, select, yes_if_all

KINDS = ("canny", "depth")
WAYS: Mapping[str, Mapping[str, Any]] = {
    "both halves": {},
    "conditional half": {"negative": 0.0},
    "resolution weights": {"mode": "cfg-rw"},
}
TOO_STRONG = 1.1
CLEAR = 0.02
"""Differences of fidelity below this count as equal."""


def measure(laboratory: Laboratory) -> list[Row]:
    """Sample the scored scenes without a prompt, for each net, way and seed of the noise."""
    nets = {kind: load_controlnet(ASSETS / f"demo_{kind}.safetensors", dtype=torch.float32)[0] for kind in KINDS}
    return [
        laboratory.once(f"guidance {kind} {way} {seed}", partial(sampled, laboratory, nets[kind], kind, way, seed))
        for seed in laboratory.settings.seeds
        for kind in KINDS
        for way in WAYS
    ]


def sampled(laboratory: Laboratory, net: ControlNet, kind: str, way: str, seed: int) -> Row:
    """Fidelity of each scene's picture, and the contrast of all."""
    demo, settings, empty = laboratory.with_prompt("none"), replace(SETTINGS, seed=seed), torch.zeros(1, 4, 16, 16)
    units = [(ControlUnit(net, hint(kind, scene), **WAYS[way]),) for scene in laboratory.scored]
    latents = torch.cat([demo.latent(row, unit, empty, settings) for row, unit in enumerate(units)])
    pairs = zip(laboratory.scored, demo.decode(latents), strict=True)
    # Edges for both nets: the IoU of objects tells them by their colours, which nothing decides without a prompt.
    scores = [float(np.mean(edges(scene, picture))) for scene, picture in pairs]
    # Latents of true pictures have a standard deviation of 1: more is too much contrast.
    return {"net": kind, "way": way, "seed": seed, "fidelity": scores, "contrast": float(latents.std())}


def means(rows: Sequence[Row], kind: str, way: str) -> list[float]:
    """Mean fidelity of each seed."""
    return [float(np.mean(row["fidelity"])) for row in select(rows, net=kind, way=way)]


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """Two claims: control in both halves is too weak without a prompt, and weights by resolution are the best way."""
    mean = {kind: {way: float(np.mean(means(rows, kind, way))) for way in WAYS} for kind in KINDS}
    listed = "; ".join(f"{kind}: " + ", ".join(f"{way} {v:.3f}" for way, v in mean[kind].items()) for kind in KINDS)
    contrast = {way: float(np.mean([row["contrast"] for row in select(rows, way=way)])) for way in WAYS}
    strong = ", ".join(f"{way} {value:.2f}" for way, value in contrast.items())
    both, alone, weighted = WAYS
    lifted = [mean[kind][alone] - mean[kind][both] >= CLEAR for kind in KINDS]
    best = [mean[kind][weighted] - mean[kind][alone] >= -CLEAR for kind in KINDS]
    better = [mean[kind][weighted] - mean[kind][both] >= CLEAR for kind in KINDS]
    return [
        Verdict(
            "Without a prompt, control in both halves of the guidance removes the guidance",
            f"Edge F1 without a prompt, {listed} ({seeds_of(rows)}).",
            yes_if_all(lifted),
        ),
        Verdict(
            "In the conditional half alone it makes the guidance too strong; weights by resolution are better",
            f"Edge F1 as above. Contrast (true pictures: 1): {strong}.",
            "no" if not all(best) and max(contrast.values()) < TOO_STRONG else yes_if_all([*best, *better]),
        ),
    ]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Fidelity and contrast by way."""
    groups = {kind: {way: means(rows, kind, way) for way in WAYS} for kind in KINDS}
    contrast = {
        kind: {way: [row["contrast"] for row in select(rows, net=kind, way=way)] for way in WAYS} for kind in KINDS
    }
    with page_at(path, 1240, 360) as page:
        draw_groups(page, (64, 52, 380, 240), "edge F1 without a prompt", groups, legend=False)
        draw_groups(page, (520, 52, 380, 240), "standard deviation of the latents; 1 for true pictures", contrast)


EXPERIMENT = Experiment(
    "guidance", "Do resolution weights help guidance without a prompt?", "section 3.4, figure 5", 0.15, (),
    measure, judge, draw,
    setup="The shipped canny and depth nets, no prompt, guidance scale 4, in three ways: control in both halves of the "
    "guidance (which then are equal, so that there is no guidance), in the conditional half alone, and there with the "
    "paper's weights 64 / h, scaled to this latent. Edge F1 compares the pictures with the true ones for both nets, "
    "because depth decides the outlines too. The first claim holds if the conditional half alone is at least 0.02 "
    "better than both halves; the second if the weights are as good as the conditional half alone and better than "
    "both halves, for both nets.",
    reading="Without guidance, pictures are too soft (contrast below 0.9) and follow the hint less. The conditional "
    "half alone is not too strong here: its pictures have the contrast of true ones, so there is nothing to correct. "
    "The weights double the residuals at half of the resolution and quadruple them below it, which these nets were not "
    "trained for. docs/controls.md lists the modes.",
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
