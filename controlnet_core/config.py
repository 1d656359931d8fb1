"""Shapes of the models as data. Presets are made from one another with `replace()`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Parametrization = Literal["eps", "v"]


@dataclass(frozen=True)
class UNetConfig:
    """Stable Diffusion's UNet. One entry of `widths` per resolution level, highest resolution first.

    `transformer_depth[i]` is the number of transformer blocks behind each residual block of level i.
    Heads are given either by their number (SD1.5: `num_heads=8`) or by their width (`head_dim=64`).
    All widths are multiples of 32, the number of groups in the group normalisations.
    """

    in_channels: int = 4
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    res_blocks: int = 2
    transformer_depth: tuple[int, ...] = (1, 1, 1, 0)
    middle_depth: int = 1
    num_heads: int = 8
    head_dim: int | None = None
    context_dim: int = 768
    linear_projection: bool = False
    label_dim: int | None = None

    @property
    def embed_dim(self) -> int:
        """Width of the timestep embedding."""
        return 4 * self.widths[0]

    def heads(self, width: int) -> int:
        """Number of attention heads in a transformer of this width."""
        return self.num_heads if self.head_dim is None else width // self.head_dim


@dataclass(frozen=True)
class ControlNetConfig:
    """A trainable copy of the encoder and middle of `unet`, with a hint encoder.

    `hint_widths` are the widths of the hint encoder as released (16, 32, 96, 256; the paper's own
    wording, four stride-2 convolutions, would give /16 and not the /8 of the latent).
    """

    unet: UNetConfig = UNetConfig()
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)


@dataclass(frozen=True)
class VAEConfig:
    """KL autoencoder. `patch > 1` puts a pixel unshuffle before it and a pixel shuffle behind it."""

    image_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    res_blocks: int = 2
    scaling_factor: float = 0.18215
    patch: int = 1

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side."""
        return self.patch * 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class TextConfig:
    """CLIP text transformer."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    vocab_size: int = 49408
    max_length: int = 77
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"


@dataclass(frozen=True)
class ModelConfig:
    """A whole Stable Diffusion model."""

    name: str
    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig
    parametrization: Parametrization = "eps"
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)

    @property
    def controlnet(self) -> ControlNetConfig:
        """The ControlNet that fits this model."""
        return ControlNetConfig(unet=self.unet, hint_widths=self.hint_widths)


SD15 = ModelConfig("sd15", UNetConfig(), VAEConfig(), TextConfig())

DEMO = replace(
    SD15,
    name="demo",
    unet=replace(
        SD15.unet,
        widths=(64, 96, 128),
        res_blocks=1,
        transformer_depth=(1, 1, 0),
        num_heads=4,
        context_dim=128,
    ),
    vae=replace(SD15.vae, widths=(64, 128), res_blocks=1, patch=4, scaling_factor=1.0),
    text=replace(SD15.text, width=128, layers=2, heads=4, vocab_size=256),
    hint_widths=(16, 24, 32, 64),
)
"""The demo model's shape. Scaling factor and vocabulary size are found in training and stored in its file."""
