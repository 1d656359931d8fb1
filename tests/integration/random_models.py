"""Small files with random weights in Stable Diffusion 1.5's layout, which ComfyUI loads as well.

ComfyUI recognises a UNet by its width of 320 and its text by 768, and makes CLIP and autoencoder of their full size
whatever a file has. So only the UNet is cut: two levels with one residual block each.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint, save_controlnet, save_vae
from comfyui_controlnet_core.controlnet_core.config import SD15, ModelConfig
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

SMALL = replace(SD15, unet=replace(SD15.unet, widths=(320, 640), res_blocks=1, transformer_depth=(0, 1)))
INPAINT = replace(SMALL, unet=replace(SMALL.unet, in_channels=9))
_LORA = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def checkpoint(config: ModelConfig, path: Path) -> None:
    torch.manual_seed(config.unet.in_channels)
    save_checkpoint(path, config, UNet(config.unet), AutoencoderKL(config.vae), ClipTextModel(config.text))


def controlnet(path: Path) -> None:
    """A ControlNet whose zero convolutions add something."""
    torch.manual_seed(1)
    net = ControlNet.from_unet(UNet(SMALL.unet), SMALL.controlnet)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    save_controlnet(path, net, family="sd15")


def vae(path: Path) -> None:
    torch.manual_seed(2)
    save_vae(path, AutoencoderKL(SMALL.vae))


def lora(path: Path) -> None:
    torch.manual_seed(3)
    shapes = {"lora_down.weight": (4, 768), "lora_up.weight": (3072, 4)}
    tensors = {f"{_LORA}.{name}": 0.1 * torch.randn(shape) for name, shape in shapes.items()}
    save_file({**tensors, f"{_LORA}.alpha": torch.tensor(4.0)}, path)


def embedding(path: Path) -> None:
    torch.manual_seed(4)
    save_file({"emb_params": 0.1 * torch.randn(2, 768)}, path)


def upscaler(path: Path) -> None:
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(5)
    torch.save(ESRGAN(num_filters=8, num_blocks=1, scale=2).state_dict(), path)


def picture(path: Path) -> None:
    """A photo-like picture with a hole in its alpha channel."""
    values = np.random.default_rng(6).integers(0, 256, (8, 8, 4), np.uint8)
    values[..., 3] = 255
    values[2:6, 2:6, 3] = 0
    image = Image.fromarray(values, "RGBA").resize((128, 128), Image.Resampling.BICUBIC)
    image.save(path, "PNG")


MAKERS: Mapping[str, Callable[[Path], None]] = {
    "checkpoints": partial(checkpoint, SMALL),
    "inpainting": partial(checkpoint, INPAINT),
    "controlnet": controlnet,
    "vae": vae,
    "loras": lora,
    "embeddings": embedding,
    "upscale_models": upscaler,
    "input": picture,
}
"""By the folder of the kind; "inpainting" for checkpoints whose name has this word."""


class Stock:
    """One file of each kind, which links under the names that workflows ask for lead to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, kind: str) -> Path:
        ending = {"input": ".png", "upscale_models": ".pth"}.get(kind, ".safetensors")
        path = (self.folder / kind).with_suffix(ending)
        if not path.exists():
            MAKERS[kind](path)
        return path

    def put(self, kind: str, name: str, base: Path) -> None:
        """Offer a file of a kind under a name in a base folder of ComfyUI."""
        path = (base / "input" if kind == "input" else base / "models" / kind).joinpath(*name.split("/"))
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "input":
            # ComfyUI refuses a picture behind a link that leaves its folder.
            shutil.copy(self.file(kind), path)
            return
        file = self.file("inpainting" if kind == "checkpoints" and "inpaint" in name.lower() else kind)
        path.symlink_to(file if path.suffix in (file.suffix, ".sft") else self.pickled(file))

    def pickled(self, file: Path) -> Path:
        """The same tensors for names such as model.ckpt."""
        path = file.with_suffix(".ckpt")
        if file.suffix != ".safetensors":
            return file
        if not path.exists():
            torch.save({"state_dict": load_file(file)}, path)
        return path
