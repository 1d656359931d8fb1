"""Blocks in fewer, larger kernels, for a GPU: there launches and passes over memory decide, not arithmetic.

Queries, keys and values of a self attention come out of one product; a group normalisation, the SiLU behind it and
the timestep added before it are one pass (`engine.triton_norm`), where Triton is there and the memory is channels_last:
torch's own, on a GPU, lays such a picture out anew before it and behind it (pytorch#111824). Elsewhere the same formula
in torch. Same results within rounding.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..models.layers import Attention, KeyValue, ResBlock, SpatialTransformer, TransformerBlock, repeat_rows
from .rebuild import copy_leaf, rebuild, rebuild_inside

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class WideNorm(nn.Module):
    """A group normalisation, with a shift before it and SiLU behind it, or without."""

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


class WideResBlock(nn.Module):
    """A `ResBlock` with its normalisations, activations and the timestep in one pass each."""

    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = WideNorm(block.norm1), WideNorm(block.norm2)
        self.conv1, self.conv2, self.emb, self.skip = block.conv1, block.conv2, block.emb, block.skip

    def time_shift(self, emb: Tensor) -> Tensor:
        """As `ResBlock.time_shift`."""
        return self.emb(F.silu(emb))[:, :, None, None]

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """As `ResBlock.forward`."""
        h = self.conv2(self.norm2(self.conv1(self.norm1(x)), shift))
        return h + (x if self.skip is None else self.skip(x))


class WideSelfAttention(nn.Module):
    """An `Attention` of tokens to themselves: one product for queries, keys and values."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads, self.out = attention.heads, attention.out
        self.qkv = nn.Parameter(_joined([attention.q, attention.k, attention.v]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        q, k, v = rearrange(F.linear(x, self.qkv), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class WideTransformerBlock(nn.Module):
    """A `TransformerBlock` whose self attention is wide; the text's keys and values are made once per run anyway."""

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.norm1, self.attn1 = block.norm1, WideSelfAttention(block.attn1)
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.norm3, self.ff = block.norm3, block.ff

    def forward(self, x: Tensor, kv: KeyValue) -> Tensor:
        """As `TransformerBlock.forward`."""
        x = repeat_rows(x + self.attn1(self.norm1(x)), kv[0].shape[0])
        x = x + self.attn2(self.norm2(x), kv)
        return x + self.ff(self.norm3(x))


def widen(module: ModuleT) -> ModuleT:
    """A twin with wide blocks around the same weights.

    Of a self attention's products the module's own weights become views into the joined one, so that nothing is held
    twice; their values are what they were.
    """

    def replace(leaf: nn.Module) -> nn.Module | None:
        if type(leaf) is ResBlock:
            return WideResBlock(rebuild_inside(leaf, replace))
        if type(leaf) is TransformerBlock:
            return WideTransformerBlock(rebuild_inside(leaf, replace))
        if type(leaf) is SpatialTransformer:
            twin = rebuild_inside(leaf, replace)
            twin.register_module("norm", WideNorm(leaf.norm, silu=False))
            return twin
        return copy_leaf(leaf)

    return rebuild(module, replace)


def _joined(layers: list[nn.Linear]) -> Tensor:
    """The weights one below the other (sum of widths, in), of which the layers' own become views."""
    with torch.inference_mode(False):  # the module may be used outside of it
        joined = torch.cat([layer.weight.detach().clone() for layer in layers])
    for layer, part in zip(layers, joined.split([layer.out_features for layer in layers]), strict=True):
        layer.weight = nn.Parameter(part, requires_grad=layer.weight.requires_grad)
    return joined


def _kernels(device: torch.device) -> ModuleType | None:
    """The kernels for a device, where there are any."""
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    from . import triton_norm

    return triton_norm
