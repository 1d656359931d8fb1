"""The shipped canny net under the paper's four prompts: none, insufficient, conflicting, perfect.

    python benchmarks/paper/prompts.py [--seeds 0 1 2] [--quick]

Inference only. Budget: 0.1 hours of one core for three seeds of the noise. Source: Zhang et al. 2023, section 4,
figure 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from laboratory import ASSETS, KIND, PROMPTS, SETTINGS, Laboratory, edges, hint
from report import Experiment, Row, Verdict, draw_groups, main, page_at, seeds_of, select, yes_if_all

FOLLOWS, FREE = 0.6, "no control, caption"
"""Edge F1 from which a net follows its hint; without control it is 0.2, the autoencoder's ceiling is 0.92."""


def measure(laboratory: Laboratory) -> list[Row]:
    """Sample the scored scenes under each prompt with each seed of the noise, and once without control."""
    net = load_controlnet(ASSETS / f"demo_{KIND}.safetensors", dtype=torch.float32)[0]
    return [
        laboratory.once(f"prompts {prompt} {seed}", partial(sampled, laboratory, net, prompt, seed))
        for seed in laboratory.settings.seeds
        for prompt in (*PROMPTS, FREE)
    ]


def sampled(laboratory: Laboratory, net: ControlNet, prompt: str, seed: int) -> Row:
    """Edge F1 of each scene's picture."""
    demo = laboratory.with_prompt("caption" if prompt == FREE else prompt)
    # Both halves of the guidance are the same without a prompt: one is enough.
    settings = replace(SETTINGS, seed=seed, cfg=1.0 if prompt == "none" else SETTINGS.cfg)
    units = [() if prompt == FREE else (ControlUnit(net, hint(KIND, scene)),) for scene in laboratory.scored]
    empty = torch.zeros(1, 4, 16, 16)
    pictures = demo.decode(torch.cat([demo.latent(row, unit, empty, settings) for row, unit in enumerate(units)]))
    scores = [float(np.mean(edges(scene, p))) for scene, p in zip(laboratory.scored, pictures, strict=True)]
    return {"prompt": prompt, "seed": seed, "fidelity": scores}


def means(rows: Sequence[Row], prompt: str) -> list[float]:
    """Mean edge F1 of each seed."""
    return [float(np.mean(row["fidelity"])) for row in select(rows, prompt=prompt)]


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """The net should follow its hint under all four prompts."""
    found = {prompt: float(np.mean(means(rows, prompt))) for prompt in (*PROMPTS, FREE)}
    listed = ", ".join(f"{prompt} {value:.2f}" for prompt, value in found.items())
    follows = [found[prompt] >= FOLLOWS for prompt in PROMPTS]
    return [
        Verdict(
            "ControlNet follows its condition in all four settings: no prompt, insufficient, conflicting and perfect "
            "prompts",
            f"Edge F1 by prompt: {listed} ({seeds_of(rows)}).",
            yes_if_all(follows),
        )
    ]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Fidelity by prompt."""
    groups = {prompt: {"edge F1": means(rows, prompt)} for prompt in (*PROMPTS, FREE)}
    with page_at(path, 820, 330) as page:
        draw_groups(page, (64, 52, 700, 220), "edge F1 of the shipped canny net, by prompt", groups)


EXPERIMENT = Experiment(
    "prompts", "Does a net follow its hint whatever the prompt is?", "section 4, figure 8", 0.1, (),
    measure, judge, draw,
    setup="The shipped canny net (3,400 steps) on held-out scenes: no prompt, an insufficient one (\"a picture\"), a "
    "conflicting one (the caption of another scene), and the caption. It holds if edge F1 is at least 0.6 with each; "
    "the ceiling of the autoencoder is 0.92.",
    reading="The hint decides the layout under every prompt. A caption of another scene costs most: its colours draw "
    "edges where the hint has none.",
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
