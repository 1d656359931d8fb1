"""Blocks of packed layers, computed in fewer passes over memory.

oneDNN applies the operation that follows a product (an added residual, a gate) while the result is still in the cache.
Activations that only the block itself uses are overwritten in place, and the wide middle of the feed-forward network is
never held whole. Same formulas as `models.layers`, in the same order. Inference only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.layers import KeyValue, ResBlock, TransformerBlock, controlled_block, repeat_rows


class FusedResBlock(nn.Module):
    """A `ResBlock` of packed layers: activations in place, the residual added by the last convolution."""

    block: Any  # typed as a ResBlock it would have plain convolutions, without `plus`

    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.block = block

    def time_shift(self, emb: Tensor) -> Tensor:
        """(B, embed_dim) timestep embedding -> (B, width, 1, 1) shift."""
        return self.block.time_shift(emb)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """(B, width_in, H, W) -> (B, width, H, W)."""
        block = self.block
        h = block.conv1(F.silu(block.norm1(x), inplace=True)).add_(shift)
        h = F.silu(block.norm2(h), inplace=True)
        return block.conv2.plus(h, x if block.skip is None else block.skip(x))


class FusedUpsample(nn.Module):
    """An `Upsample` of packed layers that does not build the enlarged input first."""

    block: Any

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, width, h, w) -> (B, width, *size), twice the size where none is given."""
        if size is None or size == (2 * x.shape[2], 2 * x.shape[3]):
            return self.block.conv.doubled(x)
        return self.block(x, size)


class FusedFeedForward(nn.Module):
    """A `FeedForward` (GEGLU) whose gate is applied inside the products, a few tokens at a time.

    The wide middle, 8 times the width of x, would be the largest tensor of the whole network.
    """

    TOKENS = 512
    """A piece of this many tokens is wide enough for the processor, and its middle stays in the cache."""
    value: Any
    gate: Any
    out: Any

    def __init__(self, value: nn.Module, gate: nn.Module, out: nn.Module) -> None:
        super().__init__()
        self.value, self.gate, self.out = value, gate, out

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + FeedForward(x), both (B, N, width)."""
        value, gate, out = (layer.ready() for layer in (self.value, self.gate, self.out))
        made = torch.empty_like(residual)
        flat = (t.view(-1, t.shape[-1]).split(self.TOKENS) for t in (x, residual, made))
        for piece, beside, target in zip(*flat, strict=True):
            gated = value.times(piece, gate.gelu(piece))
            target.copy_(out.plus(gated, beside))
        return made


class FusedTransformerBlock(nn.Module):
    """A `TransformerBlock` of packed layers: each residual added by the layer before it."""

    attn1: Any  # attentions with packed layers
    attn2: Any
    ff: Any  # a FusedFeedForward

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.norm3, self.ff = block.norm3, block.ff

    def forward(self, x: Tensor, kv: KeyValue) -> Tensor:
        """(B or fewer, N, width) -> (B, N, width)."""
        if changes := kv[2:]:
            return controlled_block(self, x, kv[:2], changes)
        x = repeat_rows(self._attend_to_itself(x), kv[0].shape[0])
        x = self.attn2.out.plus(self.attn2.attended(self.norm2(x), kv), x)
        return self.ff.plus(self.norm3(x), x)

    def self_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the self attention of tokens (B, N, width), before the skip connection is added."""
        return self.attn1(query, self.attn1.kv(key, value))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return x plus the feed-forward network of its normalised tokens."""
        return self.ff.plus(self.norm3(x), x)

    def _attend_to_itself(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        return self.attn1.out.plus(self.attn1.attended(normed, self.attn1.kv(normed)), x)
