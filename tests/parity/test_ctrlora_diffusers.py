"""CtrLoRA beside diffusers' ControlNet without its hint encoder, LoRA layers hooked to its linear layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.checkpoints.layouts import LAYOUTS
from comfyui_controlnet_core.controlnet_core.checkpoints.load_ctrlora import load_ctrlora
from comfyui_controlnet_core.controlnet_core.config import UNetConfig
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.models.control import BindContext
from comfyui_controlnet_core.controlnet_core.models.ctrlora import CtrLora
from ctrlora_files import save_base, save_lora
from few import rows_of
from random_tensors import normal, relative_error
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4
BASE = UNetConfig(widths=(32, 64, 64), transformer_depth=(1, 1, 0), num_heads=8, context_dim=48, middle_depth=1)
SCHEDULE = scaled_linear()
TIMESTEP, ROWS = 321.0, 2


def reference(weights: dict[str, Tensor]) -> Any:
    """diffusers' net with these weights by our names; its hint encoder puts out 0."""
    net = diffusers.ControlNetModel(
        block_out_channels=BASE.widths,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=BASE.res_blocks,
        cross_attention_dim=BASE.context_dim,
        attention_head_dim=BASE.num_heads,
        conditioning_embedding_out_channels=(16, 32),
    )
    to_theirs = KeyMap(LAYOUTS["diffusers"].controlnet_rules(BASE, 0)).to_theirs
    state = {str(to_theirs(name)): tensor for name, tensor in weights.items()}
    missing, left = net.load_state_dict(state, strict=False)
    assert not left and all(key.startswith("controlnet_cond_embedding.") for key in missing)
    for parameter in net.controlnet_cond_embedding.parameters():
        parameter.data.zero_()
    return net.eval()


def add_loras(net: Any, pairs: dict[str, Tensor]) -> None:
    """Hook up(down(x)) to the linear layers, as the published layers add it."""
    to_ours = KeyMap(LAYOUTS["diffusers"].controlnet_rules(BASE, 0)).to_ours
    hooked = set()
    for name, layer in net.named_modules():
        ours = (to_ours(f"{name}.weight") or "").removesuffix(".weight")
        if isinstance(layer, nn.Linear) and f"{ours}.up" in pairs:
            up, down = pairs[f"{ours}.up"], pairs[f"{ours}.down"]
            layer.register_forward_hook(lambda _, given, out, up=up, down=down: out + given[0] @ down.T @ up.T)
            hooked.add(ours)
    assert len(hooked) == len(pairs) // 2


def ours(net: CtrLora, latent: Tensor, text: Tensor, **how: Any) -> list[Tensor]:
    """The residuals for rows that show the hint whose latent is given."""
    sigma = float(SCHEDULE.sigma(torch.tensor(TIMESTEP)))
    context = BindContext(
        (torch.rand(len(latent), 3, 64, 128),), ("",), text, None, SCHEDULE, (sigma,),
        tuple(row % len(latent) for row in range(ROWS)), ROWS, (8, 16), False, BASE, **how,
    )  # fmt: skip
    bound = net.with_encoder(lambda hint: latent).bind(context)
    inputs = bound.inputs_at(sigma)
    x = normal(ROWS, 4, 8, 16, seed=9)
    steps = zip(net.features(x, inputs), net.projections(inputs), strict=True)
    return [projection(feature).expand(ROWS, -1, -1, -1) for feature, projection in steps]


def theirs(net: Any, latent: Tensor, text: Tensor) -> list[Tensor]:
    skips, middle = net(
        latent.expand(ROWS, -1, -1, -1), torch.full((ROWS,), TIMESTEP), text, torch.zeros(ROWS, 3, 16, 32),
        return_dict=False,
    )  # fmt: skip
    return [*skips, middle]


@pytest.mark.parametrize(("lora", "images"), rows_of([(False, 1), (False, 2), (True, 1), (True, 2)], 0, 3))
@torch.inference_mode()
def test_residuals(tmp_path: Path, lora: bool, images: int) -> None:
    weights = save_base(tmp_path, BASE)
    pairs: dict[str, Tensor] = {}
    if lora:
        replaced, pairs = save_lora(tmp_path, BASE)
        weights |= replaced
    net = load_ctrlora(tmp_path / "base.safetensors", tmp_path / "lora.safetensors" if lora else None)
    expected = reference(weights)
    add_loras(expected, pairs)
    latent, text = normal(images, 4, 8, 16, seed=1), normal(ROWS, 7, BASE.context_dim, seed=2)
    compare(ours(net, latent, text), theirs(expected, latent, text))
    compare(ours(net, latent, text, per_row=True), theirs(expected, latent, text))
    if lora:
        plain = load_ctrlora(tmp_path / "base.safetensors")
        assert relative_error(ours(plain, latent, text)[-1], theirs(expected, latent, text)[-1]) > 0.1


def compare(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    worst = max(relative_error(a, b) for a, b in zip(found, expected, strict=True))
    print(f"CtrLoRA: {worst:.1e}")
    assert worst <= TOLERANCE
