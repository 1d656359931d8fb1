"""Before and at the first steps: what each kind of net does to the base, and which of its weights learn.

    python benchmarks/paper/zero_start.py [--seeds 0 1 2] [--quick]

Nothing is trained but two steps. Budget: 0.02 hours of one core for three seeds. Source: Zhang et al. 2023,
sections 3.1 and 3.2: zero convolutions add no noise at the start, and do get gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.training.step import base_predictor, control_predictor, noise_losses
from laboratory import ASSETS, KIND, Laboratory, hint
from report import Experiment, Row, Verdict, draw_groups, main, page_at, seeds_of, select
from starts import NAMES, STARTS
from torch import Tensor

TIMESTEPS = (250.0, 500.0, 750.0, 950.0)
RATE = 1e-3


def measure(laboratory: Laboratory) -> list[Row]:
    """Measure each kind of net with each seed."""
    return [
        laboratory.once(f"zero_start {start} {seed}", partial(begun, laboratory, start, seed))
        for seed in laboratory.settings.seeds
        for start in NAMES
    ]


def begun(laboratory: Laboratory, start: str, seed: int) -> Row:
    """A fresh net's effect on the prediction, and the gradients of its parts in the first two steps."""
    unet = load_checkpoint(ASSETS / "demo_base.safetensors", dtype=torch.float32).unet.requires_grad_(False)
    demo, scenes = laboratory.demo, laboratory.scored
    net = STARTS[start](unet, demo.model.config.controlnet, seed, True).requires_grad_(True)
    truth = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2).float() * 2.0 - 1.0
    latents, hints = demo.vae.encode(truth).detach(), torch.cat([hint(KIND, scene) for scene in scenes])
    texts, generator = demo.texts, torch.Generator().manual_seed(seed)
    t = torch.tensor([TIMESTEPS[i % len(TIMESTEPS)] for i in range(len(scenes))])
    noise = torch.randn(latents.shape, generator=generator)

    def loss(controlled: bool) -> Tensor:
        predict = control_predictor(unet, net, texts, hints) if controlled else base_predictor(unet, texts)
        return noise_losses(predict, latents, t, noise, scaled_linear(), "eps").mean()

    with torch.no_grad():
        alone = float(loss(False))
    optimizer = torch.optim.AdamW(net.parameters(), RATE)
    row: Row = {"start": start, "seed": seed, "loss of the base": alone}
    for step in (1, 2):
        found = loss(True)
        found.backward()
        row |= {f"loss {step}": float(found.detach()), **{f"{k} {step}": v for k, v in gradients(net).items()}}
        optimizer.step()
        optimizer.zero_grad()
    return row


def gradients(net: ControlNet) -> dict[str, float]:
    """Norm of the gradient of the zero convolutions (or what is in their place), and of the blocks before them."""
    zeros = [p.grad for zero in net.zeros for p in zero.parameters()]
    blocks = [p.grad for part in (net.encoder, net.middle) for p in part.parameters()]
    parts = {"gradient of the zero convolutions": zeros, "gradient of the blocks": blocks}
    # The lite net's timestep embedding gets no gradient, since nothing reads it.
    norms = {name: torch.stack([grad.norm() for grad in part if grad is not None]) for name, part in parts.items()}
    return {name: float(norm.norm()) for name, norm in norms.items()}


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """Zero convolutions leave the base as it is, to the bit, and learn from the first step on."""
    worse = {s: [r["loss 1"] / r["loss of the base"] - 1.0 for r in select(rows, start=s)] for s in NAMES}
    zero, noisy = select(rows, start="zero"), worse["gaussian"]
    exact = all(row["loss 1"] == row["loss of the base"] for row in zero)
    first = [row["gradient of the zero convolutions 1"] for row in zero]
    blocks = {step: [row[f"gradient of the blocks {step}"] for row in zero] for step in (1, 2)}
    shaken = [row["gradient of the blocks 1"] for row in select(rows, start="gaussian")]
    learns = min(first) > 0.0 and max(blocks[1]) == 0.0 and min(blocks[2]) > 0.0
    return [
        Verdict(
            "With zero convolutions the net changes nothing at the start: no harmful noise is added",
            f"Loss of the base with a fresh net: zero convolutions {np.mean(worse['zero']):+.0%}, Gaussian ones "
            f"{np.mean(noisy):+.0%} ({seeds_of(rows)}).",
            "yes" if exact and min(noisy) > 0.0 else "partly" if exact else "no",
        ),
        Verdict(
            "Zero convolutions have gradients and learn, and protect the copy from random gradients in the first step",
            f"Gradient norms in the first step: zero convolutions {np.mean(first):.3f}, copied blocks behind them "
            f"{np.mean(blocks[1]):.3f}, behind Gaussian ones {np.mean(shaken):.3f}; in the second step the copied "
            f"blocks have {np.mean(blocks[2]):.3f} ({seeds_of(rows)}).",
            "yes" if learns else "no",
        ),
    ]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Loss before training, and the gradients of the first two steps."""
    before = {name: [row["loss 1"] for row in select(rows, start=start)] for start, name in NAMES.items()}
    before["base alone"] = [row["loss of the base"] for row in select(rows, start="zero")]
    parts = {"zero convolutions, step 1": "gradient of the zero convolutions 1",
             "blocks, step 1": "gradient of the blocks 1", "blocks, step 2": "gradient of the blocks 2"}  # fmt: skip
    norms = {
        title: {name: [row[key] for row in select(rows, start=s)] for s, name in NAMES.items()}
        for title, key in parts.items()
    }
    with page_at(path, 1240, 340) as page:
        draw_groups(page, (64, 52, 320, 230), "loss with a fresh net", {"before training": before})
        draw_groups(page, (620, 52, 420, 230), "norm of the gradient", norms)


EXPERIMENT = Experiment(
    "zero_start", "What does a fresh net do to the base?", "sections 3.1 and 3.2", 0.02, (), measure, judge, draw,
    setup="Fresh nets of the three kinds of the next section, on held-out scenes with their captions, and the first "
    "two steps of AdamW. The first claim holds if the loss with zero convolutions is that of the base, to the bit, "
    "and Gaussian convolutions raise it; the second if zero convolutions have a gradient in the first step, the "
    "copied blocks have none, and have one in the second.",
    reading="The loss with Gaussian convolutions starts at five times that of the base, and their gradients reach "
    "the copied blocks at once, a hundred times larger than those that arrive through zero convolutions a step later.",
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
