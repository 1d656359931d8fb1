"""Compiled transformer blocks beside plain ones. The tracer is torch's own; code is generated in the slow test only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.models.layers import TransformerBlock
from comfyui_controlnet_core.controlnet_core.models.module_tree import shell
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.speed.compiled import compile_blocks
from comfyui_controlnet_core.controlnet_core.speed.fused_qkv import FusedGpuTransformerBlock, transform

CONFIG = replace(DEMO.unet, widths=(32, 64), transformer_depth=(0, 1), context_dim=32)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("twin", [shell, transform])
@torch.inference_mode()
def test_compiled_blocks_compute_the_same(backend: str, twin) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    unet = UNet(CONFIG).eval()
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([400.0, 400.0]), torch.randn(2, 77, 32)
    plain = unet(x, t, text)
    compiled = compile_blocks(twin(unet), backend)
    assert float((compiled(x, t, text) - plain).abs().max()) <= 5e-6 * float(plain.abs().max())
    kind = TransformerBlock if twin is shell else FusedGpuTransformerBlock
    blocks = [module for module in compiled.modules() if isinstance(module, kind)]
    assert blocks and all(block._compiled_call_impl is not None for block in blocks)
    assert not any(module._compiled_call_impl for module in unet.modules())


@pytest.mark.slow
@torch.inference_mode()
def test_more_shapes_than_are_compiled_still_run() -> None:
    torch.manual_seed(1)
    block = TransformerBlock(32, 32, 4).eval()
    compiled = compile_blocks(shell(block), "eager")
    keys, values = torch.randn(2, 1, 4, 5, 8)
    for tokens in range(2, 13):
        x = torch.randn(1, tokens, 32)
        torch.testing.assert_close(compiled(x, (keys, values)), block(x, (keys, values)))
