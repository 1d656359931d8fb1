"""The commands that are killed: what each needs, and what must hold for its files at any moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header, read_tensors
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_checkpoint
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_controlnet
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from PIL import Image

STEPS = 12
BASE, NET = "tiny.safetensors", "net.safetensors"


@dataclass(frozen=True)
class Job:
    """words: the command line. outputs: folders and files that it writes; numbered: each run adds files there."""

    words: tuple[str, ...]
    outputs: tuple[str, ...]
    numbered: bool = False


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _workflow(*outputs: dict[str, Any]) -> dict[str, Any]:
    """A picture sampled with control, and nodes that write it or something else."""
    nodes = {
        "model": _node("CheckpointLoaderSimple", ckpt_name=BASE),
        "text": _node("CLIPTextEncode", clip=["model", 1], text="a red ball"),
        "photo": _node("LoadImage", image="0.png"),
        "net": _node("ControlNetLoader", control_net_name=NET),
        "control": _node(
            "ControlNetApplyAdvanced", positive=["text", 0], negative=["text", 0], control_net=["net", 0],
            image=["photo", 0], strength=1.0, start_percent=0.0, end_percent=1.0,
        ),
        "latent": _node("EmptyLatentImage", width=64, height=64, batch_size=4),
        "sampled": _node(
            "KSampler", model=["model", 0], positive=["control", 0], negative=["control", 1],
            latent_image=["latent", 0],
            seed=1, steps=2, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "decoded": _node("VAEDecode", samples=["sampled", 0], vae=["model", 2]),
    }  # fmt: skip
    return {**nodes, **{f"out{n}": node for n, node in enumerate(outputs)}}


WORKFLOWS = {
    "run": _workflow(_node("SaveImage", images=["decoded", 0], filename_prefix="sub/a")),
    "save": {
        "net": _node("ControlNetLoader", control_net_name=NET),
        "out": _node(
            "CNCore_SaveControlNet", control_net=["net", 0], filename_prefix="a/n", layout="core", dtype="fp32"
        ),
        "photo": _node("LoadImage", image="0.png"),
        "picture": _node("SaveImage", images=["photo", 0], filename_prefix="p"),
    },
    "convert": {
        "out": _node(
            "CNCore_ConvertControlNet", control_net_name=NET, layout="diffusers", dtype="fp32", filename_prefix="c"
        )
    },
}
FOLDERS = ("--input", "input", "--models", "models", "--output", "out")
DEVICE = ("--device", "cpu")
JOBS = {
    "run": Job(("run", "run.json", *FOLDERS, *DEVICE, "--quiet", "--report", "r.json"), ("out", "r.json"), True),
    "preprocess": Job(("preprocess", "invert", "input", "--output", "hints", "--chunk", "2"), ("hints",)),
    "train": Job(
        (
            "train", "--data", "indexed", "--base", f"models/checkpoints/{BASE}", "--output", "trained.safetensors",
            "--steps", str(STEPS), "--batch", "2", "--lr", "1e-3", "--size", "64", "--save-every", "1",
            "--probe-every",
            "6", "--sample-every", "6", "--sample-steps", "1", *DEVICE,
        ),
        ("trained.safetensors", "trained_training"),
    ),
    "convert": Job(("run", "convert.json", *FOLDERS, *DEVICE, "--quiet"), ("out",), True),
    "save": Job(("run", "save.json", *FOLDERS, *DEVICE, "--quiet"), ("out",), True),
}  # fmt: skip


def prepare(folder: Path, make_examples: Callable[[Path], object]) -> None:
    """Write what the jobs read. make_examples: writes a tiny base and examples of a training."""
    make_examples(folder)
    for name in ("models/checkpoints", "models/controlnet", "input"):
        (folder / name).mkdir(parents=True)
    (folder / "base.safetensors").rename(folder / "models" / "checkpoints" / BASE)
    shutil.rmtree(folder / "paired")
    unet = load_checkpoint(folder / "models" / "checkpoints" / BASE).unet
    save_controlnet(folder / "models" / "controlnet" / NET, ControlNet.from_unet(unet), layout="core")
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / "input" / f"{number}.png")
    for name, graph in WORKFLOWS.items():
        (folder / f"{name}.json").write_text(json.dumps(graph))


def check_whole(path: Path) -> None:
    """Raise an error of its reader where a visible file is not whole."""
    if path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), "no end"
    elif path.suffix == ".json":
        json.loads(path.read_bytes())
    elif path.suffix in (".safetensors", ".state"):
        read_tensors(read_header(path))


def files_of(job: Job, folder: Path) -> list[Path]:
    """All files that a job has written."""
    found = (folder / name for name in job.outputs)
    return sorted(file for path in found for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def is_stray(path: Path) -> bool:
    """Whether a file is a temporary one, which no run may leave for good."""
    return path.name.startswith(".") or path.suffix in (".tmp", ".part")


def result_of(job: Job, folder: Path) -> dict[str, bytes]:
    """The content of what a job is run for, by name; logs and locks are left out."""
    kept = (".png", ".safetensors", ".state", ".json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files_of(job, folder) if file.suffix in kept}
