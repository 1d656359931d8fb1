"""Blocks in fewer, larger kernels for a GPU, where launches and passes over memory cost more than arithmetic.

Queries, keys and values of a self attention come from one product. A group normalisation, the SiLU after it and the
timestep shift before it are one pass (`speed.triton_norm`) if Triton is installed and the memory is channels_last:
torch's own kernel converts the layout before and after (pytorch#111824). Elsewhere the same formula runs in torch.
The results are equal within rounding. Never measured on a GPU.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..models.layers import (
    Attention,
    KeyValue,
    ResBlock,
    SpatialTransformer,
    TransformerBlock,
    controlled_block,
    repeat_rows,
)
from ..models.module_tree import copy_leaf, rebuild, rebuild_inside
from .context import WeightPolicy

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class FusedNorm(nn.Module):
    """A group normalisation, optionally with a shift before it and SiLU after it."""

    def __init__(self, norm: nn.GroupNorm, silu: bool = True) -> None:
        super().__init__()
        self.norm, self.silu, self.kernels = norm, silu, _kernels(norm.weight.device)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """silu(norm(x + shift)). x: (B, C, H, W); shift: (1 or B, C, 1, 1)."""
        norm = self.norm
        if self.kernels is not None and x.is_contiguous(memory_format=torch.channels_last):
            with torch.cuda.device(x.device):  # Triton starts kernels on the current one
                return self.kernels.group_norm(
                    x, norm.num_groups, norm.weight, norm.bias, norm.eps, shift, silu=self.silu
                )
        normed = norm(x if shift is None else x + shift)
        return F.silu(normed) if self.silu else normed


class FusedGpuResBlock(nn.Module):
    """A `ResBlock` whose normalisation, shift and activation are one pass each."""

    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = FusedNorm(block.norm1), FusedNorm(block.norm2)
        self.conv1, self.conv2, self.emb, self.skip = block.conv1, block.conv2, block.emb, block.skip

    def time_shift(self, emb: Tensor) -> Tensor:
        """(B, embed_dim) timestep embedding -> (B, width, 1, 1) shift."""
        assert self.emb is not None
        return self.emb(F.silu(emb))[:, :, None, None]

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """(B, width_in, H, W) -> (B, width, H, W)."""
        h = self.conv2(self.norm2(self.conv1(self.norm1(x)), shift))
        return h + (x if self.skip is None else self.skip(x))


class FusedSelfAttention(nn.Module):
    """Self attention with one product for queries, keys and values."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads, self.out = attention.heads, attention.out
        self.qkv = nn.Parameter(_joined([attention.q, attention.k, attention.v]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        return self._attend(*rearrange(F.linear(x, self.qkv), "b n (three c) -> three b n c", three=3))

    def of_three(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention where queries, keys and values read different tokens: three products instead of one."""
        weights = self.qkv.tensor_split(3)
        return self._attend(*(F.linear(x, weight) for x, weight in zip((query, key, value), weights, strict=True)))

    def _attend(self, *qkv: Tensor) -> Tensor:
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.heads) for x in qkv)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class FusedGpuTransformerBlock(nn.Module):
    """A `TransformerBlock` with fused self attention. Keys and values of the text are made once per run anyway."""

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.norm1, self.attn1 = block.norm1, FusedSelfAttention(block.attn1)
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.norm3, self.ff = block.norm3, block.ff

    def forward(self, x: Tensor, kv: KeyValue) -> Tensor:
        """(B or fewer, N, width) -> (B, N, width)."""
        if changes := kv[2:]:
            return controlled_block(self, x, kv[:2], changes)
        x = repeat_rows(x + self.attn1(self.norm1(x)), kv[0].shape[0])
        x = x + self.attn2(self.norm2(x), kv)
        return x + self.ff(self.norm3(x))

    def self_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the self attention of tokens (B, N, width), before the skip connection is added."""
        return self.attn1.of_three(query, key, value)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return x plus the feed-forward network of its normalised tokens."""
        return x + self.ff(self.norm3(x))


def transform(module: ModuleT, policy: WeightPolicy | None = None) -> ModuleT:
    """A second tree with fused blocks around the same weights.

    The original's query, key and value weights become views into the joined weight, so that nothing is held twice.
    Their values do not change.
    """

    def replace(leaf: nn.Module) -> nn.Module | None:
        if type(leaf) is ResBlock:
            return FusedGpuResBlock(rebuild_inside(leaf, replace))
        if type(leaf) is TransformerBlock:
            return FusedGpuTransformerBlock(rebuild_inside(leaf, replace))
        if type(leaf) is SpatialTransformer:
            twin = rebuild_inside(leaf, replace)
            twin.register_module("norm", FusedNorm(leaf.norm, silu=False))
            return twin
        return copy_leaf(leaf)

    return rebuild(module, replace)


def _joined(layers: list[nn.Linear]) -> Tensor:
    """The weights stacked, (sum of widths, in); the layers' own weights become views of it."""
    with torch.inference_mode(False):  # the module may be used outside of it
        joined = torch.cat([layer.weight.detach().clone() for layer in layers])
    for layer, part in zip(layers, joined.split([layer.out_features for layer in layers]), strict=True):
        layer.weight = nn.Parameter(part, requires_grad=layer.weight.requires_grad)
    return joined


def _kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernels, if they can run on this device."""
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    from . import triton_norm

    return triton_norm
