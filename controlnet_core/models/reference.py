"""Reference: a picture whose look the generated one takes over, without a trained net ("reference-only").

The UNet first runs on the reference, noised to the level of the step, with the same text. What its self attentions read
there (tokens r) and the statistics of its blocks are recorded. Then it runs on the latent, where

    attention    softmax(q [k(x), k(r)]^T / sqrt(d)) [v(x), v(r)]   instead of keys and values of x alone
    AdaIN        (h - mean(h)) / std(h) * std(reference's h) + mean(reference's h)   behind some blocks

Published by lllyasviel (2023) as reference_only, reference_adain and reference_adain+attn in sd-webui-controlnet; the
blocks of AdaIN are those of a control weight of 1 there. A style fidelity s keeps the share s of the plain result in
the negative half of the guidance, which is a factor of 1 - s for that half. There is nothing to train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import UNetConfig
from .control import BindContext, ControlModel, Place, RowScale
from .layers import AttentionChange

MODES = ("attention", "adain", "attention+adain")
SEED = 1
"""Seed of the noise on the reference, which is the same at every step and in every run."""
LATENT_CHANNELS = 4
SMALLEST = 1e-6
"""Smallest variance, so that a constant feature map is not divided by 0."""
ADAIN_DECODER_BLOCKS = 8
"""Of the decoder, only the first 8 blocks are considered for AdaIN, as in the published code."""


@dataclass(frozen=True)
class ReferenceConfig:
    """mode: one of `MODES`."""

    mode: str


@dataclass(frozen=True, eq=False)
class Recorded:
    """What the UNet did on the reference. tokens: of each self attention, (rows, N, width). moments: mean and standard
    deviation of each block's output, (rows, C, 1, 1) each, by the block's place with depth 0."""

    tokens: dict[Place, Tensor] = field(default_factory=dict)
    moments: dict[Place, tuple[Tensor, Tensor]] = field(default_factory=dict)


class RecordTokens(AttentionChange):
    """Records what a self attention reads, and changes nothing."""

    __slots__ = ("place", "recorded")

    def __init__(self, recorded: Recorded, place: Place) -> None:
        self.recorded, self.place = recorded, place

    def self_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the tokens (rows, N, width) that the self attention reads, and return the inputs unchanged."""
        self.recorded.tokens[self.place] = query
        return query, key, value


class _Fields(NamedTuple):
    tokens: Tensor
    scale: RowScale


class ReferenceChange(_Fields, AttentionChange):
    """Self attention that also attends to the reference. tokens: recorded, (rows of the unit, N, width)."""

    __slots__ = ()

    def self_output(
        self, output: Tensor, inputs: tuple[Tensor, Tensor, Tensor], attend: Callable[..., Tensor]
    ) -> Tensor:
        """Replace the output by that of an attention whose keys and values include the tokens of the reference."""
        query, key, value = (tokens[self.scale.rows] for tokens in inputs)
        more = self.tokens.to(query.dtype)
        joined = torch.cat([key, more], dim=1), torch.cat([value, more], dim=1)
        return self.scale.add(output, lambda own: attend(query, *joined) - own)


class AdaIn(NamedTuple):
    """Gives a feature map the moments of the reference's. mean, std: (rows of the unit, C, 1, 1)."""

    mean: Tensor
    std: Tensor
    scale: RowScale

    def __call__(self, h: Tensor) -> Tensor:
        """Change h (rows, C, h, w) in place, and return it. The factor of `scale` is (1 or rows, 1, 1 or h, 1 or w)."""
        own = h[self.scale.rows]
        mean, std = moments(own)
        moved = (own - mean) / std * self.std.to(h.dtype) + self.mean.to(h.dtype)
        factor = self.scale.factor.to(h.dtype)
        if factor.shape[-1] > 1 and factor.shape[-2:] != h.shape[-2:]:  # behind an upsampling
            factor = F.interpolate(factor, size=h.shape[-2:], mode="nearest")
        h[self.scale.rows] = own + factor * (moved - own)
        return h


def moments(h: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the picture, (B, C, 1, 1) each."""
    variance, mean = torch.var_mean(h, dim=(2, 3), keepdim=True, correction=0)
    return mean, variance.clamp(min=SMALLEST).sqrt()


class Reference(ControlModel):
    """A picture as reference. Its hint is a latent, at any size."""

    entry = "reference"
    reads_latent = True
    config: ReferenceConfig

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.config = ReferenceConfig(mode)

    @property
    def dtype(self) -> torch.dtype:
        """float32: the net has no weights that tell a dtype."""
        return torch.float32

    @property
    def hint_channels(self) -> int:
        """4, the channels of a latent."""
        return LATENT_CHANNELS

    @property
    def made_for(self) -> str:
        """The base in words, for messages."""
        return "a base that reads a latent and nothing beside it (inpainting models read more)"

    @property
    def uses_attention(self) -> bool:
        """Whether self attentions attend to the reference."""
        return "attention" in self.config.mode

    @property
    def uses_adain(self) -> bool:
        """Whether blocks take over the reference's moments."""
        return "adain" in self.config.mode

    def fits(self, config: UNetConfig) -> bool:
        """Whether the base reads a plain latent."""
        return config.in_channels == LATENT_CHANNELS

    def bind(self, context: BindContext) -> BoundReference:
        """Draw the noise on the reference."""
        clean = context.hint.float()
        noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(SEED)).to(clean.device)
        return BoundReference(context, clean, noise.expand_as(clean))

    def attention_change(self, inputs: Recorded, place: Place, scale: RowScale) -> ReferenceChange | None:
        """The change of one transformer block. inputs: what was recorded in this evaluation."""
        return ReferenceChange(inputs.tokens[place], scale) if self.uses_attention else None

    def output_change(self, inputs: Recorded, place: Place, scale: RowScale) -> AdaIn | None:
        """The change of one block's output; None for blocks that keep theirs."""
        found = inputs.moments.get(place)
        return None if found is None else AdaIn(*found, scale)


@dataclass(frozen=True, eq=False)
class BoundReference:
    """A reference in one run. clean: the latent, (1 or images, 4, h, w), scaled. noise: of the same shape."""

    context: BindContext
    clean: Tensor
    noise: Tensor

    def inputs_at(self, sigma: float) -> Tensor:
        """The noised reference for each row, as the UNet reads it, (rows, 4, h, w)."""
        context = self.context
        assert context.noisy is not None
        noisy = context.noisy(self.clean, self.noise, sigma).to(context.text.dtype)
        return context.spread(noisy).expand(context.rows, -1, -1, -1)


def adain_places(base: UNetConfig) -> Mapping[Place, None]:
    """The blocks whose output AdaIN changes: the later half of the encoder's below the first level, the middle, the
    earlier half of the decoder's. In SD1.5 10, 11, the middle and 0 to 3; in SDXL 8, the middle and 0 to 2."""
    per_level, levels = base.res_blocks + 1, len(base.widths)
    encoder = [
        level * per_level + 1 + block for level in range(1, levels) for block in range(base.res_blocks)
    ]  # fmt: skip
    decoder = range(min(ADAIN_DECODER_BLOCKS, per_level * (levels - 1)))
    chosen = [Place("encoder", block, 0) for n, block in enumerate(encoder) if 2 * n > len(encoder)]
    chosen += [Place("decoder", block, 0) for n, block in enumerate(decoder) if 2 * n < len(decoder)]
    return dict.fromkeys([*chosen, Place("middle", 0, 0)])
