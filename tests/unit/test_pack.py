"""Packed twins of single blocks against the blocks themselves."""

from __future__ import annotations

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.engine.fuse import FusedFeedForward
from comfyui_controlnet_core.controlnet_core.engine.pack import can_pack, pack
from comfyui_controlnet_core.controlnet_core.models.layers import ResBlock, TransformerBlock
from torch import nn

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2}
"""Of the largest value."""


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Both that a processor may pack."""
    if not can_pack(torch.device("cpu"), request.param):
        pytest.skip(f"this processor has no packed layers in {request.param}")
    return request.param


def assert_same(block: nn.Module, dtype: torch.dtype, *inputs: torch.Tensor) -> None:
    """The packed twin's output beside the block's own in float32; inputs are left as they are."""
    before = [x.clone() for x in inputs]
    kv = inputs[1] if len(inputs) == 2 else inputs[1:]
    with torch.inference_mode():
        plain = block(inputs[0], kv)
        cast = [x.to(dtype) for x in inputs]
        cast_kv = cast[1] if len(cast) == 2 else tuple(cast[1:])
        packed = pack(block, dtype)(cast[0], cast_kv)
    assert packed.dtype == dtype and packed.shape == plain.shape
    assert float((packed.float() - plain).abs().max()) <= TOLERANCE[dtype] * float(plain.abs().max())
    assert all(torch.equal(x, b) for x, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("width_in", [64, 96])
def test_residual_block(width_in: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, width_in, 9, 7).contiguous(memory_format=torch.channels_last)
    assert_same(ResBlock(width_in, 64, 32), dtype, x, torch.randn(2, 64, 1, 1))


@pytest.mark.parametrize("tokens", [1, FusedFeedForward.TOKENS, FusedFeedForward.TOKENS + 37])
def test_transformer_block_for_any_number_of_tokens(tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    block = TransformerBlock(64, 48, 4)
    keys, values = torch.randn(2, 2, 4, 11, 16)
    assert_same(block, dtype, torch.randn(2, tokens, 64), keys, values)
