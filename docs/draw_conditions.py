"""Draw the nine conditions of the paper on one scene of the demo world: `docs/images/conditions.jpg`.

python docs/draw_conditions.py [SCENE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import comfyui_controlnet_core as cn
import numpy as np
from comfyui_controlnet_core.nodes.example_pictures import render_scene
from PIL import Image, ImageDraw

# The order of the paper: title -> built-in net, which is also the name of the exact hint.
CONDITIONS = {
    "Canny edges": "canny", "straight lines": "lines", "soft edges": "soft_edge", "scribble": "scribble",
    "pose": "openpose", "segmentation": "segmentation", "normals": "normal", "depth": "depth", "line art": "lineart",
}  # fmt: skip
SIDE, GAP, TITLE = 150, 6, 18


def main(scene: str = "demo scene 2") -> None:
    """The true picture and the one without control, then for each condition its hint and the picture it makes."""
    pipe = cn.load("demo")
    truth, prompt = render_scene(scene, "picture", 128)
    columns = [("the scene", truth[0].numpy(), np.asarray(pipe(prompt, seed=7)) / 255.0, "without control")]
    for title, name in CONDITIONS.items():
        hint, _ = render_scene(scene, name, 128)
        made = pipe(prompt, controls=[cn.control(name, hint)], seed=7)
        columns.append((title, hint[0].numpy(), np.asarray(made) / 255.0, ""))
    sheet = Image.new("RGB", (len(columns) * (SIDE + GAP) - GAP, 2 * (SIDE + TITLE)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, upper, lower, below) in enumerate(columns):
        x = column * (SIDE + GAP)
        for row, (words, pixels) in enumerate(((title, upper), (below, lower))):
            y = row * (SIDE + TITLE)
            draw.text((x + 2, y + 3), words, "black")
            image = Image.fromarray((pixels.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))
            # Thin lines are kept as they are; the pictures are small, and smoothed.
            method = Image.Resampling.BICUBIC if row or column == 0 else Image.Resampling.NEAREST
            sheet.paste(image.resize((SIDE, SIDE), method), (x, y + TITLE))
    target = Path(__file__).parent / "images" / "conditions.jpg"
    sheet.save(target, quality=90, optimize=True)
    print(f"{target.name}: {prompt}")


if __name__ == "__main__":
    main(*sys.argv[1:])
