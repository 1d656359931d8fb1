"""Measure what an edit of one word changes in a picture, on held-out scenes of the demo world.

    python benchmarks/prompt_edit.py [--scenes 16] [--json FILE] [--picture FILE]

Each scene has one ball. The canny ControlNet and the seed keep the layout, and the prompt says "a red ball" on the
scene's ground under its sky. The edit is "red -> blue". Rows:

prompt        the edited prompt in place of the prompt, with the same seed
edit          Prompt Edit with its defaults
edit, mask    the same, in the ball's mask

The measures: ball and others are the shares of the pixels of the ball, and of all other pixels, that the edit changed
by more than 16 of 255 in any channel; blue is the share of the ball's pixels that are nearest to blue (in Lab,
lightness counts half). Worst is the largest share of others in one scene.
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
from comfyui_controlnet_core.controlnet_core.models.prompt_words import align, read_edits
from comfyui_controlnet_core.controlnet_core.pipeline import generate
from comfyui_controlnet_core.controlnet_core.training.demo_world import RenderedScene, render_seed, srgb_to_lab
from comfyui_controlnet_core.controlnet_core.training.demo_world.colours import OBJECT_COLOURS
from comfyui_controlnet_core.nodes.prompt_edit_units import edit_stages
from fidelity import ASSETS, FIRST_SEED, SETTINGS, Demo, hint, load_demo
from torch import Tensor

EDITS = "red -> blue"
POSITIONS = (0.2, 0.5, 1.0)
"""The node's defaults: the start of the edit, the end of the kept places, the end."""
CHANGED = 16 / 255
BALL = 2
"""Its label: 0 is the sky and 1 the ground."""
ROWS = ("prompt", "edit", "edit, mask")


def caption(scene: RenderedScene) -> str:
    """Return the prompt of a scene."""
    return f"a red ball on {scene.colours[1]} ground under a {scene.colours[0]} sky"


def edit_units(demo: Demo, prompt: str, mask: Tensor | None) -> tuple[ControlUnit, ...]:
    """Return the units that Prompt Edit makes."""
    edited, alignment = align(prompt, read_edits(EDITS))
    stages = edit_stages(demo.text.encode(prompt), demo.text.encode(edited), alignment, POSITIONS)
    nothing = torch.zeros(1, 3, 8, 8)
    return tuple(ControlUnit(net, nothing, start=start, end=end, mask=mask, negative=0.0) for net, start, end in stages)


def sample(demo: Demo, scene: RenderedScene, row: str, net: torch.nn.Module) -> np.ndarray:
    """Return the picture of a row, or of the unedited prompt for "unedited"."""
    control = ControlUnit(net, hint("canny", scene), name="canny")  # type: ignore[arg-type]
    prompt, units = caption(scene), (control,)
    if row.startswith("edit"):
        mask = torch.from_numpy((scene.labels == BALL).astype(np.float32))[None] if "mask" in row else None
        units += edit_units(demo, prompt, mask)
    text = demo.text.encode(prompt.replace("red", "blue") if row == "prompt" else prompt)
    halves = [Condition(text, units)], [Condition(demo.empty, (control,))]
    latent = generate(demo.model, *halves, torch.zeros(1, 4, 16, 16), SETTINGS, backend=demo.backend)
    return demo.decode(latent)[0]


def scores(scene: RenderedScene, before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Return the shares of changed pixels of the ball and of the others, and of the ball's that are blue."""
    ball, changed = scene.labels == BALL, np.abs(after - before).max(axis=-1) > CHANGED
    names, weigh = list(OBJECT_COLOURS), np.array([0.5, 1.0, 1.0])
    lab = srgb_to_lab(after[ball])[:, None] - srgb_to_lab(np.array([OBJECT_COLOURS[name] for name in names]))
    nearest = np.linalg.norm(lab * weigh, axis=-1).argmin(axis=-1)
    return float(changed[ball].mean()), float(changed[~ball].mean()), float((nearest == names.index("blue")).mean())


def chosen_scenes(count: int, first: int = FIRST_SEED) -> list[RenderedScene]:
    """Return held-out scenes with one ball and nothing else, the ball on 2 % of the pixels or more."""
    found: list[RenderedScene] = []
    while len(found) < count:
        scene = render_seed(first)
        first += 1
        if scene.classes[BALL:] == ("sphere",) and (scene.labels == BALL).mean() >= 0.02:
            found.append(scene)
    return found


def sheet(columns: Sequence[Sequence[np.ndarray]], path: Path) -> None:
    """Save columns of pictures."""
    from PIL import Image

    picture = np.concatenate([np.concatenate(column) for column in columns], axis=1)
    Image.fromarray((picture.clip(0, 1) * 255.0 + 0.5).astype(np.uint8)).save(path, quality=90)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="sheet of the first scenes: unedited, then a row for each")
    args = parser.parse_args()
    scenes = chosen_scenes(args.scenes)
    demo = load_demo(ASSETS, scenes)
    net = load_controlnet(ASSETS / "demo_canny.safetensors", dtype=torch.float32)[0]
    made = {row: [sample(demo, scene, row, net) for scene in scenes] for row in ("unedited", *ROWS)}
    report = {}
    for row in ROWS:
        found = [scores(*shown) for shown in zip(scenes, made["unedited"], made[row], strict=True)]
        ball, others, blue = (float(value) for value in np.mean(found, axis=0))
        report[row] = {"ball": ball, "others": others, "worst": max(share for _, share, _ in found), "blue": blue}
        print(f"{row:12}" + "  ".join(f"{name} {value:.3f}" for name, value in report[row].items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"scenes": len(scenes), **report}, indent=2) + "\n", encoding="utf-8")
    if args.picture:
        sheet(list(zip(*made.values(), strict=True))[:8], args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
