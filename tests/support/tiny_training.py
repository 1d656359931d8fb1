"""A base and a set of examples small enough to train on within a test."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.config import DEMO, ModelConfig
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer, VocabMap
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.controlnet_core.training.demo_world import render_many
from comfyui_controlnet_core.nodes.example_pictures import VIEWS
from comfyui_controlnet_core.workflows import cli
from PIL import Image

COUNT, SIZE = 9, 64
QUICK = ("--batch", "2", "--lr", "1e-3", "--size", str(SIZE), "--device", "cpu", "--sample-every", "0")


def tiny() -> ModelConfig:
    return replace(
        DEMO,
        unet=replace(DEMO.unet, widths=(32, 32), transformer_depth=(1, 0), num_heads=2, context_dim=32),
        vae=replace(DEMO.vae, widths=(32, 32)),
        text=replace(DEMO.text, width=32, heads=2, layers=1),
        hint_widths=(8, 8, 8, 16),
    )


def make_training_folder(folder: Path) -> Path:
    """A tiny base, and examples in both forms: `indexed` as fill50k has them, `paired` with text files."""
    # A copy for each test file, which may change it.
    for name, content in _training_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@lru_cache(maxsize=1)
def _training_files() -> Mapping[str, bytes]:
    """The files of the folder by name. They are rendered once for all test files of a process."""
    with tempfile.TemporaryDirectory() as made:
        folder = _render_folder(Path(made))
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _render_folder(folder: Path) -> Path:
    for name in ("indexed/source", "indexed/target", "paired/source", "paired/target"):
        (folder / name).mkdir(parents=True)
    lines, captions = [], []
    for number, scene in enumerate(render_many(range(COUNT), SIZE, 1)):
        captions.append(scene.caption)
        for place, pixels in (("target", scene.image), ("source", VIEWS["canny"](scene))):
            image = Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
            image.save(folder / "indexed" / place / f"{number}.png")
            image.save(folder / "paired" / place / f"{number}.png")
        (folder / "paired" / "target" / f"{number}.txt").write_text(scene.caption)
        names = {"source": f"source/{number}.png", "target": f"target/{number}.png"}
        lines.append(json.dumps({**names, "prompt": scene.caption}))
    (folder / "indexed" / "prompt.json").write_text("\n".join(lines))
    torch.manual_seed(0)
    vocab = VocabMap.from_words(ClipTokenizer.load(), captions)
    config = replace(tiny(), text=replace(tiny().text, vocab_size=vocab.rows))
    parts = UNet(config.unet), AutoencoderKL(config.vae), ClipTextModel(config.text)
    save_checkpoint(folder / "base.safetensors", config, *parts, extras={"vocab_map": vocab.to_tensor()}, layout="core")
    return folder


def train(folder: Path, output: Path, *more: str) -> int:
    data, base = str(folder / "indexed"), str(folder / "base.safetensors")
    return cli.main(["train", "--data", data, "--base", base, "--output", str(output), *QUICK, *more])
