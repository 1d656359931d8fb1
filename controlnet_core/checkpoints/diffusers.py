"""Key tables of the diffusers and transformers layouts.

There a block is addressed by its level and its place in the level, here by one running index:
n = 1 + level * (res_blocks + 1) + place in the encoder, n = level * (res_blocks + 1) + place in the
decoder. The tables are therefore generated from the config.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..config import UNetConfig
from .keymap import Pairs, Rule, nest
from .ldm import TRANSFORMER, UNION_RULES, VAE_RES, clip_rules

UNET_PREFIX = "unet."
VAE_PREFIX = "vae."
TEXT_PREFIXES = ("text_encoder.", "text_encoder_2.")

RES: Pairs = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("time_emb_proj", "emb"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("conv_shortcut", "skip"),
)
EMBED: Pairs = (
    ("time_embedding.linear_1", "time_embed.linear1"),
    ("time_embedding.linear_2", "time_embed.linear2"),
    ("add_embedding.linear_1", "label_embed.linear1"),
    ("add_embedding.linear_2", "label_embed.linear2"),
)
VAE_BLOCK: Pairs = (*VAE_RES[:4], ("conv_shortcut", "skip"))
VAE_ENDS: Pairs = (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out"))
VAE_ATTENTION: Pairs = (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out"))
VAE_ATTENTION_OLD: Pairs = (("query", "q"), ("key", "k"), ("value", "v"), ("proj_attn", "out"))

DROP = (
    "embeddings.position_ids",
    "text_model.embeddings.position_ids",
    *(f"{prefix}embeddings.position_ids" for prefix in TEXT_PREFIXES),
    *(f"{prefix}text_model.embeddings.position_ids" for prefix in TEXT_PREFIXES),
    "logit_scale",
)

__all__ = [
    "clip_rules",
    "controlnet_rules",
    "sketch_hint",
    "sketch_unet",
    "sketch_vae",
    "unet_rules",
    "vae_rules",
]


def encoder_rules(config: UNetConfig) -> tuple[Rule, ...]:
    """Timestep embedding, encoder and middle: what UNet and ControlNet have in common."""
    return (
        *(Rule(f"{a}.{{p}}", f"{b}.{{p}}") for a, b in EMBED),
        Rule("conv_in.{p}", "encoder.blocks.0.conv.{p}"),
        *(rule for level in range(len(config.widths)) for rule in _down_level(level, config.res_blocks)),
        *nest("mid_block.resnets.0", "middle.res1", RES),
        *nest("mid_block.attentions.0", "middle.transformer", TRANSFORMER),
        *nest("mid_block.resnets.1", "middle.res2", RES),
    )


def _down_level(level: int, res_blocks: int) -> tuple[Rule, ...]:
    first = 1 + level * (res_blocks + 1)
    theirs = f"down_blocks.{level}"
    return (
        *(
            rule
            for j in range(res_blocks)
            for rule in (
                *nest(f"{theirs}.resnets.{j}", f"encoder.blocks.{first + j}.res", RES),
                *nest(f"{theirs}.attentions.{j}", f"encoder.blocks.{first + j}.transformer", TRANSFORMER),
            )
        ),
        Rule(f"{theirs}.downsamplers.0.conv.{{p}}", f"encoder.blocks.{first + res_blocks}.conv.{{p}}"),
    )


def _up_level(level: int, res_blocks: int) -> tuple[Rule, ...]:
    first = level * (res_blocks + 1)
    theirs = f"up_blocks.{level}"
    return (
        *(
            rule
            for j in range(res_blocks + 1)
            for rule in (
                *nest(f"{theirs}.resnets.{j}", f"decoder.blocks.{first + j}.res", RES),
                *nest(f"{theirs}.attentions.{j}", f"decoder.blocks.{first + j}.transformer", TRANSFORMER),
            )
        ),
        Rule(f"{theirs}.upsamplers.0.conv.{{p}}", f"decoder.blocks.{first + res_blocks}.up.conv.{{p}}"),
    )


def unet_rules(config: UNetConfig) -> tuple[Rule, ...]:
    """The UNet, without a prefix."""
    return (
        *encoder_rules(config),
        *(rule for level in range(len(config.widths)) for rule in _up_level(level, config.res_blocks)),
        Rule("conv_norm_out.{p}", "norm_out.{p}"),
        Rule("conv_out.{p}", "conv_out.{p}"),
    )


def controlnet_rules(config: UNetConfig, hint_layers: int = 8) -> tuple[Rule, ...]:
    """The ControlNet, without a prefix."""
    last = hint_layers - 1
    return (
        *encoder_rules(config),
        Rule("controlnet_cond_embedding.conv_in.{p}", "hint.convs.0.{p}"),
        *(Rule(f"controlnet_cond_embedding.blocks.{i - 1}.{{p}}", f"hint.convs.{i}.{{p}}") for i in range(1, last)),
        Rule("controlnet_cond_embedding.conv_out.{p}", f"hint.convs.{last}.{{p}}"),
        Rule("controlnet_down_blocks.{n}.{p}", "zero_convs.{n}.conv.{p}"),
        Rule("controlnet_mid_block.{p}", "zero_conv_middle.conv.{p}"),
        *UNION_RULES,
    )


def vae_rules(levels: int) -> tuple[Rule, ...]:
    """The autoencoder, without a prefix; its attention is linear layers, in two spellings."""
    sides = (("encoder", "down", "downsamplers"), ("decoder", "up", "upsamplers"))
    return (
        Rule("quant_conv.{p}", "quant_conv.{p}"),
        Rule("post_quant_conv.{p}", "post_quant_conv.{p}"),
        *(rule for side, *_ in sides for rule in nest(side, side, VAE_ENDS)),
        *(rule for side, *_ in sides for rule in _vae_middle(side)),
        *(rule for side, way, samplers in sides for rule in _vae_levels(side, way, samplers)),
    )


def _vae_levels(side: str, way: str, samplers: str) -> tuple[Rule, ...]:
    theirs, ours = f"{side}.{way}_blocks.{{i}}", f"{side}.levels.{{i}}"
    return (
        *nest(f"{theirs}.resnets.{{j}}", f"{ours}.res.{{j}}", VAE_BLOCK),
        Rule(f"{theirs}.{samplers}.0.conv.{{p}}", f"{ours}.{way}.conv.{{p}}"),
    )


def _vae_middle(side: str) -> tuple[Rule, ...]:
    theirs, ours = f"{side}.mid_block", f"{side}.middle"
    attention = f"{theirs}.attentions.0"
    return (
        *nest(f"{theirs}.resnets.0", f"{ours}.res1", VAE_BLOCK),
        *nest(f"{theirs}.resnets.1", f"{ours}.res2", VAE_BLOCK),
        Rule(f"{attention}.group_norm.{{p}}", f"{ours}.attn.norm.{{p}}"),
        *nest(attention, f"{ours}.attn", VAE_ATTENTION, linear=True),
        *nest(attention, f"{ours}.attn", VAE_ATTENTION_OLD, linear=True, alias=True),
    )


def sketch_unet(keys: Iterable[str]) -> UNetConfig:
    """Levels, residual blocks and middle of a model, as far as its keys tell; all that the tables need."""
    names = set(keys)
    levels = sum(f"down_blocks.{i}.resnets.0.norm1.weight" in names for i in range(16))
    res_blocks = sum(f"down_blocks.0.resnets.{j}.norm1.weight" in names for j in range(16))
    return UNetConfig(widths=(32,) * levels, res_blocks=res_blocks, transformer_depth=(1,) * levels)


def sketch_vae(keys: Iterable[str]) -> int:
    """Number of the autoencoder's levels."""
    names = set(keys)
    return sum(f"encoder.down_blocks.{i}.resnets.0.norm1.weight" in names for i in range(16))


def sketch_hint(keys: Iterable[str]) -> int:
    """Number of convolutions in the hint encoder: those in its middle, and one at each end."""
    names = set(keys)
    return 2 + sum(f"controlnet_cond_embedding.blocks.{i}.weight" in names for i in range(32))
