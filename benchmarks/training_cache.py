"""Measure how much faster an epoch of a training is when latents and texts are encoded once.

    python benchmarks/training_cache.py [--base FILE] [--size 128] [--examples 32] [--batch 4] [--json FILE]

The same training three times: encoded at each step, kept in memory, and read from the shards of `--cache`. Epochs
alternate, so that a disturbance of the machine meets all; the epoch that fills memory and disk is not counted. The data
are scenes of the demo world with Canny edges, in PNG files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.training.controlnet_training import ControlNetTraining, prepare_training
from comfyui_controlnet_core.controlnet_core.training.demo_world import render_seed
from comfyui_controlnet_core.controlnet_core.training.disk_cache import DiskCache
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.controlnet_core.training.loop import Recipe
from comfyui_controlnet_core.nodes.example_pictures import VIEWS
from comfyui_controlnet_core.nodes.standalone.host import ASSETS
from measure import machine, seconds
from PIL import Image


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=ASSETS / "demo_base.safetensors")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--examples", type=int, default=32, help="trained on; two more are held out")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3, help="counted epochs of each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        make_examples(Path(folder), args.examples + 2, args.size)
        trainings = {
            "encoded at each step": prepare(args, Path(folder), keep_bytes=0),
            "kept in memory": prepare(args, Path(folder)),
            "from the disk": prepare(args, Path(folder), DiskCache(Path(folder) / "cache", "benchmark"), keep_bytes=0),
        }
        taken: dict[str, list[float]] = {name: [] for name in trainings}
        for epoch in range(1, args.epochs + 2):
            for name, training in trainings.items():
                until = epoch * args.examples // args.batch
                spent = seconds(lambda training=training, until=until: train(training, until), device)
                training.flush()
                if epoch > 1:
                    taken[name].append(spent)
    slowest = statistics.median(taken["encoded at each step"])
    print(f"{args.base.stem}, {args.size} pixels, {args.examples} examples, batch {args.batch}: seconds per epoch")
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"{name:24}{median:9.2f}  spread {max(times) - min(times):.2f}  {slowest / median:.2f} times as fast")
    if args.json:
        about = {name: getattr(args, name) for name in ("size", "examples", "batch")}
        args.json.write_text(json.dumps({**machine(device), **about, "seconds": taken}, indent=1))
    return 0


def make_examples(folder: Path, count: int, size: int) -> None:
    """Pictures, hints and captions as files."""
    for name in ("source", "target"):
        (folder / name).mkdir()
    for number in range(count):
        scene = render_seed(number, size)
        for name, view in (("target", "picture"), ("source", "canny")):
            pixels = (np.clip(VIEWS[view](scene), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
        (folder / "target" / f"{number}.txt").write_text(scene.caption)


def prepare(
    args: argparse.Namespace, folder: Path, disk: DiskCache | None = None, **how: int
) -> ControlNetTraining:
    """A training on a base of its own."""
    base = load_checkpoint(args.base, dtype=torch.float32)
    # More steps than are made, so that each call goes on where the last one ended.
    recipe = Recipe(steps=10**6, batch=args.batch, lr=1e-5)
    return prepare_training(base, open_examples(folder, args.size), recipe, device=args.device, disk=disk, **how)


def train(training: ControlNetTraining, until: int) -> None:
    """Train to a step."""
    training.loop.run(cancelled=lambda: training.loop.step >= until)


if __name__ == "__main__":
    sys.exit(main())
