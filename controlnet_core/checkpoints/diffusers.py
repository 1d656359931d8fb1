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
from .structure import Sketch

UNET_PREFIX = "unet."
VAE_PREFIX = "vae."
TEXT_PREFIXES = ("text_encoder.", "text_encoder_2.")

EMBED: Pairs = (
    ("time_embedding.linear_1", "time_embed.linear1"), ("time_embedding.linear_2", "time_embed.linear2"),
    ("add_embedding.linear_1", "label_embed.linear1"), ("add_embedding.linear_2", "label_embed.linear2"),
)  # fmt: skip
VAE_BLOCK: Pairs = (*VAE_RES[:4], ("conv_shortcut", "skip"))
RES: Pairs = (*VAE_BLOCK, ("time_emb_proj", "emb"))
VAE_ENDS: Pairs = (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out"))
VAE_ATTENTION: Pairs = (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out"))
VAE_ATTENTION_OLD: Pairs = (("query", "q"), ("key", "k"), ("value", "v"), ("proj_attn", "out"))

DROP = (
    "logit_scale",
    *(f"{prefix}{name}embeddings.position_ids" for prefix in ("", *TEXT_PREFIXES) for name in ("", "text_model.")),
)

__all__ = ["clip_rules", "controlnet_rules", "sketch", "unet_rules", "vae_rules"]


def encoder_rules(config: UNetConfig) -> tuple[Rule, ...]:
    """Timestep embedding, encoder and middle, which UNet and ControlNet have in common."""
    rules = tuple(Rule(f"{a}.{{p}}", f"{b}.{{p}}") for a, b in EMBED)
    rules += (Rule("conv_in.{p}", "encoder.blocks.0.conv.{p}"),)
    for level in range(len(config.widths)):
        theirs, first = f"down_blocks.{level}", 1 + level * (config.res_blocks + 1)
        rules += _blocks(theirs, "encoder", first, config.res_blocks)
        last = f"encoder.blocks.{first + config.res_blocks}"
        rules += (Rule(f"{theirs}.downsamplers.0.conv.{{p}}", f"{last}.conv.{{p}}"),)
    rules += nest("mid_block.resnets.0", "middle.res1", RES)
    rules += nest("mid_block.attentions.0", "middle.transformer", TRANSFORMER)
    return rules + nest("mid_block.resnets.1", "middle.res2", RES)


def _blocks(theirs: str, side: str, first: int, count: int) -> tuple[Rule, ...]:
    """The residual blocks and transformers of one level, whose first one has the number `first` here."""
    rules: tuple[Rule, ...] = ()
    for j in range(count):
        ours = f"{side}.blocks.{first + j}"
        rules += nest(f"{theirs}.resnets.{j}", f"{ours}.res", RES)
        rules += nest(f"{theirs}.attentions.{j}", f"{ours}.transformer", TRANSFORMER)
    return rules


def unet_rules(config: UNetConfig) -> tuple[Rule, ...]:
    """The UNet, without a prefix."""
    rules, per_level = encoder_rules(config), config.res_blocks + 1
    for level in range(len(config.widths)):
        theirs, first = f"up_blocks.{level}", level * per_level
        rules += _blocks(theirs, "decoder", first, per_level)
        last = f"decoder.blocks.{first + config.res_blocks}"
        rules += (Rule(f"{theirs}.upsamplers.0.conv.{{p}}", f"{last}.up.conv.{{p}}"),)
    return (*rules, Rule("conv_norm_out.{p}", "norm_out.{p}"), Rule("conv_out.{p}", "conv_out.{p}"))


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
    """The autoencoder, without a prefix. Its attention is linear layers, which older files spell differently."""
    rules = (Rule("quant_conv.{p}", "quant_conv.{p}"), Rule("post_quant_conv.{p}", "post_quant_conv.{p}"))
    for side, way in (("encoder", "down"), ("decoder", "up")):
        theirs, ours = f"{side}.{way}_blocks.{{i}}", f"{side}.levels.{{i}}"
        attention = f"{side}.mid_block.attentions.0"
        rules += nest(side, side, VAE_ENDS)
        rules += nest(f"{theirs}.resnets.{{j}}", f"{ours}.res.{{j}}", VAE_BLOCK)
        rules += (Rule(f"{theirs}.{way}samplers.0.conv.{{p}}", f"{ours}.{way}.conv.{{p}}"),)
        rules += nest(f"{side}.mid_block.resnets.0", f"{side}.middle.res1", VAE_BLOCK)
        rules += nest(f"{side}.mid_block.resnets.1", f"{side}.middle.res2", VAE_BLOCK)
        rules += (Rule(f"{attention}.group_norm.{{p}}", f"{side}.middle.attn.norm.{{p}}"),)
        rules += nest(attention, f"{side}.middle.attn", VAE_ATTENTION, linear=True)
        rules += nest(attention, f"{side}.middle.attn", VAE_ATTENTION_OLD, linear=True, alias=True)
    return rules


def sketch(keys: Iterable[str]) -> Sketch:
    """The model of these keys, which have no prefix."""
    names = set(keys)
    levels = sum(f"down_blocks.{i}.resnets.0.norm1.weight" in names for i in range(16))
    res_blocks = sum(f"down_blocks.0.resnets.{j}.norm1.weight" in names for j in range(16))
    unet = UNetConfig(widths=(32,) * levels, res_blocks=res_blocks, transformer_depth=(1,) * levels)
    vae_levels = sum(f"encoder.down_blocks.{i}.resnets.0.norm1.weight" in names for i in range(16))
    # the hint encoder has a convolution at each end besides those in `blocks`
    return Sketch(unet, vae_levels, 2 + sum(f"controlnet_cond_embedding.blocks.{i}.weight" in names for i in range(32)))
