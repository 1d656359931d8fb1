"""Scenes as picture files with captions, to train on as on photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .rendering import render_many


def write_scenes(folder: str | Path, count: int, size: int = 128, first: int = 0) -> None:
    """Write `count` scenes as `00000.png` with the caption in `00000.txt`, such as `target/` of a training.

    size: side in pixels. first: seed of the first scene; the scene of a seed is always the same.
    """
    from PIL import Image

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # In one process: others would have to import the module that calls this, which may be a notebook or `-c`.
    for number, scene in enumerate(render_many(range(first, first + count), size, workers=1)):
        pixels = (np.clip(scene.image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
        (folder / f"{number:05d}.txt").write_text(scene.caption, encoding="utf-8")
        Image.fromarray(pixels).save(folder / f"{number:05d}.png")
