"""Transfer to a fine-tuned base: the shipped canny net on a base with another palette, as it is and moved.

    python benchmarks/paper/transfer.py [--seeds 0 1 2] [--quick]

The base is fine-tuned on the same scenes with red and blue exchanged, a style that it has never seen. Budget: 0.1 hours
of one core for three seeds (three fine-tunings). Source: Zhang et al. 2023, section 4 and figure 12: a ControlNet is
applied to community models without being trained again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint, load_controlnet
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.pipeline import DiffusionModel
from comfyui_controlnet_core.controlnet_core.training.demo_world import RenderedScene
from comfyui_controlnet_core.controlnet_core.training.loop import Loop, Recipe
from comfyui_controlnet_core.controlnet_core.training.step import base_predictor, noise_losses, uniform_timesteps
from comfyui_controlnet_core.controlnet_core.training.transfer_controlnet import transfer_controlnet
from laboratory import ASSETS, KIND, Demo, Laboratory, Scenes, edges, hint, objects
from report import Experiment, Row, Verdict, draw_groups, main, page_at, seeds_of, select

RATE, EMPTY = 3e-4, 0.1
SCENES = 1000
CLEAR = 0.05
WAYS = ("no net", "net as it is", "net + difference")


def measure(laboratory: Laboratory) -> list[Row]:
    """Fine-tune a base with each seed, and sample it without a net and with the canny net in both forms."""
    net = load_controlnet(ASSETS / f"demo_{KIND}.safetensors", dtype=torch.float32)[0]
    demo, scenes = laboratory.demo, [restyled(scene) for scene in laboratory.scored]
    rows = [{"base": "original", "seed": 0, **sampled(demo, demo.model.unet, net, laboratory.scored, WAYS[1])}]
    for seed in laboratory.settings.seeds:
        base = tuned(laboratory, seed)
        moved = transfer_controlnet(net, demo.model.unet, base)
        for way, used in zip(WAYS, (None, net, moved), strict=True):
            rows.append({"base": "fine-tuned", "seed": seed, **sampled(demo, base, used, scenes, way)})
    return rows


def restyled(scene: RenderedScene) -> RenderedScene:
    """The scene with red and blue exchanged."""
    return replace(scene, image=scene.image[..., ::-1].copy(), albedo=scene.albedo[..., ::-1].copy())


def sampled(demo: Demo, base: UNet, net: ControlNet | None, scenes: Sequence[RenderedScene], way: str) -> Row:
    """Edge F1 and IoU of the objects in their new colours, with the captions."""
    used = replace(demo, model=DiffusionModel(base, demo.model.config, demo.model.schedule))
    units = [() if net is None else (ControlUnit(net, hint(KIND, scene)),) for scene in demo.scenes]
    pictures = list(zip(scenes, used.run(units, range(len(units))), strict=True))
    scores = {name: [float(np.mean(score(*pair))) for pair in pictures]
              for name, score in (("edges", edges), ("objects", objects))}  # fmt: skip
    print(f"{way}: edge F1 {np.mean(scores['edges']):.3f}, object IoU {np.mean(scores['objects']):.3f}", flush=True)
    return {"way": way, **scores}


def tuned(laboratory: Laboratory, seed: int) -> UNet:
    """The base after a training on restyled scenes, averaged; a run that was stopped continues."""
    settings = laboratory.settings
    checkpoint = load_checkpoint(ASSETS / "demo_base.safetensors", dtype=torch.float32)
    unet, text = checkpoint.unet.requires_grad_(True), checkpoint.text_encoder()
    scenes = Scenes(SCENES, laboratory.rendered)

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(SCENES, (settings.batch,), generator=generator).tolist()
        keep = torch.rand(len(rows), generator=generator) >= EMPTY
        with torch.no_grad():
            latents = checkpoint.vae.encode(scenes.pictures(rows).flip(1))
            captions = [c if k else "" for c, k in zip(scenes.captions(rows), keep, strict=True)]
            context = torch.cat([text.encode(caption) for caption in captions])
        t, noise = uniform_timesteps(len(rows), generator), torch.randn(latents.shape, generator=generator)
        return noise_losses(base_predictor(unet, context), latents, t, noise, demo_schedule, "eps").mean()

    demo_schedule = laboratory.demo.model.schedule
    state = settings.work / f"restyled_steps{settings.steps}_seed{seed}.state"
    loop = Loop({"unet": unet}, loss, Recipe(settings.steps, settings.batch, RATE, warmup=20, seed=seed), state)
    loop.resume()
    loop.run(save_every=50)
    loop.use_average()
    return unet.requires_grad_(False)


def mean(rows: Sequence[Row], name: str, **fields: str) -> list[float]:
    """Mean score of each seed."""
    return [float(np.mean(row[name])) for row in select(rows, **fields)]


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """On the fine-tuned base the net should control nearly as well as on its own, and the style should stay."""
    own = float(np.mean(mean(rows, "edges", base="original")))
    f = {way: float(np.mean(mean(rows, "edges", base="fine-tuned", way=way))) for way in WAYS}
    o = {way: float(np.mean(mean(rows, "objects", base="fine-tuned", way=way))) for way in WAYS}
    holds = "yes" if f[WAYS[1]] >= own - CLEAR and o[WAYS[1]] > o[WAYS[0]] else "no"
    if holds == "no" and f[WAYS[1]] - f[WAYS[0]] > (own - f[WAYS[0]]) / 2:
        holds = "partly"
    text = (
        f"Edge F1 {own:.2f} on its own base; on the fine-tuned one {f[WAYS[1]]:.2f} as it is, {f[WAYS[2]]:.2f} with "
        f"the difference of the bases added, {f[WAYS[0]]:.2f} without a net. IoU of the objects in their new colours: "
        f"{o[WAYS[1]]:.2f}, {o[WAYS[2]]:.2f}, {o[WAYS[0]]:.2f} ({seeds_of(rows)})."
    )
    return [Verdict("A ControlNet works on fine-tuned bases without being trained again", text, holds)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Both measures by way."""
    titles = {"edges": "edge F1", "objects": "object IoU, in the new colours"}
    groups = {t: {way: mean(rows, name, base="fine-tuned", way=way) for way in WAYS} for name, t in titles.items()}
    groups["edge F1"]["net on its own base"] = mean(rows, "edges", base="original")
    with page_at(path, 900, 340) as page:
        draw_groups(page, (64, 52, 560, 230), "the canny net on a base that was fine-tuned to another palette", groups)


EXPERIMENT = Experiment(
    "transfer", "Does a ControlNet work on a fine-tuned base?", "section 4, figure 12", 0.1, (), measure, judge, draw,
    setup="The base is fine-tuned on 1,000 scenes whose red and blue are exchanged. The shipped canny net, trained "
    "on the original base, is used on it as it is, and with the difference of the two bases added (node Transfer "
    "ControlNet). It holds if edge F1 is less than 0.05 below that on the original base, and the objects have the "
    "new colours.",
    reading="The net keeps most of its control on a base whose weights have moved, and the difference of the bases "
    "brings back a part of what is lost. The style is not well tested: so short a fine-tuning has hardly taught the "
    "new colours, with the net or without.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
