"""The building blocks that UNet and ControlNet share.

Both halves of the guidance read the same latent, so their rows of x are equal until they first read their text. Up to
there they are computed once: x may have fewer rows than keys and values have. Where the text is read, the rows of x
are repeated for each text.

Every block splits its work in two. `time_shift` and `text_kv` compute what does not depend on x
(the timestep's projection; keys and values of the text), so that the engine can do it once before
the first step; `forward` does the rest. Tensors are (B, C, H, W), tokens (B, N, C).

Control inside the attentions (ControlNet-LLLite, region prompts) comes beside the text: keys, values, then changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import UNetConfig

GROUPS = 32
KeyValue: TypeAlias = tuple[Any, ...]
"""Keys and values of one cross attention, each (B, heads, tokens, head width); then any number of `AttentionChange`."""
TextKV: TypeAlias = tuple[KeyValue, ...]
"""Keys and values for each transformer block of one UNet block."""


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of timesteps (B,) -> (B, dim) float32, cosines first (Ho et al. 2020).

    Stays in float32 whatever the model's dtype: in bfloat16 timesteps above 512 would be rounded
    to multiples of 4.
    """
    half = dim // 2
    # Multiplied before it is divided, as everywhere else: the other order moves angles near t = 1000 by 1e-4.
    exponent = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def repeat_rows(x: Tensor, rows: int) -> Tensor:
    """(B, ...) -> (rows, ...): repeat all rows of x, one copy after the other; x itself if it has enough rows."""
    return x if x.shape[0] >= rows else x.repeat(rows // x.shape[0], *(1,) * (x.ndim - 1))


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation of GELU that CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Linear, SiLU, Linear: the timestep (and label) embedding network."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width_in, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in) -> (B, width)."""
        return self.linear2(F.silu(self.linear1(x)))


class ResBlock(nn.Module):
    """Residual block with the timestep added between its two convolutions.

    embed_dim: width of the timestep's embedding; 0 for a block without timestep, as in the autoencoder. groups: of the
    first and of the second normalisation.
    """

    def __init__(
        self, width_in: int, width: int, embed_dim: int, eps: float = 1e-5, groups: tuple[int, int] = (GROUPS, GROUPS)
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups[0], width_in, eps=eps)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        # Between the convolutions, because what a seed initialises depends on the order of the layers.
        self.emb = nn.Linear(embed_dim, width) if embed_dim else None
        self.norm2 = nn.GroupNorm(groups[1], width, eps=eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def time_shift(self, emb: Tensor) -> Tensor:
        """(B, embed_dim) timestep embedding -> (B, width, 1, 1) shift of the hidden state."""
        assert self.emb is not None
        return self.emb(F.silu(emb))[:, :, None, None]

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """(B, width_in, H, W) -> (B, width, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h if shift is None else h + shift)))
        return h + (x if self.skip is None else self.skip(x))


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves or to the text. bias: of queries, keys and values."""

    causal = False
    """Whether a token attends only to itself and to those before it."""

    def __init__(self, width: int, context_dim: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(context_dim, width, bias=bias)
        self.v = nn.Linear(context_dim, width, bias=bias)
        self.out = nn.Linear(width, width)

    def kv(self, context: Tensor, values: Tensor | None = None) -> KeyValue:
        """(B, tokens, context_dim) -> keys and values, each (B, heads, tokens, head width).

        values: what the layer for values reads, where it is not the same.
        """
        return self._split(self.k(context)), self._split(self.v(context if values is None else values))

    def forward(self, x: Tensor, kv: KeyValue) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        return self.out(self.attended(x, kv))

    def to_text(self, x: Tensor, context: Tensor, values: Tensor | None = None) -> Tensor:
        """Attention of tokens (B, N, width) to a text (B, tokens, context_dim) that was not projected before.

        values: what the layer for values reads, where it is not the same text.
        """
        return self(x, self.kv(context, values))

    def attended(self, x: Tensor, kv: KeyValue) -> Tensor:
        """What the last layer reads: (B, N, width) -> (B, N, width)."""
        attended = F.scaled_dot_product_attention(self._split(self.q(x)), *kv, is_causal=self.causal)
        return rearrange(attended, "b h n d -> b n (h d)")

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)


class AttentionChange:
    """A change by control inside one transformer block. A method changes nothing unless a subclass overrides it.

    Tokens are (rows, N, width). The methods stand in the order in which a block calls them.
    """

    __slots__ = ()

    def self_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs of the layers for queries, keys and values of the self attention."""
        return query, key, value

    def self_output(
        self, output: Tensor, inputs: tuple[Tensor, Tensor, Tensor], attend: Callable[..., Tensor]
    ) -> Tensor:
        """Return the output of the self attention.

        inputs: of its layers for queries, keys and values. attend: computes the attention for other inputs.
        """
        return output

    def between(self, x: Tensor) -> Tensor:
        """Return the tokens between self and cross attention, with the residual of the first."""
        return x

    def text_query(self, query: Tensor) -> Tensor:
        """Return the input of the layer for queries of the cross attention."""
        return query

    def text_inputs(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs of the layers for keys and values of the cross attention, for each text that is read."""
        return keys, values

    def text_output(self, output: Tensor, query: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """Return the output of the cross attention.

        query: its input. attend: (query, text) -> the output for another text; (query, keys, values) -> that with keys
        and values of different texts of the same length.
        """
        return output


class FeedForward(nn.Module):
    """Gated feed-forward network (GEGLU, Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        # In the released weights the value comes first and the gate second.
        value, gate = self.proj(x).tensor_split(2, dim=-1)
        return self.out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self attention, cross attention to the text, feed-forward; each with its residual."""

    def __init__(self, width: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, context_dim, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, kv: KeyValue) -> Tensor:
        """(B or fewer, N, width) -> (B, N, width)."""
        if changes := kv[2:]:
            return controlled_block(self, x, kv[:2], changes)
        normed = self.norm1(x)
        x = repeat_rows(x + self.attn1(normed, self.attn1.kv(normed)), kv[0].shape[0])
        x = x + self.attn2(self.norm2(x), kv)
        return x + self.ff(self.norm3(x))

    def self_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The self attention, whose three layers read different tokens."""
        return self.attn1(query, self.attn1.kv(key, value))

    def feed_forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width), with the residual."""
        return x + self.ff(self.norm3(x))


def controlled_block(block: Any, x: Tensor, text: KeyValue, changes: tuple[AttentionChange, ...]) -> Tensor:
    """`TransformerBlock.forward` with control inside the attentions. block: a transformer block in any form."""
    query = key = value = block.norm1(x)
    for change in changes:
        query, key, value = change.self_inputs(query, key, value)
    attended = block.self_attention(query, key, value)
    for change in changes:
        attended = change.self_output(attended, (query, key, value), block.self_attention)
    x = repeat_rows(x + attended, text[0].shape[0])
    for change in changes:
        x = change.between(x)
    query = block.norm2(x)
    for change in changes:
        query = change.text_query(query)
    attended = block.attn2(query, text)

    def attend(query: Tensor, keys: Tensor, values: Tensor | None = None) -> Tensor:
        values = keys if values is None else values
        for change in changes:
            keys, values = change.text_inputs(keys, values)
        return block.attn2.to_text(query, keys, None if values is keys else values)

    for change in changes:
        attended = change.text_output(attended, query, attend)
    return block.feed_forward(x + attended)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map.

    `linear_projection` chooses linear layers (SD2, SDXL) or 1x1 convolutions (SD1.5) at both ends.
    """

    def __init__(
        self, width: int, context_dim: int, heads: int, depth: int, linear_projection: bool, groups: int = GROUPS
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width) if linear_projection else nn.Conv2d(width, width, 1)
        blocks = [TransformerBlock(width, context_dim, heads) for _ in range(depth)]
        self.blocks = cast("Sequence[TransformerBlock]", nn.ModuleList(blocks))
        self.proj_out = nn.Linear(width, width) if linear_projection else nn.Conv2d(width, width, 1)

    def text_kv(self, context: Tensor) -> TextKV:
        """Keys and values of the text (B, tokens, context_dim) for every block."""
        return tuple(block.attn2.kv(context) for block in self.blocks)

    def forward(self, x: Tensor, kv: TextKV) -> Tensor:
        """(B or fewer, width, H, W) -> (B, width, H, W)."""
        height = x.shape[2]
        h = self.norm(x)
        h = self.proj_in(self.tokens(h)) if self.linear_projection else self.tokens(self.proj_in(h))
        for block, block_kv in zip(self.blocks, kv, strict=True):
            h = block(h, block_kv)
        # The blocks may have given each text a row of its own; the residual follows.
        x = repeat_rows(x, h.shape[0])
        if self.linear_projection:
            return self.pixels(self.proj_out(h), height) + x
        return self.proj_out(self.pixels(h, height)) + x

    def tokens(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H * W, C), a view where the layout allows one."""
        return rearrange(x, "b c h w -> b (h w) c")

    def pixels(self, tokens: Tensor, height: int) -> Tensor:
        """(B, H * W, C) -> (B, C, H, W), a view with the channels last."""
        return rearrange(tokens, "b (h w) c -> b c h w", h=height)


class ConvBlock(nn.Module):
    """A block of the encoder that is one convolution: it has no timestep and reads no text."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, 3, stride=stride, padding=1)

    def time_shift(self, emb: Tensor) -> None:
        """None: this block has no timestep."""

    def text_kv(self, context: Tensor) -> TextKV:
        """Empty: this block reads no text."""
        return ()

    def forward(self, x: Tensor, shift: None = None, kv: TextKV = ()) -> Tensor:
        """(B, width_in, H, W) -> (B, width, ceil(H / stride), ceil(W / stride))."""
        return self.conv(x)


class ConvIn(ConvBlock):
    """The encoder's first block, which reads the latent."""


class Downsample(ConvBlock):
    """The encoder's block between two levels, of stride 2."""


class Upsample(nn.Module):
    """Nearest neighbour to the size of the next skip, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, width, h, w) -> (B, width, *size), twice the size by default."""
        # By size and not by factor: on the way down an odd side was rounded up.
        return self.conv(F.interpolate(x, size=size or (2 * x.shape[2], 2 * x.shape[3]), mode="nearest"))


class ResTransformer(nn.Module):
    """A residual block and, where the level has any, its transformer."""

    def __init__(self, config: UNetConfig, width_in: int, width: int, depth: int) -> None:
        super().__init__()
        self.res = ResBlock(width_in, width, config.embed_dim)
        self.transformer = make_transformer(config, width, depth) if depth else None

    def time_shift(self, emb: Tensor) -> Tensor:
        """Shift of the residual block."""
        return self.res.time_shift(emb)

    def text_kv(self, context: Tensor) -> TextKV:
        """Keys and values of the transformer; empty where there is none."""
        return () if self.transformer is None else self.transformer.text_kv(context)

    def forward(self, x: Tensor, shift: Tensor, kv: TextKV) -> Tensor:
        """(B, width_in, H, W) -> (B, width, H, W)."""
        h = self.res(x, shift)
        return h if self.transformer is None else self.transformer(h, kv)


def make_transformer(config: UNetConfig, width: int, depth: int) -> SpatialTransformer:
    """The spatial transformer that `config` has at this width."""
    return SpatialTransformer(width, config.context_dim, config.heads(width), depth, config.linear_projection)
