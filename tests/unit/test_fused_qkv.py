"""Blocks in fewer kernels beside the blocks themselves; the Triton kernels in Triton's own interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.speed.fused_qkv import (
    FusedGpuResBlock,
    FusedGpuTransformerBlock,
    transform,
)
from installed import is_older


@torch.inference_mode()
def test_a_wide_twin_computes_the_same_and_holds_no_weight_twice() -> None:
    torch.manual_seed(0)
    unet = UNet(DEMO.unet).eval()
    before = {name: p.clone() for name, p in unet.state_dict().items()}
    x, t, text = torch.randn(2, 4, 16, 16), torch.tensor([400.0, 400.0]), torch.randn(2, 77, DEMO.unet.context_dim)
    x = x.contiguous(memory_format=torch.channels_last)
    plain = unet(x, t, text)
    twin = transform(unet)
    kinds = [type(module) for module in twin.modules()]
    assert kinds.count(FusedGpuResBlock) and kinds.count(FusedGpuTransformerBlock)
    assert float((twin(x, t, text) - plain).abs().max()) <= 2e-6 * float(plain.abs().max())
    assert all(torch.equal(p, before[name]) for name, p in unet.state_dict().items())
    own = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    assert {p.untyped_storage().data_ptr() for p in twin.parameters()} <= own
    assert torch.equal(unet(x, t, text), plain)


@torch.inference_mode()
def test_a_wide_controlnet_gives_the_same_residuals() -> None:
    torch.manual_seed(1)
    net = ControlNet(DEMO.controlnet).eval()
    for zero in net.zeros:
        torch.nn.init.normal_(zero.conv.weight, std=0.05)
    x, t, text = torch.randn(1, 4, 16, 16), torch.tensor([400.0]), torch.randn(1, 77, DEMO.unet.context_dim)
    hint = torch.rand(1, 3, 128, 128)
    plain = net(x, t, text, hint)
    wide = transform(net)(x, t, text, hint)
    torch.testing.assert_close(wide.middle, plain.middle, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wide.skips, plain.skips, rtol=1e-4, atol=1e-5)


CHECK = """
import torch
import torch.nn.functional as F
from comfyui_controlnet_core.controlnet_core.speed.triton_norm import group_norm

for batch, channels, groups, height, width, shifts, dtype, offset in [
    (2, 64, 32, 9, 7, 2, torch.float32, 0.0),
    (1, 96, 32, 24, 40, 1, torch.float32, 100.0),
    (2, 160, 32, 5, 3, 0, torch.float16, 0.0),
    (1, 64, 32, 1, 1, 1, torch.float32, 0.0),
]:
    torch.manual_seed(0)
    x = (torch.randn(batch, channels, height, width) + offset).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, channels).to(dtype)
    shift = torch.randn(shifts, channels, 1, 1).to(dtype) if shifts else None
    wide = x.double() if shift is None else x.double() + shift.double()
    truth = F.silu(F.group_norm(wide, groups, weight.double(), bias.double(), 1e-5))
    made = group_norm(x, groups, weight, bias, 1e-5, shift)
    assert made.dtype == dtype and made.is_contiguous(memory_format=torch.channels_last)
    error = float((made.double() - truth).abs().max() / truth.abs().max())
    assert error < (1e-3 if dtype == torch.float16 else 2e-5), (channels, height, error)
"""
"""Against float64, with uneven parts and tiles, with and without a shift, and far from zero mean."""


@pytest.mark.skipif(not find_spec("triton") or is_older("triton", 3, 2), reason="needs triton 3.2 or newer")
def test_triton_kernels_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
