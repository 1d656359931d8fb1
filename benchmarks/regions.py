"""Measure whether each object gets the colour of its region, on held-out scenes of the demo world.

    python benchmarks/regions.py [--scenes 24] [--json FILE] [--picture FILE]

The canny ControlNet keeps the layout of a scene with two objects or more. Each object is to have a new colour. Rows:

prompt       one prompt names all objects with their colours; nothing says which is where
masks        ComfyUI's way (ConditioningSetMask): the prompt, and one more prediction for each object's text, blended by
             its mask
regions      Region Prompts: each object's text is attended to inside its mask

The measures are over the pixels of all objects: how many are nearest (in Lab, lightness counts half) to the colour that
was asked for, and how many objects have it on most of their pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.models.regions import RegionPrompts
from comfyui_controlnet_core.controlnet_core.pipeline import generate
from comfyui_controlnet_core.controlnet_core.training.demo_world import RenderedScene, render_seed, srgb_to_lab
from comfyui_controlnet_core.controlnet_core.training.demo_world.colours import OBJECT_COLOURS
from fidelity import ASSETS, FIRST_SEED, SETTINGS, Demo, hint, load_demo
from torch import Tensor

COLOURS = ("red", "blue", "green", "yellow", "cyan", "orange", "purple")
"""Far apart from each other; grey, white and brown are near those of many grounds."""
FIRST_OBJECT = 2
"""Labels 0 and 1 are sky and ground."""
ROWS = ("prompt", "masks", "regions")
MANNEQUIN = "person"


def solids(scene: RenderedScene) -> list[int]:
    """Return the labels of the objects that may have any colour."""
    return [n for n in range(FIRST_OBJECT, len(scene.classes)) if scene.classes[n] != MANNEQUIN]


def wanted_colours(scene: RenderedScene, number: int) -> dict[int, str]:
    """Return a new colour for each solid of a scene, all different."""
    order = np.random.default_rng(number).permutation(len(COLOURS))
    return dict(zip(solids(scene), (COLOURS[n] for n in order), strict=False))


def text_of(scene: RenderedScene, label: int, colour: str) -> str:
    """Return the words for one object."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {scene.classes[label]}"


def conditions(
    demo: Demo, scene: RenderedScene, colours: dict[int, str], row: str, net: ControlUnit
) -> list[Condition]:
    """Return the prompt's half of the guidance for one row."""
    texts = {label: text_of(scene, label, colour) for label, colour in colours.items()}
    ground = f" on {scene.colours[1]} ground"
    prompt = demo.text.encode(" and ".join(texts.values()) + ground)
    areas = torch.from_numpy(np.stack([scene.labels == label for label in colours]).astype(np.float32))
    own = [demo.text.encode(words + ground) for words in texts.values()]
    if row == "masks":
        rest = (1.0 - areas.sum(dim=0)).clamp(min=0.0)
        masked = [Condition(text, (net,), mask=area[None]) for text, area in zip(own, areas, strict=True)]
        return [Condition(prompt, (net,), mask=rest[None]), *masked]
    if row == "regions":
        regions = ControlUnit(RegionPrompts(own, [1.0] * len(own)), areas[None], negative=0.0, name="regions")
        return [Condition(prompt, (net, regions))]
    return [Condition(prompt, (net,))]


def scores(scene: RenderedScene, picture: np.ndarray, colours: dict[int, str]) -> list[tuple[float, bool]]:
    """Return for each object the share of its pixels with the wanted colour, and whether that is most of them."""
    names, weigh = list(OBJECT_COLOURS), np.array([0.5, 1.0, 1.0])
    lab = srgb_to_lab(picture)[..., None, :] - srgb_to_lab(np.array([OBJECT_COLOURS[name] for name in names]))
    nearest = np.linalg.norm(lab * weigh, axis=-1).argmin(axis=-1)
    found = []
    for label, colour in colours.items():
        own = nearest[scene.labels == label]
        counts = np.bincount(own, minlength=len(names))
        found.append((float((own == names.index(colour)).mean()), names[int(counts.argmax())] == colour))
    return found


def measure(demo: Demo, chosen: Sequence[int], row: str, net: torch.nn.Module) -> tuple[dict[str, float], np.ndarray]:
    """Return the means of one row, and its pictures."""
    pictures, found = [], []
    for number in chosen:
        scene = demo.scenes[number]
        colours = wanted_colours(scene, number)
        unit = ControlUnit(net, hint("canny", scene), name="canny")  # type: ignore[arg-type]
        halves = conditions(demo, scene, colours, row, unit), [Condition(demo.empty, (unit,))]
        latent: Tensor = generate(demo.model, *halves, torch.zeros(1, 4, 16, 16), SETTINGS, backend=demo.backend)
        picture = demo.decode(latent)[0]
        pictures.append(picture)
        found += scores(scene, picture, colours)
    shares, right = zip(*found, strict=True)
    return {"pixels": float(np.mean(shares)), "objects": float(np.mean(right)), "count": len(found)}, np.stack(pictures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="sheet of the first scenes: true picture, then a row for each")
    args = parser.parse_args()
    scenes: list[RenderedScene] = []
    seed = FIRST_SEED
    while len(scenes) < args.scenes:
        scene = render_seed(seed)
        scenes += [scene] if len(solids(scene)) > 1 else []
        seed += 1
    demo = load_demo(ASSETS, scenes)
    net = load_controlnet(ASSETS / "demo_canny.safetensors", dtype=torch.float32)[0]
    report, made = {}, {}
    for row in ROWS:
        report[row], made[row] = measure(demo, range(len(scenes)), row, net)
        print(f"{row:10}" + "  ".join(f"{name} {value:.3f}" for name, value in report[row].items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    if args.picture:
        from PIL import Image

        shown = range(min(8, len(scenes)))
        columns = [np.concatenate([scenes[n].image, *(made[row][n] for row in ROWS)]) for n in shown]
        picture = (np.concatenate(columns, axis=1).clip(0, 1) * 255.0 + 0.5).astype(np.uint8)
        Image.fromarray(picture).save(args.picture, quality=90)
    return 0


if __name__ == "__main__":
    sys.exit(main())
