"""Locked against unlocked base: what does the base forget when it is trained with the net on little data?

    python benchmarks/paper/locking.py [--seeds 0 1 2] [--quick]

Budget: 0.15 hours of one core for three seeds (six trainings, three of them shared with `data_size.py`). Source: Zhang
et al. 2023, section 3.1: the locked copy preserves what the base has learned from billions of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.training.step import base_predictor, noise_losses
from laboratory import ASSETS, Laboratory, Variant
from report import Experiment, Row, Verdict, draw_groups, f1, main, page_at, seeds_of, select, spread

SCENES = 50
"""Little data, where forgetting shows: the base itself was trained on 24,000 scenes."""
TIMESTEPS = (250.0, 500.0, 750.0, 950.0)
FORGETS = 0.02
"""Relative rise of the base's own loss that counts as forgetting."""
WAYS = {True: "locked", False: "unlocked decoder"}
VARIANTS = tuple(Variant(scenes=SCENES, locked=locked) for locked in WAYS)


def measure(laboratory: Laboratory) -> list[Row]:
    """Train both ways with each seed; measure the base alone on captions of held-out scenes, without a hint."""
    before = base_loss(laboratory, load_checkpoint(ASSETS / "demo_base.safetensors", dtype=torch.float32).unet)
    rows = []
    for variant, seed in laboratory.runs(VARIANTS):
        row = laboratory.measured(variant, seed)
        after = base_loss(laboratory, laboratory.trained(variant, seed).unet)
        rows.append({**row, "base before": before, "base after": after})
        print(f"{variant.name} seed {seed}: the base's loss {before:.4f} -> {after:.4f}", flush=True)
    return rows


@torch.no_grad()
def base_loss(laboratory: Laboratory, unet: UNet) -> float:
    """Mean loss of the base with the captions of the scored scenes, without control, at fixed noise."""
    demo, generator = laboratory.demo, torch.Generator().manual_seed(1)
    truth = torch.from_numpy(np.stack([s.image for s in laboratory.scored])).permute(0, 3, 1, 2).float() * 2.0 - 1.0
    latents, losses = demo.vae.encode(truth), []
    for timestep in TIMESTEPS:
        noise, t = torch.randn(latents.shape, generator=generator), torch.full((len(latents),), timestep)
        losses.append(noise_losses(base_predictor(unet, demo.texts), latents, t, noise, scaled_linear(), "eps"))
    return float(torch.cat(losses).mean())


def forgotten(row: Row) -> float:
    """How much the base's own loss rose, as a fraction."""
    return row["base after"] / row["base before"] - 1.0


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """The locked base is the base, to the bit; the unlocked one should have become worse on its own captions."""
    lost = {locked: [forgotten(row) for row in select(rows, locked=locked)] for locked in WAYS}
    f = {locked: spread(f1(rows, "none", locked=locked)) for locked in WAYS}
    text = (
        f"Loss of the base without a hint after {SCENES} scenes: locked {np.mean(lost[True]):+.1%}, unlocked decoder "
        f"{np.mean(lost[False]):+.1%}. Edge F1 without a prompt: {f[True]} and {f[False]} ({seeds_of(rows)})."
    )
    claim = "Locking the base preserves its quality when the net is trained on little data"
    holds = "yes" if np.mean(lost[False]) >= FORGETS and max(map(abs, lost[True])) < 1e-6 else "no"
    return [Verdict(claim, text, holds)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """What the base lost, and what the net learned."""
    lost = {"loss": {name: [100 * forgotten(r) for r in select(rows, locked=w)] for w, name in WAYS.items()}}
    learned = {
        title: {name: f1(rows, prompt, locked=way) for way, name in WAYS.items()}
        for prompt, title in (("none", "no prompt"), ("caption", "caption"))
    }
    with page_at(path, 1080, 340) as page:
        draw_groups(page, (64, 52, 260, 230), "rise of the base's own loss, %", lost, legend=False)
        draw_groups(page, (420, 52, 420, 230), "edge F1 with control", learned)


EXPERIMENT = Experiment(
    "locking", "What does the base forget when it is not locked?", "section 3.1", 0.15, VARIANTS, measure, judge, draw,
    setup="The net is trained on 50 scenes only, once on the locked base and once with the base's decoder trained "
    "too, as `controlnet train --unlock` does, at the same rate. Then the base is used without net and hint, with "
    "the captions of held-out scenes: its loss shows what it has forgotten. It holds if the unlocked base is at "
    "least 2 % worse, and the locked one unchanged.",
    reading="The unlocked decoder was trained together with the net, and has become worse without it by much more than "
    "2 %. Control gains nothing by it. What part of this comes from the small data was not tested apart.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
