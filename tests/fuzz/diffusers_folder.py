"""Writes a folder as `save_pretrained` of diffusers does. The package reads these folders and writes single files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from comfyui_controlnet_core.controlnet_core.checkpoints import diffusers
from comfyui_controlnet_core.controlnet_core.checkpoints.fileconfig import (
    CONFIG_KEY,
    config_to_json,
    controlnet_entries,
    unet_entries,
    vae_entries,
)
from comfyui_controlnet_core.controlnet_core.checkpoints.io import write_safetensors
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.config import ControlNetConfig, UNetConfig
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL


def save_folder(folder: Path, module: UNet | ControlNet | AutoencoderKL, *, dtype: torch.dtype | None = None) -> None:
    """Write weights and config.json. Raises CheckpointError where that layout has no such model."""
    config = module.config
    if isinstance(config, ControlNetConfig):
        rules = diffusers.controlnet_rules(config.unet, 2 * len(config.hint_widths))
        entries = controlnet_entries(config)
    elif isinstance(config, UNetConfig):
        rules, entries = diffusers.unet_rules(config), unet_entries(config)
    else:
        rules, entries = diffusers.vae_rules(len(config.widths)), vae_entries(config)
    keymap, tensors = KeyMap(rules), {}
    for name, tensor in module.state_dict().items():
        key = keymap.to_theirs(name)
        if key is None:
            raise CheckpointError(f"the layout has no name for the weight {name}")
        tensors[key] = tensor.flatten(1) if tensor.ndim > 2 and keymap.is_linear(name) else tensor
    metadata = {"format": "pt", CONFIG_KEY: config_to_json(config)}
    dtypes = {key: dtype or tensor.dtype for key, tensor in tensors.items()}
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors, metadata, dtypes)
    (folder / "config.json").write_text(json.dumps(entries, indent=2))
