"""Readers that are called without the command line: each gets the folder of its case, and raises what users see."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.detect import identify_file
from comfyui_controlnet_core.controlnet_core.checkpoints.io import read_header, read_tensors
from comfyui_controlnet_core.controlnet_core.checkpoints.verify import load_models
from comfyui_controlnet_core.controlnet_core.errors import CoreError
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel, TextEncoder
from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer
from comfyui_controlnet_core.controlnet_core.picture_files import count_frames, decode_picture
from comfyui_controlnet_core.controlnet_core.training.example_folder import open_examples
from comfyui_controlnet_core.nodes.pictures import read_mask, read_picture
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.preprocessors.pose import read_poses
from comfyui_controlnet_core.workflows.model_paths import model_folders

from .corpus import MODEL

MODEL_NAME, PICTURE_NAME, POSE_NAME, PROMPT_NAME, PATHS_NAME, EXAMPLES_NAME = (
    "m", "p", "pose.json", "prompt.txt", "extra.yaml", "data",
)  # fmt: skip


def load_model(work: Path) -> None:
    """Load the weights of a model file or folder, as a node or a training does."""
    path = next(iter(sorted(path for path in work.iterdir() if path.name.startswith(MODEL_NAME))))
    identity = identify_file(path)
    if identity.supported:
        load_models(path, identity, "cpu")
    else:
        read_tensors(read_header(path))


def load_picture(work: Path) -> None:
    """Read a picture as LoadImage and LoadImageMask do."""
    (path,) = (path for path in work.iterdir() if path.name.startswith(PICTURE_NAME))
    read_picture(path, lambda note: None)
    for channel in ("red", "alpha"):
        read_mask(path, channel)


def decode_member(work: Path) -> None:
    """Read a picture as the trainer and the readers of archives do: from its bytes, over white."""
    (path,) = (path for path in work.iterdir() if path.name.startswith(PICTURE_NAME))
    picture = decode_picture(path.read_bytes(), path)
    picture.over_white(), picture.unit(), picture.alpha()
    count_frames(path)


def read_pose(work: Path) -> None:
    """Read a pose as PoseRender does, without drawing it."""
    text = (work / POSE_NAME).read_bytes().decode("utf-8", "replace")
    for size in (None, 32):
        read_poses(text, height=size, width=size)


@cache
def _text_encoder() -> TextEncoder:
    torch.manual_seed(0)
    config = MODEL.text.__class__(width=32, layers=1, heads=2)
    return TextEncoder(ClipTextModel(config).eval(), ClipTokenizer.load(), config)


@torch.inference_mode()
def encode_prompt(work: Path) -> None:
    """Encode a prompt as CLIPTextEncode does, with the textual inversions of a models folder."""
    prompt = (work / PROMPT_NAME).read_bytes().decode("utf-8", "surrogatepass")
    host = StandaloneHost(work, work, models_dirs=(work / "models",), device="cpu")
    encoder = _text_encoder()
    encoder.encode_pooled(prompt, host.embedding)
    encoder.tokenizer.decode(encoder.tokenizer.encode(prompt))


def read_examples(work: Path) -> None:
    """Open a folder of examples, and read all of them as a training does."""
    faults: list[str] = []
    options: dict[str, Any] = {"on_fault": faults.append, "known_sizes": work / "sizes.json"}
    try:
        data = open_examples(work / EXAMPLES_NAME, 16, **options)
    except CoreError:
        data = open_examples(work / EXAMPLES_NAME, 16, skip_bad=True, **options)
    rows = range(len(data))
    if rows:
        data.pictures(rows), data.hints(rows), data.captions(rows)


def read_paths(work: Path) -> None:
    """Read an extra_model_paths.yaml."""
    model_folders([work / PATHS_NAME], lambda text: None)


CALLS: dict[str, Callable[[Path], object]] = {
    call.__name__: call
    for call in (load_model, load_picture, decode_member, read_pose, encode_prompt, read_examples, read_paths)
}  # fmt: skip
