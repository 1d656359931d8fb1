"""A tiny model with random weights, saved as the demo model is, and a host that finds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint, save_controlnet
from comfyui_controlnet_core.controlnet_core.config import DEMO, ModelConfig
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer, VocabMap
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.file_cache import FileCache
from comfyui_controlnet_core.nodes.standalone.host import ASSETS, StandaloneHost

WORDS = ("a", "red", "sphere", "on", "grey", "ground")
Run = Callable[..., Any]


def tiny(width: int) -> ModelConfig:
    """The demo model's shape, much narrower; `width` is that of the text."""
    return replace(
        DEMO,
        unet=replace(DEMO.unet, widths=(32, 32, 32), num_heads=2, context_dim=width),
        vae=replace(DEMO.vae, widths=(32, 32)),
        text=replace(DEMO.text, width=width, heads=2, layers=2, vocab_size=64),
        hint_widths=(16, 16, 16, 16),
    )


def random_controlnet(unet: UNet, config: ModelConfig, seed: int) -> ControlNet:
    """A ControlNet whose zero convolutions are not zero, so that it has an effect."""
    generator = torch.Generator().manual_seed(seed)
    net = ControlNet.from_unet(unet, config.controlnet)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    return net


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An assets folder: base, two ControlNets, photographs; and in `models` one for another base."""
    folder = tmp_path_factory.mktemp("assets")
    torch.manual_seed(0)
    config = tiny(32)
    vocab = VocabMap.from_words(ClipTokenizer.load(), WORDS)
    config = replace(config, text=replace(config.text, vocab_size=vocab.rows))
    unet, vae, text = UNet(config.unet), AutoencoderKL(config.vae), ClipTextModel(config.text)
    base = folder / "demo_base.safetensors"
    save_checkpoint(base, config, unet, vae, text, extras={"vocab_map": vocab.to_tensor()}, layout="core")
    for seed, kind in enumerate(("canny", "depth")):
        net = random_controlnet(unet, config, seed)
        save_controlnet(folder / f"demo_{kind}.safetensors", net, family="demo", layout="core")
    models = folder / "models"
    for name in ("checkpoints/sub/tiny.safetensors", "vae/tiny.safetensors"):
        (models / name).parent.mkdir(parents=True)
        (models / name).write_bytes(base.read_bytes())
    other = tiny(64)
    net = random_controlnet(UNet(other.unet), other, 2)
    save_controlnet(models / "controlnet" / "other.safetensors", net, family="other", layout="core")
    (models / "controlnet" / "tiny.safetensors").write_bytes((folder / "demo_canny.safetensors").read_bytes())
    (folder / "examples").mkdir()
    for photo in (ASSETS / "examples").glob("*.jpg"):
        (folder / "examples" / photo.name).write_bytes(photo.read_bytes())
    return folder


@pytest.fixture(scope="session")
def kept_files() -> FileCache:
    """Files that are loaded once for all tests: no node changes the weights of a loaded model."""
    return FileCache()


@pytest.fixture
def host(assets: Path, tmp_path: Path, kept_files: FileCache) -> StandaloneHost:
    """A host with the tiny models, and folders of its own."""
    (tmp_path / "input").mkdir()
    host = StandaloneHost(
        tmp_path / "input", tmp_path / "output", [assets / "models"], device="cpu", dtype="fp32", assets_dir=assets
    )
    host._cache = kept_files
    return host


@pytest.fixture
def run(host: StandaloneHost) -> Run:
    """run(node id, **inputs) -> what the node returns, defaults filled in."""
    classes = build_nodes(host)

    def call(name: str, **inputs: Any) -> Any:
        declared = classes[name].INPUT_TYPES()
        values = {}
        for key, entry in {**declared["required"], **declared.get("optional", {})}.items():
            options = entry[1] if len(entry) > 1 else {}
            if isinstance(entry[0], list):
                values[key] = options.get("default", entry[0][0] if entry[0] else "")
            elif "default" in options:
                values[key] = options["default"]
        return getattr(classes[name](), classes[name].FUNCTION)(**{**values, **inputs})

    return call
