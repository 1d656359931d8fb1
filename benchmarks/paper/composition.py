"""Two conditions at once: are their residuals summed without weights?

    python benchmarks/paper/composition.py [--seeds 0 1 2] [--quick]

Inference only, with the shipped pose and depth nets, on scenes with a mannequin. Budget: 0.1 hours of one core for
three seeds of the noise. Source: Zhang et al. 2023, section 3.4 and figure 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.training.demo_world import RenderedScene, render_seed
from laboratory import ASSETS, FIRST_SEED, SETTINGS, Demo, Laboratory, hint, load_demo, mannequin, objects
from report import Experiment, Row, Verdict, draw_groups, main, page_at, seeds_of, select, yes_if_all

KINDS = ("openpose", "depth")
WAYS: Mapping[str, tuple[float, float]] = {
    "pose alone": (1.0, 0.0), "depth alone": (0.0, 1.0), "sum": (1.0, 1.0), "mean": (0.5, 0.5)
}  # fmt: skip
"""Name -> strength of the pose net and of the depth net."""
SCORES = {"mannequin": mannequin, "objects": objects}
MEASURES = {"mannequin": "IoU of the mannequin", "objects": "IoU of all objects"}
CLEAR = 0.02


def measure(laboratory: Laboratory) -> list[Row]:
    """Sample scenes with a mannequin with each pair of strengths and each seed of the noise."""
    scenes = peopled(laboratory.settings.scored)
    demo = replace(load_demo(ASSETS, scenes), backend=laboratory.demo.backend)
    nets = [load_controlnet(ASSETS / f"demo_{kind}.safetensors", dtype=torch.float32)[0] for kind in KINDS]
    return [
        laboratory.once(f"composition {way} {seed}", partial(sampled, demo, nets, way, seed))
        for seed in laboratory.settings.seeds
        for way in WAYS
    ]


def peopled(count: int) -> list[RenderedScene]:
    """Held-out scenes with a mannequin and something else: in one with a figure alone, depth could add nothing."""
    scenes = (render_seed(FIRST_SEED + i) for i in range(10_000))
    return list(islice((s for s in scenes if "person" in s.classes and len(s.classes) > 3), count))


def sampled(demo: Demo, nets: Sequence[ControlNet], way: str, seed: int) -> Row:
    """IoU of the mannequin and of all objects in each scene."""
    latents = []
    for index, scene in enumerate(demo.scenes):
        parts = zip(KINDS, nets, WAYS[way], strict=True)
        # A unit of strength 0 is left out: it is the other net alone.
        units = tuple(ControlUnit(net, hint(kind, scene), s) for kind, net, s in parts if s)
        latents.append(demo.latent(index, units, torch.zeros(1, 4, 16, 16), replace(SETTINGS, seed=seed)))
    pairs = list(zip(demo.scenes, demo.decode(torch.cat(latents)), strict=True))
    scores = {name: [float(np.mean(score(*pair))) for pair in pairs] for name, score in SCORES.items()}
    return {"way": way, "seed": seed, **scores}


def means(rows: Sequence[Row], way: str, name: str) -> list[float]:
    """Mean score of each seed."""
    return [float(np.mean(row[name])) for row in select(rows, way=way)]


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """The plain sum should follow both hints at least as well as each net follows its own, and as the mean does."""
    found, fine = [], []
    for name, title in MEASURES.items():
        values = {way: float(np.mean(means(rows, way, name))) for way in WAYS}
        fine.append(all(values["sum"] >= values[way] - CLEAR for way in WAYS))
        found.append(f"{title}: " + ", ".join(f"{way} {value:.2f}" for way, value in values.items()))
    holds = yes_if_all(fine)
    claim = "Several conditions are combined by adding the outputs of their nets; no extra weighting is needed"
    return [Verdict(claim, f"{'; '.join(found)} ({seeds_of(rows)}).", holds)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Both measures by way."""
    groups = {title: {way: means(rows, way, name) for way in WAYS} for name, title in MEASURES.items()}
    with page_at(path, 860, 340) as page:
        draw_groups(page, (64, 52, 560, 230), "pose and depth together", groups)


EXPERIMENT = Experiment(
    "composition", "Are several conditions combined by a plain sum?", "section 3.4, figure 6", 0.1, (),
    measure, judge, draw,
    setup="The shipped pose and depth nets together, on held-out scenes with a mannequin and at least one solid, "
    "with the caption. It holds if the plain sum is at most 0.02 behind each net alone and behind the mean (half "
    "strength each), by both measures.",
    reading="The sum draws the mannequin better than either net alone, and the objects as well as depth alone. "
    "Dividing the strengths by the number of nets costs fidelity.",
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
