"""ControlNet-XS files with random weights, in both layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.controlnet_xs import ORIGINAL, rules
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.config import ControlNetXSConfig, UNetConfig
from comfyui_controlnet_core.controlnet_core.models.controlnet_xs import ControlNetXS
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from safetensors.torch import save_file
from torch import Tensor


def xs_config(unet: UNetConfig, width: int = 8, time_mix: float | None = 1.0) -> ControlNetXSConfig:
    """A net for this base, with the same width at all levels, by the rules for groups of diffusers' layout."""
    levels = len(unet.widths)
    return ControlNetXSConfig(
        base_widths=unet.widths, widths=(width,) * levels, res_blocks=unet.res_blocks,
        transformer_depth=unet.transformer_depth, middle_depth=unet.middle_depth, heads=(8,) * levels,
        context_dim=unet.context_dim, linear_projection=unet.linear_projection, time_mix=time_mix,
        middle_groups=(8, 8), hint_widths=(4, 4, 8, 8),
    )  # fmt: skip


def random_state(config: ControlNetXSConfig, seed: int = 1) -> dict[str, Tensor]:
    """Weights by our names."""
    with on_meta():
        shapes = {name: tensor.shape for name, tensor in ControlNetXS(config).state_dict().items()}
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        scale = 1.0 if len(shape) < 2 else shape[1:].numel() ** -0.5
        state[name] = (torch.rand(shape, generator=generator) * 3.4 - 1.7) * scale
    return state


def save_xs(path: Path, config: ControlNetXSConfig, state: Mapping[str, Tensor], layout: str = "diffusers") -> Path:
    """Write weights by our names as a file of this layout."""
    keymap = KeyMap(rules(config.unet, 2 * len(config.hint_widths), layout))
    named = {str(keymap.to_theirs(name)): tensor for name, tensor in state.items()}
    if layout == ORIGINAL:
        named["scale_list"] = torch.ones(3)
    save_file(named, path)
    return path
