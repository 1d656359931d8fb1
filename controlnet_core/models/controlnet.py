"""ControlNet (Zhang, Rao, Agrawala 2023): a trainable copy of the UNet's encoder and middle block.

Its 12 + 1 outputs pass through zero convolutions and are added to the UNet's skip connections and
to its middle block's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ControlNetConfig
from ..errors import ShapeError
from .control import BindContext, BoundNet, CopyControl, ResidualProjection, pool_residual
from .layers import Mlp, repeat_rows
from .projections import JoinedProjections, Projections
from .unet import (
    BlockInputs,
    Residuals,
    TimeEmbedding,
    UNet,
    UNetEncoder,
    UNetInputs,
    UNetMiddle,
    check_context,
    embed_time_and_label,
    encoder_widths,
)
from .zero_conv import ZeroConv, zero_

COPIED = ("time_embed", "label_embed", "encoder", "middle")
"""The parts that start as copies of the base's. Hint encoder and zero convolutions do not."""


class HintEncoder(nn.Module):
    """Condition picture -> feature map of the latent's size: 8 convolutions, three of stride 2.

    As released; the last convolution starts at zero. It has no normalisation and sees neither x nor
    t: its output is a constant of the run.
    """

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        widths = config.hint_widths
        layers = [(config.hint_channels, widths[0], 1)]
        for width, next_width in pairwise(widths):
            layers += [(width, width, 1), (width, next_width, 2)]
        layers.append((widths[-1], config.unet.widths[0], 1))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=s, padding=1) for i, o, s in layers)
        zero_(self.convs[-1])

    def forward(self, hint: Tensor) -> Tensor:
        """(B, hint_channels, 8h, 8w) in [0, 1] -> (B, widths[0], h, w)."""
        h = hint
        for conv in self.convs[:-1]:
            h = F.silu(conv(h))
        return self.convs[-1](h)


def embed_hint(encoder: HintEncoder, channels: int, hint: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """Hint (B, channels, 8h, 8w) in [0, 1] -> embedded hint (B, C, h, w).

    Raises ShapeError when channels or size do not fit the net or the latent.
    """
    if hint.ndim != 4 or hint.shape[1] != channels:
        raise ShapeError(f"the hint is {tuple(hint.shape)}, this ControlNet reads (B, {channels}, H, W)")
    embedded = encoder(hint)
    if tuple(embedded.shape[-2:]) != tuple(latent_size):
        height, width = hint.shape[-2:]
        raise ShapeError(
            f"the hint is {width}x{height} pixels, the latent {latent_size[1]}x{latent_size[0]} needs "
            f"{8 * latent_size[1]}x{8 * latent_size[0]}: resize the hint"
        )
    return embedded


class ControlNet(CopyControl):
    """Encoder, middle and timestep embedding of a UNet, a hint encoder, and 13 zero convolutions."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embed = TimeEmbedding(config.unet)
        label_dim = config.unet.label_dim
        self.label_embed = None if label_dim is None else Mlp(label_dim, config.unet.embed_dim)
        self.encoder = UNetEncoder(config.unet)
        self.middle = UNetMiddle(config.unet)
        self.hint = HintEncoder(config)
        self.zero_convs = nn.ModuleList(ZeroConv(width) for width in encoder_widths(config.unet))
        self.zero_conv_middle = ZeroConv(config.unet.widths[-1])

    @classmethod
    def from_unet(cls, unet: UNet, config: ControlNetConfig | None = None) -> ControlNet:
        """A fresh ControlNet: the UNet's encoder copied, zero convolutions at 0 (section 3.1).

        With it the UNet's output is bit-equal to the UNet's own.
        """
        net = cls(config or ControlNetConfig(unet=unet.config))
        for name in COPIED:
            part, source = getattr(net, name), getattr(unet, name)
            # (only SDXL has a label embedding)
            if part is not None:
                part.load_state_dict(source.state_dict())
        return net.to(device=unet.conv_out.weight.device, dtype=unet.conv_out.weight.dtype)

    @property
    def conditional_only(self) -> bool:  # type: ignore[override]
        """Whether its residuals are averaged over the picture, which was made for the conditional half."""
        return self.config.global_pool

    def bind(self, context: BindContext) -> BoundControlNet:
        """Embed the hint; project text and timesteps."""
        return self._bound(context, self.embed_hint(context.hint, context.size), context.project(self))

    def _bound(self, context: BindContext, hint: Tensor, projections: Projections) -> BoundControlNet:
        pool = context.pool or self.config.global_pool
        return BoundControlNet(context.spread(hint), projections, context.rows, context.distinct_rows, pool)

    def join(self, bounds: Sequence[BoundNet]) -> BoundControlNet | None:
        """Several hints for this net as one batch; not if only some of them are pooled."""
        mine = [bound for bound in bounds if isinstance(bound, BoundControlNet)]
        if len(mine) < len(bounds) or len({bound.pool for bound in mine}) > 1:
            return None
        hints = torch.cat([bound.hint.expand(bound.rows, -1, -1, -1) for bound in mine])
        # The net then runs once on all rows, which costs less than a run for each hint.
        projections = JoinedProjections([bound.projections for bound in mine])  # type: ignore[misc]
        rows = sum(bound.rows for bound in mine)
        return BoundControlNet(hints, projections, rows, rows, mine[0].pool)

    def features(self, x: Tensor, inputs: ControlNetInputs) -> Iterator[Tensor]:
        """What each zero convolution reads, one feature map at a time."""
        # The conditional and the unconditional half see the same latent and hint until they first read their text:
        # up to there the net runs on the rows that differ.
        rows = inputs.distinct_rows if inputs.blocks.encoder.one_timestep else inputs.rows
        hint = inputs.hint if inputs.hint.shape[0] == 1 else inputs.hint[:rows]
        for feature in self.encode(x[:rows], hint, inputs.blocks.encoder, inputs.blocks.middle):
            yield repeat_rows(feature, inputs.rows)

    def projections(self, inputs: ControlNetInputs) -> Sequence[ResidualProjection]:
        """The zero convolutions."""
        return [pool_residual(zero) for zero in self.zeros] if inputs.pool else self.zeros

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Timesteps (B,) and label vector -> (B, embed_dim), with this net's copy of the embedding weights."""
        return embed_time_and_label(self.time_embed, self.label_embed, t, y)

    def embed_hint(self, hint: Tensor, latent_size: tuple[int, int]) -> Tensor:
        """Hint (B, C, 8h, 8w) in [0, 1] -> embedded hint (B, widths[0], h, w).

        Raises ShapeError when channels or size do not fit the net or the latent.
        """
        hint = hint.to(self.time_embed.linear1.weight.dtype)
        return embed_hint(self.hint, self.config.hint_channels, hint, latent_size)

    def encode(self, x: Tensor, hint: Tensor, encoder: BlockInputs, middle: BlockInputs) -> Iterator[Tensor]:
        """Encoder and middle block: yields one feature map per zero convolution. hint: embedded, (1 or B, C, h, w)."""
        h = x
        for h in self.encoder.walk(x, encoder, hint):
            yield h
        yield self.middle(h, middle)

    @property
    def zeros(self) -> list[ZeroConv]:
        """All zero convolutions, in the order of `encode`: one per skip, then the one of the middle block."""
        return [*self.zero_convs, self.zero_conv_middle]  # type: ignore[list-item]

    def forward(self, x: Tensor, t: Tensor, context: Tensor, hint: Tensor, y: Tensor | None = None) -> Residuals:
        """Residuals for `UNet.forward`.

        x: (B, 4, h, w), t: (B,), context: (B, tokens, context_dim), as the UNet gets them;
        hint: (B, C, 8h, 8w) in [0, 1]. Raises ShapeError when one does not fit.
        """
        hint = self.embed_hint(hint, (x.shape[-2], x.shape[-1]))
        return self._residuals(x, self.embed(t, y), context, hint)

    def _residuals(self, x: Tensor, emb: Tensor, context: Tensor, hint: Tensor) -> Residuals:
        """emb: (B, embed_dim). hint: embedded."""
        check_context(context, self.config.unet)
        features = self.encode(x, hint, self.encoder.project(emb, context), self.middle.project(emb, context))
        *skips, middle = [zero(h) for zero, h in zip(self.zeros, features, strict=True)]
        return Residuals(tuple(skips), middle)


class ControlNetInputs(NamedTuple):
    """What a ControlNet reads besides x at one noise level.

    hint: embedded, (1 or rows, widths[0], h, w). rows, distinct_rows: see `BindContext`. pool: average the residuals.
    """

    hint: Tensor
    blocks: UNetInputs
    rows: int
    distinct_rows: int
    pool: bool


@dataclass(frozen=True, eq=False)
class BoundControlNet:
    """A ControlNet's hint and projections in one run; fields as in `ControlNetInputs`."""

    hint: Tensor
    projections: Projections | JoinedProjections
    rows: int
    distinct_rows: int
    pool: bool = False

    def inputs_at(self, sigma: float) -> ControlNetInputs:
        """Hint, text and timestep for this noise level."""
        return ControlNetInputs(self.hint, self.projections.at(sigma), self.rows, self.distinct_rows, self.pool)
