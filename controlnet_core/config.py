"""The shapes of the models, as data. Presets derive from one another by `replace()`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

Parametrization = Literal["eps", "v", "edm"]

EMPTY = -1
"""The depth of a transformer that has a normalisation and two projections but no blocks (SDXL's mid ControlNet)."""


@dataclass(frozen=True)
class UNetConfig:
    """Stable Diffusion's UNet.

    in_channels: 4, or more for inpainting models. widths: channels of each resolution level, highest resolution first;
    multiples of 32, the number of groups in the group normalisations. res_blocks: residual blocks per level of the
    encoder. transformer_depth: for each level, the number of transformer blocks after each residual block; 0 for no
    transformer, `EMPTY` for one without blocks. middle_depth: the same for the middle. middle_res: residual blocks of
    the middle: 2, around its transformer, or 1 in nets without one (SDXL's small ControlNet). num_heads: attention
    heads of each transformer; head_dim: the width of a head instead (SD2, SDXL). context_dim: width of the text.
    linear_projection: whether transformers project by linear layers instead of 1x1 convolutions. label_dim: width of
    SDXL's label vector; None without one.
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
    """The additional parts of a ControlNet Union, one net for several types of hint.

    types: number of types (6; ProMax has 8). width: of the type embedding. layers: of the network that combines types
    and hints. type_dim: width of the sinusoid that encodes whether a type is present.
    """

    types: int = 6
    width: int = 320
    layers: int = 1
    type_dim: int = 256


@dataclass(frozen=True)
class ControlNetConfig:
    """A ControlNet: a trainable copy of the encoder and middle of `unet`, with a hint encoder.

    unet: its depths may differ from the base's: SDXL's mid and small nets have fewer transformers. hint_widths: of the
    hint encoder. union: makes it a ControlNet Union. global_pool: whether its residuals are averaged over the picture
    (the shuffle net).
    """

    # The released hint encoder halves three times, to the latent's size. The four convolutions of stride 2 that the
    # paper describes would halve once more.
    unet: UNetConfig = UNetConfig()
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    union: UnionConfig | None = None
    global_pool: bool = False


@dataclass(frozen=True)
class CtrLoraConfig:
    """A base ControlNet of CtrLoRA, or one with a LoRA in it: encoder and middle of `unet`, without hint encoder."""

    unet: UNetConfig = UNetConfig()


@dataclass(frozen=True)
class SparseCtrlConfig:
    """A SparseCtrl net: encoder and middle of `unet`, with attention over frames behind each residual block.

    channels: of what the hint's first convolution reads, mask included: 4 for pictures, 5 for latents. hint_widths: of
    the hint encoder; empty for one convolution on latents. motion_depth: blocks of each attention over frames.
    """

    unet: UNetConfig = UNetConfig()
    channels: int = 4
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    motion_depth: int = 1


@dataclass(frozen=True)
class ControlNetXSConfig:
    """A ControlNet-XS (Zavadski et al. 2023): a narrow encoder and middle that exchange feature maps with the base.

    base_widths: of the base's levels. widths: of its own. res_blocks, transformer_depth, middle_depth, context_dim,
    linear_projection: as in `UNetConfig`. heads: attention heads for each level; the middle has those of the last one.
    time_mix: None for a net that reads the base's timestep embedding. Else it has one of its own, which both networks
    read instead of the base's, mixed with the share `time_mix` ** 0.3, from 0 to 1. max_groups: groups of a
    normalisation, or the largest divisor of its width below it. middle_groups: those of the middle's first
    normalisation and of its others.
    """

    base_widths: tuple[int, ...] = (320, 640, 1280, 1280)
    widths: tuple[int, ...] = (64, 128, 256, 256)
    res_blocks: int = 2
    transformer_depth: tuple[int, ...] = (1, 1, 1, 0)
    middle_depth: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context_dim: int = 768
    linear_projection: bool = False
    time_mix: float | None = None
    max_groups: int = 32
    middle_groups: tuple[int, ...] = (32, 32)
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)

    @property
    def unet(self) -> UNetConfig:
        """The base's shape as far as the net knows it, which is all but its transformers and label."""
        depths = (0,) * len(self.base_widths)
        return UNetConfig(4, 4, self.base_widths, self.res_blocks, depths, 0, context_dim=self.context_dim)


@dataclass(frozen=True)
class AdapterConfig:
    """A T2I-Adapter (Mou et al. 2023): a small network that reads the hint only and returns a feature map per level.

    widths: of the feature maps, the same as the base's. unshuffle: pixels per cell of the first one along a side: 8, or
    16 for SDXL. res_blocks: per level. kernel: size of the second convolution of each block. light: narrow levels
    without a first convolution. conv_down: whether it halves by convolution instead of averaging.
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
        """Whether it is the variant for SDXL, which halves only once."""
        return self.unshuffle == 16


@dataclass(frozen=True)
class LLLiteLayer:
    """One small network of a ControlNet-LLLite, which changes what one layer of an attention reads.

    stack, block, depth: the transformer block, see `models.control.Place`. layer: "attn1.q", "attn1.k", "attn1.v" or
    "attn2.q". width: of the tokens. inner: of the network. hint_widths, kernels: of the convolutions that read the
    hint; each one's stride is its kernel.
    """

    stack: str
    block: int
    depth: int
    layer: str
    width: int
    inner: int
    hint_widths: tuple[int, ...]
    kernels: tuple[int, ...]

    @property
    def pixels(self) -> int:
        """Pixels of the hint per token along a side."""
        return prod(self.kernels)


@dataclass(frozen=True)
class LLLiteConfig:
    """A ControlNet-LLLite (kohya-ss): small networks beside the layers of the base's attentions."""

    layers: tuple[LLLiteLayer, ...]
    hint_channels: int = 3


@dataclass(frozen=True)
class DerivedConfig:
    """What the file tells of a ControlNet that needs the weights of its base (Control-LoRA, difference file).

    context_dim: width of the text that the base reads; 0 if the file does not tell.
    """

    context_dim: int = 0
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)


@dataclass(frozen=True)
class VAEConfig:
    """A KL autoencoder.

    patch: above 1, a pixel unshuffle of that factor before the encoder and a pixel shuffle after the decoder.
    A UNet reads (latent - latent_mean) * scaling_factor / latent_std. latent_mean, latent_std: per channel; empty for
    0 and 1.
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
        """Pixels per latent cell along a side."""
        return self.patch * 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class TextConfig:
    """A CLIP text transformer, and how its base reads it.

    projection: width of the pooled text after a last linear layer; None without one.
    stop_layer: the layer whose states the base reads: -1 is the last, -2 the one before it. A number beyond the first
        layer means the last.
    norms_stop_layer: whether the final normalisation is applied to the states of that layer (SD1.x: yes, SDXL: no).
    padding: the token that fills a section after the end mark (49407 is the end mark itself).
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    vocab_size: int = 49408
    max_length: int = 77
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection: int | None = None
    stop_layer: int = -1
    norms_stop_layer: bool = True
    padding: int = 49407


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP image transformer. The defaults are those of CLIP ViT-L/14.

    hidden: width of the perceptrons. patch, side: of a patch and of the picture, in pixels. projection: width of the
    picture's vector after a last linear layer; None without one.
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    hidden: int = 4096
    patch: int = 14
    side: int = 224
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection: int | None = 768


@dataclass(frozen=True)
class NoiseConfig:
    """The noise levels that a model was trained with.

    kind: "discrete" for the 1000 timesteps of Stable Diffusion, "edm" for all levels from `sigma_min` to `sigma_max`
    (Karras et al. 2022), "lcm" for 50 of the discrete timesteps, to which a consistency model was distilled (Luo et al.
    2023). zero_terminal_snr: whether the discrete levels are rescaled so that the last one is pure noise (Lin et al.
    2023). sigma_data: the standard deviation that the model assumes for its latents.
    """

    kind: Literal["discrete", "edm", "lcm"] = "discrete"
    zero_terminal_snr: bool = False
    sigma_min: float = 0.002
    sigma_max: float = 120.0
    sigma_data: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """A complete Stable Diffusion model. text2: the second text encoder, in models that have two."""

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

OPENCLIP_H = TextConfig(width=1024, layers=24, heads=16, activation="gelu", projection=1024, stop_layer=-2, padding=0)
"""OpenCLIP ViT-H's text transformer, as Stable Diffusion 2 reads it: the second-to-last layer, normalised."""

OPENCLIP_G = replace(OPENCLIP_H, width=1280, layers=32, heads=20, projection=1280, norms_stop_layer=False)
"""OpenCLIP ViT-bigG's, as SDXL reads it: the second-to-last layer, not normalised, and the projected pooled text."""

SD21 = replace(
    SD15,
    name="sd2",
    unet=replace(SD15.unet, context_dim=1024, head_dim=64, linear_projection=True),
    text=OPENCLIP_H,
    parametrization="v",
)
"""Stable Diffusion 2.1 for 768 pixels. The models for 512 pixels are the same with `parametrization="eps"`."""

# Podell et al. 2023, table 1: no transformer at the highest resolution, ten blocks at the lowest. The label is the
# pooled text (1280) and six sizes (256 each).
SDXL_UNET = replace(
    SD21.unet, widths=(320, 640, 1280), transformer_depth=(0, 2, 10), middle_depth=10, context_dim=2048, label_dim=2816
)
SDXL = replace(
    SD15,
    name="sdxl",
    unet=SDXL_UNET,
    vae=replace(SD15.vae, scaling_factor=0.13025),
    text=replace(SD15.text, stop_layer=-2, norms_stop_layer=False),
    text2=OPENCLIP_G,
)

# The refiner reads OpenCLIP's text only, and five numbers: no target size, but an aesthetic score.
REFINER_UNET = replace(
    SDXL.unet, widths=(384, 768, 1536, 1536), transformer_depth=(0, 4, 4, 0), middle_depth=4, context_dim=1280,
    label_dim=2560,
)  # fmt: skip
SDXL_REFINER = replace(SDXL, name="sdxl-refiner", unet=REFINER_UNET, text=OPENCLIP_G, text2=None)

# Small enough for a CPU. The autoencoder works on blocks of 4 x 4 pixels, which saves its two most costly levels.
DEMO_UNET = replace(
    SD15.unet, widths=(64, 96, 128), res_blocks=1, transformer_depth=(1, 1, 0), num_heads=4, context_dim=128
)
DEMO = replace(
    SD15,
    name="demo",
    unet=DEMO_UNET,
    vae=replace(SD15.vae, widths=(64, 128), res_blocks=1, patch=4, scaling_factor=1.0),
    text=replace(SD15.text, width=128, layers=2, heads=4, vocab_size=256),
    hint_widths=(16, 24, 32, 64),
)
"""The shape of the demo model. Its scaling factor and vocabulary size are found in training and stored in its file."""
