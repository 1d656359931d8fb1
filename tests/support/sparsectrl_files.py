"""A SparseCtrl file with random weights, in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.checkpoints.sparsectrl import rules
from comfyui_controlnet_core.controlnet_core.config import SparseCtrlConfig, UNetConfig
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from comfyui_controlnet_core.controlnet_core.models.sparsectrl import SparseCtrl
from safetensors.torch import save_file


def save_sparsectrl(path: Path, unet: UNetConfig, latents: bool = False) -> None:
    """Write a net for this base. latents: one that reads latents of its hints."""
    config = SparseCtrlConfig(unet, 5, ()) if latents else SparseCtrlConfig(unet, 4, (16, 16, 16, 16))
    with on_meta():
        shapes = {name: tensor.shape for name, tensor in SparseCtrl(config).state_dict().items()}
    keymap, state = KeyMap(rules(unet, 2 * len(config.hint_widths))), {}
    for number, (name, shape) in enumerate(shapes.items()):
        scale = 1.0 if len(shape) < 2 else shape[1:].numel() ** -0.5
        value = torch.rand(shape, generator=torch.Generator().manual_seed(number)) * 3.4 - 1.7
        state[str(keymap.to_theirs(name))] = value * scale
    save_file(state, path)
