"""Shapes of the models as data. Presets are made from one another with `replace()`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Parametrization = Literal["eps", "v", "edm"]

EMPTY = -1
"""Depth of a transformer without blocks: a normalisation and two projections (SDXL's mid ControlNet)."""


@dataclass(frozen=True)
class UNetConfig:
    """Stable Diffusion's UNet. One entry of `widths` per resolution level, highest resolution first.

    `transformer_depth[i]` is the number of transformer blocks behind each residual block of level i:
    0 for no transformer, `EMPTY` for one without blocks. `middle_res` counts the middle's residual
    blocks: 2, around its transformer, or 1 in nets without one (SDXL's small ControlNet).
    Heads are given either by their number (SD1.5: `num_heads=8`) or by their width (`head_dim=64`).
    All widths are multiples of 32, the number of groups in the group normalisations.
    """

    in_channels: int = 4
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    res_blocks: int = 2
    transformer_depth: tuple[int, ...] = (1, 1, 1, 0)
    middle_depth: int = 1
    middle_res: int = 2
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
class UnionConfig:
    """What a ControlNet Union has besides: one net for several types of hint.

    types: how many types it knows (6, ProMax 8). width: of its type embedding. layers: of the
    network that combines type and hint. type_dim: of the sinusoid that says whether a type is present.
    """

    types: int = 6
    width: int = 320
    layers: int = 1
    type_dim: int = 256


@dataclass(frozen=True)
class ControlNetConfig:
    """A trainable copy of the encoder and middle of `unet`, with a hint encoder.

    `unet` has depths of its own: SDXL's mid and small nets have fewer transformers than their base.
    `hint_widths` are the widths of the hint encoder as released (16, 32, 96, 256; the paper's own
    wording, four stride-2 convolutions, would give /16 and not the /8 of the latent). `union` makes it
    a ControlNet Union. `global_pool`: its residuals are averaged over the picture (the shuffle net).
    """

    unet: UNetConfig = UNetConfig()
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    union: UnionConfig | None = None
    global_pool: bool = False


@dataclass(frozen=True)
class AdapterConfig:
    """A T2I-Adapter (Mou et al. 2023): a small network on the hint alone, one feature map per level.

    widths: of the feature maps, the base's own. unshuffle: pixels per cell of the first one, 8, or 16 in
    the kind for SDXL. res_blocks: per level. kernel: of the second convolution of each. light: narrow
    levels without a first convolution. conv_down: halves by convolution instead of averaging.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    hint_channels: int = 3
    unshuffle: int = 8
    res_blocks: int = 2
    kernel: int = 1
    light: bool = False
    conv_down: bool = False

    @property
    def xl(self) -> bool:
        """Whether it is of the kind for SDXL, which halves once only."""
        return self.unshuffle == 16


@dataclass(frozen=True)
class DerivedConfig:
    """A ControlNet whose weights are complete only with those of its base: what its file alone tells.

    context_dim: width of the text that the base reads; 0 where the file does not tell.
    """

    context_dim: int = 0
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)


@dataclass(frozen=True)
class VAEConfig:
    """KL autoencoder. `patch > 1` puts a pixel unshuffle before it and a pixel shuffle behind it.

    A UNet sees (latent - mean) * scaling_factor / std, with `latent_mean` and `latent_std` per channel; empty
    ones stand for 0 and 1.
    """

    image_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    res_blocks: int = 2
    scaling_factor: float = 0.18215
    patch: int = 1
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side."""
        return self.patch * 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class TextConfig:
    """CLIP text transformer, and how its base reads it.

    projection: width of the pooled text behind a last linear layer; None where there is none.
    stop_layer: the layer that prompts are read from: -1 is the last, -2 the one before it.
    norm_skipped: whether the final normalisation is applied to a layer that is not the last.
    padding: the token that fills a chunk behind the end mark (49407 is the end mark itself).
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    vocab_size: int = 49408
    max_length: int = 77
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection: int | None = None
    stop_layer: int = -1
    norm_skipped: bool = True
    padding: int = 49407


@dataclass(frozen=True)
class NoiseConfig:
    """The noise levels of a model's training.

    kind: "discrete", the 1000 timesteps of Stable Diffusion; or "edm", every level from `sigma_min` to
    `sigma_max` (Karras et al. 2022). zero_terminal_snr: whether the discrete levels are rescaled so that the
    last one holds no picture (Lin et al. 2023). sigma_data: the standard deviation that the model takes its
    latents to have.
    """

    kind: Literal["discrete", "edm"] = "discrete"
    zero_terminal_snr: bool = False
    sigma_min: float = 0.002
    sigma_max: float = 120.0
    sigma_data: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """A whole Stable Diffusion model. `text2` is the second text encoder of models that have two."""

    name: str
    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig
    parametrization: Parametrization = "eps"
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    text2: TextConfig | None = None
    noise: NoiseConfig = NoiseConfig()

    @property
    def controlnet(self) -> ControlNetConfig:
        """The ControlNet that fits this model."""
        return ControlNetConfig(unet=self.unet, hint_widths=self.hint_widths)


SD15 = ModelConfig("sd15", UNetConfig(), VAEConfig(), TextConfig())

OPENCLIP_H = TextConfig(
    width=1024, layers=24, heads=16, activation="gelu", projection=1024, stop_layer=-2, padding=0
)
"""OpenCLIP ViT-H's text transformer, as Stable Diffusion 2 reads it: the last layer but one, normalised."""

OPENCLIP_G = replace(OPENCLIP_H, width=1280, layers=32, heads=20, projection=1280, norm_skipped=False)
"""OpenCLIP ViT-bigG's, as SDXL reads it: the last layer but one as it is, and the projected pooled text."""

SD21 = replace(
    SD15,
    name="sd2",
    unet=replace(SD15.unet, context_dim=1024, head_dim=64, linear_projection=True),
    text=OPENCLIP_H,
    parametrization="v",
)
"""Stable Diffusion 2.1 at 768 pixels; 2.0 and 2.1 at 512 pixels are the same with `parametrization="eps"`."""

SDXL = replace(
    SD15,
    name="sdxl",
    unet=replace(
        SD21.unet,
        widths=(320, 640, 1280),
        transformer_depth=(0, 2, 10),
        middle_depth=10,
        context_dim=2048,
        label_dim=2816,
    ),
    vae=replace(SD15.vae, scaling_factor=0.13025),
    text=replace(SD15.text, stop_layer=-2, norm_skipped=False),
    text2=OPENCLIP_G,
)

SDXL_REFINER = replace(
    SDXL,
    name="sdxl-refiner",
    unet=replace(
        SDXL.unet,
        widths=(384, 768, 1536, 1536),
        transformer_depth=(0, 4, 4, 0),
        middle_depth=4,
        context_dim=1280,
        label_dim=2560,
    ),
    text=OPENCLIP_G,
    text2=None,
)

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
