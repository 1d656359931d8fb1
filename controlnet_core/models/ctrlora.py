"""CtrLoRA (Xu et al. 2024): one base ControlNet for many conditions, and a small LoRA for each.

The net is a ControlNet without hint encoder: its first convolution reads the latent of the hint instead of the noisy
latent, so that its residuals depend on the hint, the timestep and the text, and not on x.

    h = encoder(latent of the hint, t, text),    residual_i = zero convolution_i (h_i)

A LoRA file adds up down to each linear layer of the base, and replaces its zero convolutions and some of its norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from torch import Tensor, nn

from ..config import CtrLoraConfig
from ..errors import ShapeError, UnfitError
from .control import BindContext, CopyControl, ResidualProjection
from .controlnet import BoundControlNet, ControlNetInputs
from .layers import Mlp, repeat_rows
from .unet import TimeEmbedding, UNetEncoder, UNetMiddle, embed_time_and_label, encoder_widths
from .zero_conv import ZeroConv

EncodeHint: TypeAlias = Callable[[Tensor], Tensor]
"""Hint (B, 3, 8h, 8w) in [0, 1] -> its latent (B, 4, h, w), scaled for the UNet."""


class CtrLora(CopyControl):
    """A base ControlNet with a LoRA merged into it. encode_hint: makes latents of hints, see `with_encoder`."""

    config: CtrLoraConfig
    encode_hint: EncodeHint | None = None

    def __init__(self, config: CtrLoraConfig) -> None:
        super().__init__()
        self.config = config
        unet = config.unet
        self.time_embed = TimeEmbedding(unet)
        self.label_embed = None if unet.label_dim is None else Mlp(unet.label_dim, unet.embed_dim)
        self.encoder = UNetEncoder(unet)
        self.middle = UNetMiddle(unet)
        self.zero_convs = nn.ModuleList(ZeroConv(width) for width in encoder_widths(unet))
        self.zero_conv_middle = ZeroConv(unet.widths[-1])

    def with_encoder(self, encode: EncodeHint) -> CtrLora:
        """Set how hints become latents, and return the net itself."""
        self.encode_hint = encode
        return self

    @property
    def hint_channels(self) -> int:
        """An RGB picture."""
        return 3

    def bind(self, context: BindContext) -> BoundControlNet:
        """Encode the hint; project text and timesteps. Raises UnfitError without an encoder."""
        if self.encode_hint is None:
            raise UnfitError("a CtrLoRA reads its hint through a VAE: link one to Load CtrLoRA")
        hint = context.hint
        latent = self.encode_hint(hint).to(hint)
        wanted = (len(hint), self.config.unet.in_channels, *context.size)
        if tuple(latent.shape) != wanted:
            raise ShapeError(
                f"the VAE makes latents {tuple(latent.shape)} of a hint {tuple(hint.shape)}, this CtrLoRA reads "
                f"{wanted}: link the VAE of the base model"
            )
        projections = context.project(self)
        return BoundControlNet(context.spread(latent), projections, context.rows, context.distinct_rows)

    def features(self, x: Tensor, inputs: ControlNetInputs) -> Iterator[Tensor]:
        """What each zero convolution reads. x is not read."""
        # As in ControlNet: up to the text the net runs on the rows that differ.
        rows = inputs.distinct_rows if inputs.blocks.encoder.one_timestep else inputs.rows
        h = repeat_rows(inputs.hint, rows)[:rows]
        for feature in self.encode(h, inputs):
            yield repeat_rows(feature, inputs.rows)

    def encode(self, latent: Tensor, inputs: ControlNetInputs) -> Iterator[Tensor]:
        """Encoder and middle block on the hint's latent (rows, 4, h, w): one feature map per zero convolution."""
        h = latent
        for h in self.encoder.walk(latent, inputs.blocks.encoder):
            yield h
        yield self.middle(h, inputs.blocks.middle)

    def projections(self, inputs: ControlNetInputs) -> Sequence[ResidualProjection]:
        """The zero convolutions."""
        return [*self.zero_convs, self.zero_conv_middle]  # type: ignore[list-item]

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Timesteps (B,) and label vector -> (B, embed_dim), with this net's embedding weights."""
        return embed_time_and_label(self.time_embed, self.label_embed, t, y)
