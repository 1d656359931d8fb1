"""Files of a CtrLoRA with random weights, in the original layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.ctrlora import rules
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.config import UNetConfig
from comfyui_controlnet_core.controlnet_core.models.ctrlora import CtrLora, CtrLoraConfig
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from safetensors.torch import save_file
from torch import Tensor, nn

PREFIX = "control_model."
RANK = 4


def random_weights(config: UNetConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a base by our names; zero convolutions are not 0."""
    torch.manual_seed(seed)
    net = CtrLora(CtrLoraConfig(config))
    return {name: uniform(tensor.shape, seed + n) for n, (name, tensor) in enumerate(net.state_dict().items())}


def uniform(shape: tuple[int, ...], seed: int) -> Tensor:
    scale = 1.0 if len(shape) < 2 else torch.empty(shape)[0].numel() ** -0.5
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 3.4 - 1.7) * scale


def linear_layers(config: UNetConfig) -> list[str]:
    """Our names of the linear layers."""
    return [name for name, layer in CtrLora(CtrLoraConfig(config)).named_modules() if isinstance(layer, nn.Linear)]


def theirs(config: UNetConfig, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of the original layout."""
    keymap = KeyMap(rules(config))
    return {PREFIX + str(keymap.to_theirs(name)): tensor.contiguous() for name, tensor in names.items()}


def save_base(folder: Path, config: UNetConfig, seed: int = 0) -> dict[str, Tensor]:
    """Write base.safetensors, with a LoRA layer in it that has to be ignored. Returns its weights by our names."""
    weights = random_weights(config, seed)
    state = theirs(config, weights)
    state[f"{PREFIX}time_embed.0.lora_layer.down.weight"] = torch.zeros(RANK, config.widths[0])
    save_file(state, folder / "base.safetensors")
    return weights


def save_lora(folder: Path, config: UNetConfig, seed: int = 1000) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Write lora.safetensors. Returns what it replaces by our names, and its pairs by NAME.up and NAME.down."""
    state = theirs(config, random_weights(config, seed))
    whole = {k: v for k, v in state.items() if "zero_convs" in k or "middle_block_out" in k or "norm" in k}
    pairs = {}
    for number, name in enumerate(linear_layers(config)):
        out, inner = random_weights_shape(config, name)
        pairs[f"{name}.down"] = uniform((RANK, inner), seed + number)
        pairs[f"{name}.up"] = uniform((out, RANK), seed - number)
        stem = next(iter(theirs(config, {f"{name}.weight": torch.empty(0)}))).removesuffix(".weight")
        for half in ("up", "down"):
            whole[f"{stem}.lora_layer.{half}.weight"] = pairs[f"{name}.{half}"]
    save_file(whole, folder / "lora.safetensors")
    keymap = KeyMap(rules(config))
    kept = {k: v for k, v in whole.items() if ".lora_layer." not in k}
    return {str(keymap.to_ours(k.removeprefix(PREFIX))): v for k, v in kept.items()}, pairs


def random_weights_shape(config: UNetConfig, name: str) -> tuple[int, int]:
    """Shape of a linear layer's weight."""
    with on_meta():
        shape = CtrLora(CtrLoraConfig(config)).state_dict()[f"{name}.weight"].shape
    return int(shape[0]), int(shape[1])
