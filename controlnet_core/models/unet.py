"""Stable Diffusion's UNet: encoder, middle, decoder (Rombach et al. 2022).

The encoder and the middle are also what a ControlNet copies, so they are classes of their own.
`UNet.forward` is the definition. The engine calls the same parts with projected timesteps and texts (`UNetInputs`)
that it has prepared before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import UNetConfig
from ..errors import ShapeError
from .layers import (
    GROUPS,
    ConvBlock,
    ConvIn,
    Downsample,
    Mlp,
    ResBlock,
    ResTransformer,
    TextKV,
    Upsample,
    make_transformer,
    timestep_embedding,
)

Shifts: TypeAlias = tuple["Tensor | None", ...]
"""The timestep's projection for each block of a stack."""


class BlockInputs(NamedTuple):
    """What one stack of blocks (encoder, middle or decoder) needs besides x.

    fronts: for each block what changes the feature map in front of it, in place; empty for nothing (Reference,
    ControlNet-XS).
    """

    shifts: Shifts
    kv: tuple[TextKV, ...]
    fronts: tuple[Any, ...] = ()

    def front(self, index: int, h: Tensor) -> Tensor:
        """What the block of this number reads."""
        for change in self.fronts[index] if self.fronts else ():
            h = change(h)
        return h

    def with_fronts(self, more: Sequence[tuple[Any, ...]]) -> BlockInputs:
        """The same with more changes in front of each block, after those that it has."""
        before = self.fronts or ((),) * len(more)
        return self._replace(fronts=tuple((*a, *b) for a, b in zip(before, more, strict=True)))

    @property
    def one_timestep(self) -> bool:
        """Whether all rows have the timestep's projection in common."""
        return all(shift is None or shift.shape[0] == 1 for shift in self.shifts)


class UNetInputs(NamedTuple):
    """`BlockInputs` for encoder, middle and decoder of one net at one sigma; a ControlNet has no decoder."""

    encoder: BlockInputs
    middle: BlockInputs
    decoder: BlockInputs | None = None


class Residuals(NamedTuple):
    """What a ControlNet adds: one tensor per skip connection, and one for the middle block."""

    skips: tuple[Tensor, ...]
    middle: Tensor


class BlockStack(nn.Module):
    """Blocks in a row that take a timestep shift and text keys and values each."""

    blocks: Sequence[ConvBlock | ResTransformer]
    recompute = False
    """Whether the backward pass computes each block again instead of storing its activations (Chen et al. 2016)."""

    def run(self, block: nn.Module, *inputs: Any) -> Tensor:
        """The output of one block."""
        if not (self.recompute and torch.is_grad_enabled()):
            return block(*inputs)
        # There is no dropout, so that the state of the random generators need not be kept.
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]

    def time_shifts(self, emb: Tensor) -> Shifts:
        """(B, embed_dim) -> the shift of each block."""
        return tuple(block.time_shift(emb) for block in self.blocks)

    def text_kv(self, context: Tensor) -> tuple[TextKV, ...]:
        """(B, tokens, context_dim) -> keys and values of each block."""
        return tuple(block.text_kv(context) for block in self.blocks)

    def project(self, emb: Tensor, context: Tensor) -> BlockInputs:
        """Project timestep and text: `time_shifts` and `text_kv` in one record."""
        return BlockInputs(self.time_shifts(emb), self.text_kv(context))


class TimeEmbedding(Mlp):
    """Timestep -> embedding; the sinusoid in float32, the network in its own dtype."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config.widths[0], config.embed_dim)
        self.width = config.widths[0]

    def forward(self, t: Tensor) -> Tensor:
        """Timesteps (B,) -> (B, embed_dim)."""
        # In half precision late timesteps lose their fraction, and the fastest sinusoids their phase.
        sinusoid = timestep_embedding(t, self.width)
        return super().forward(sinusoid.to(self.linear1.weight.dtype))


class UNetEncoder(BlockStack):
    """The first half; it yields one skip per block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.widths[0]
        blocks: list[ConvBlock | ResTransformer] = [ConvIn(config.in_channels, width, stride=1)]
        for level, level_width in enumerate(config.widths):
            for _ in range(config.res_blocks):
                blocks.append(ResTransformer(config, width, level_width, config.transformer_depth[level]))
                width = level_width
            if level != len(config.widths) - 1:
                blocks.append(Downsample(width, width, stride=2))
        self.blocks = cast("Sequence[ConvBlock | ResTransformer]", nn.ModuleList(blocks))

    def forward(self, x: Tensor, projected: BlockInputs, hint: Tensor | None = None) -> list[Tensor]:
        """Latent (B, 4, H, W) -> the output of each block, each a skip; the last feeds the middle.

        `hint` (B, widths[0], H, W), the embedded condition of a ControlNet, is added behind the
        first block. With fewer rows of x than of text, the outputs before the first text is read have as many as x
        (see `models.layers`). This requires that all rows have the same timestep.
        """
        return list(self.walk(x, projected, hint))

    def walk(self, x: Tensor, projected: BlockInputs, hint: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the outputs of `forward` one by one, so that a caller need not hold all of them."""
        h = x
        for index, (block, shift, kv) in enumerate(zip(self.blocks, *projected[:2], strict=True)):
            h = self.run(block, projected.front(index, h), shift, kv)
            # Zhang et al. 2023, section 3.2: the embedded hint is as large as the first block's output.
            if index == 0 and hint is not None:
                h = h + hint
            yield h


class UNetMiddle(BlockStack):
    """Residual block, transformer, residual block at the lowest resolution; or one residual block alone."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.res1 = ResBlock(width, width, config.embed_dim)
        depth = config.middle_depth
        self.transformer = make_transformer(config, width, depth) if depth else None
        self.res2 = ResBlock(width, width, config.embed_dim) if config.middle_res > 1 else None

    def time_shifts(self, emb: Tensor) -> Shifts:
        """(B, embed_dim) -> the shifts of the residual blocks."""
        return self.res1.time_shift(emb), None if self.res2 is None else self.res2.time_shift(emb)

    def text_kv(self, context: Tensor) -> tuple[TextKV, ...]:
        """(B, tokens, context_dim) -> keys and values of the transformer."""
        return () if self.transformer is None else (self.transformer.text_kv(context),)

    def forward(self, h: Tensor, projected: BlockInputs) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        first, second = projected.shifts
        h = self.run(self.res1, projected.front(0, h), first)
        if self.transformer is not None:
            h = self.run(self.transformer, h, projected.kv[0])
        return h if self.res2 is None else self.run(self.res2, h, second)


class DecoderBlock(ResTransformer):
    """A residual block on [h, skip], its transformer, and the upsampling at the end of a level."""

    def __init__(self, config: UNetConfig, width_in: int, width: int, depth: int, up: bool) -> None:
        super().__init__(config, width_in, width, depth)
        self.up = Upsample(width) if up else None


class UNetDecoder(BlockStack):
    """The second half; it consumes the skips, last one first."""

    blocks: Sequence[DecoderBlock]

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        skip_widths = encoder_widths(config)
        width = config.widths[-1]
        blocks: list[DecoderBlock] = []
        for level in reversed(range(len(config.widths))):
            for index in range(config.res_blocks + 1):
                # One block more than in the encoder, for the skip of the block that halved.
                up = level > 0 and index == config.res_blocks
                depth = config.transformer_depth[level]
                level_width = config.widths[level]
                blocks.append(DecoderBlock(config, width + skip_widths.pop(), level_width, depth, up))
                width = level_width
        self.blocks = cast("Sequence[DecoderBlock]", nn.ModuleList(blocks))
        self.top_blocks = config.res_blocks + 1

    def forward(self, h: Tensor, skips: list[Tensor], projected: BlockInputs) -> Tensor:
        """Middle output and the encoder's skips -> (B, widths[0], H, W).

        `skips` is emptied: each skip is freed after it has been read.
        """
        return self.top(self.lower(h, skips, projected), skips, projected)

    def lower(self, h: Tensor, skips: list[Tensor], projected: BlockInputs) -> Tensor:
        """All levels but the top one: middle output -> (B, C, H, W). Leaves the top level's skips."""
        # The split is where DeepCache stops: the lower levels change slowly from step to step.
        return self._through(h, skips, projected, slice(None, -self.top_blocks))

    def top(self, h: Tensor, skips: list[Tensor], projected: BlockInputs) -> Tensor:
        """The level of the latent's own resolution, which reads the first `top_blocks` skips."""
        return self._through(h, skips, projected, slice(-self.top_blocks, None))

    def _through(self, h: Tensor, skips: list[Tensor], projected: BlockInputs, part: slice) -> Tensor:
        steps = list(zip(range(len(self.blocks)), self.blocks, *projected[:2], strict=True))[part]
        for index, block, shift, kv in steps:
            h = projected.front(index, h)
            # Popped, so that a skip's memory is free as soon as it has been read.
            h = self.run(block, torch.cat([h, skips.pop()], dim=1), shift, kv)
            # Halving rounds odd sides up, so that doubling may give a cell too many: the next skip has the size.
            if block.up is not None:
                h = block.up(h, size=tuple(skips[-1].shape[-2:]))
        return h


class UNet(nn.Module):
    """The denoising network: predicts the noise (or v) in a latent."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embed = TimeEmbedding(config)
        self.label_embed = None if config.label_dim is None else Mlp(config.label_dim, config.embed_dim)
        self.encoder = UNetEncoder(config)
        self.middle = UNetMiddle(config)
        self.decoder = UNetDecoder(config)
        self.norm_out = nn.GroupNorm(GROUPS, config.widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(config.widths[0], config.out_channels, 3, padding=1)

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Timesteps (B,), and the label vector (B, label_dim) where the model has one -> (B, embed_dim)."""
        return embed_time_and_label(self.time_embed, self.label_embed, t, y)

    def head(self, h: Tensor) -> Tensor:
        """(B, widths[0], H, W) -> (B, out_channels, H, W)."""
        return self.conv_out(F.silu(self.norm_out(h)))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        residuals: Residuals | None = None,
    ) -> Tensor:
        """Predict the noise (or v), with a ControlNet's residuals added where control enters.

        x: (B, in_channels, H, W), scaled to unit variance. t: (B,) timesteps, 0 to 999, may be
        fractional. context: (B, tokens, context_dim). residuals: see `ControlNet.forward`; they
        are added to the skips and to the middle's output (Zhang et al. 2023, section 3.2).
        Raises ShapeError when the context has another width than the model.
        """
        check_context(context, self.config)
        emb = self.embed(t, y)
        skips = self.encoder(x, self.encoder.project(emb, context))
        h = self.middle(skips[-1], self.middle.project(emb, context))
        if residuals is not None:
            # Out of place, because training needs both terms. The engine adds in place.
            skips = [skip + r for skip, r in zip(skips, residuals.skips, strict=True)]
            h = h + residuals.middle
        return self.head(self.decoder(h, skips, self.decoder.project(emb, context)))


def encoder_widths(config: UNetConfig) -> list[int]:
    """Width of each block of the encoder, which is the width of each skip."""
    widths = [config.widths[0]]
    for level, width in enumerate(config.widths):
        widths += [width] * config.res_blocks
        if level != len(config.widths) - 1:
            widths.append(width)
    return widths


def embed_time_and_label(time: Callable[[Tensor], Tensor], label: Mlp | None, t: Tensor, y: Tensor | None) -> Tensor:
    """Timestep embedding, plus the label embedding of models that have one (SDXL's sizes)."""
    emb = time(t)
    if label is None:
        return emb
    if y is None:
        raise ShapeError("this model needs a label vector (pooled text and sizes) and got none: pass y")
    return emb + label(y.to(emb.dtype))


def check_context(context: Tensor, config: UNetConfig) -> None:
    """Raise ShapeError when the text embedding is of another model family."""
    if context.shape[-1] != config.context_dim:
        raise ShapeError(
            f"the text embedding is {context.shape[-1]} wide, this model reads {config.context_dim}: "
            "use the text encoder of the same checkpoint"
        )
