"""Key tables of the original release: LDM checkpoints, and ControlNets of its `cldm` package.

A table is generated from a config where the foreign name depends on the model's shape: the place of
the upsampling in a decoder block, the order of the autoencoder's decoder levels.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..config import UNetConfig
from .keymap import Pairs, Rule, add_prefix, nest
from .structure import Sketch

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."
OPEN_TEXT_PREFIX = "cond_stage_model.model."
EMBEDDER_PREFIXES = ("conditioner.embedders.0.", "conditioner.embedders.1.")
"""Where the text encoders of SDXL are: CLIP below `transformer.`, OpenCLIP below `model.`."""
CONTROL_PREFIX = "control_model."

RES: Pairs = (
    ("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "emb"),
    ("out_layers.0", "norm2"), ("out_layers.3", "conv2"), ("skip_connection", "skip"),
)  # fmt: skip
BLOCK: Pairs = (
    ("norm1", "norm1"), ("norm2", "norm2"), ("norm3", "norm3"), ("ff.net.0.proj", "ff.proj"), ("ff.net.2", "ff.out"),
    *((f"{attn}.to_{part}", f"{attn}.{part}") for attn in ("attn1", "attn2") for part in "qkv"),
    ("attn1.to_out.0", "attn1.out"), ("attn2.to_out.0", "attn2.out"),
)  # fmt: skip
TRANSFORMER: Pairs = (
    *((name, name) for name in ("norm", "proj_in", "proj_out")),
    *((f"transformer_blocks.{{k}}.{theirs}", f"blocks.{{k}}.{ours}") for theirs, ours in BLOCK),
)
"""The transformers, which diffusers names in the same way."""
EMBED: Pairs = (
    ("time_embed.0", "time_embed.linear1"), ("time_embed.2", "time_embed.linear2"),
    ("label_emb.0.0", "label_embed.linear1"), ("label_emb.0.2", "label_embed.linear2"),
)  # fmt: skip
VAE_RES: Pairs = (*((name, name) for name in ("norm1", "conv1", "norm2", "conv2")), ("nin_shortcut", "skip"))
VAE_ATTENTION: Pairs = (*((name, name) for name in ("norm", "q", "k", "v")), ("proj_out", "out"))
VAE_ENDS: Pairs = tuple((name, name) for name in ("conv_in", "norm_out", "conv_out"))
CLIP_LAYER: Pairs = (
    ("layer_norm1", "norm1"), ("layer_norm2", "norm2"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2"),
    *((f"self_attn.{part}_proj", f"attn.{part}") for part in ("q", "k", "v", "out")),
)  # fmt: skip
UNION_LAYER: Pairs = (
    ("attn.out_proj", "out"), ("ln_1", "norm1"), ("ln_2", "norm2"), ("mlp.c_fc", "fc1"), ("mlp.c_proj", "fc2"),
)  # fmt: skip
UNION_RULES = (
    Rule("task_embedding", "union.task_embedding"),
    *(Rule(f"transformer_layes.{{i}}.attn.in_proj_{p}", f"union.layers.{{i}}.qkv.{p}") for p in ("weight", "bias")),
    Rule("transformer_layes.{i}.attn.in_proj.{p}", "union.layers.{i}.qkv.{p}", alias=True),
    *nest("transformer_layes.{i}", "union.layers.{i}", UNION_LAYER),
    Rule("spatial_ch_projs.{p}", "union.projection.{p}"),
    Rule("control_add_embedding.linear_1.{p}", "union.type_embed.linear1.{p}"),
    Rule("control_add_embedding.linear_2.{p}", "union.type_embed.linear2.{p}"),
)
"""A ControlNet Union's own weights, in every layout; `layes` is their spelling."""

SCHEDULE_BUFFERS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
    "scale_factor", "denoiser.sigmas",
)  # fmt: skip
MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
"""Keys that say what a model was trained on; `detect` reads them."""
_TEXT_BUFFERS = ("logit_scale", "text_projection", "text_projection.weight")
_POSITION_IDS = ("transformer.text_model.embeddings.position_ids", "transformer.embeddings.position_ids")
DROP = (
    *SCHEDULE_BUFFERS,
    *MARKERS,
    "model_ema.{rest}",
    "first_stage_model.loss.{rest}",
    "first_stage_model.model_ema.{rest}",
    "embedding_manager.{rest}",
    # Of Stable unCLIP: its image encoder is loaded by `vision`, and the noise schedule for its vectors is a constant.
    "embedder.model.{rest}",
    "noise_augmentor.{rest}",
    *(
        f"{prefix}{name}"
        for prefix in ("cond_stage_model.", "conditioner.embedders.{n}.")
        for name in (*_TEXT_BUFFERS, *_POSITION_IDS, "model.logit_scale", "model.attn_mask")
    ),
)
"""Training state, and buffers that follow from the config. No other key may be left over."""
CONTROL_DROP = (*DROP, "model.diffusion_model.{rest}", "first_stage_model.{rest}", "cond_stage_model.{rest}")
"""The training checkpoint of a ControlNet also holds its locked base."""


def encoder_rules() -> tuple[Rule, ...]:
    """Timestep embedding and encoder, which UNet and ControlNet have in common."""
    return (
        *(Rule(f"{a}.{{p}}", f"{b}.{{p}}") for a, b in EMBED),
        Rule("input_blocks.0.0.{p}", "encoder.blocks.0.conv.{p}"),
        Rule("input_blocks.{n}.0.op.{p}", "encoder.blocks.{n}.conv.{p}"),
        *nest("input_blocks.{n}.0", "encoder.blocks.{n}.res", RES),
        *nest("input_blocks.{n}.1", "encoder.blocks.{n}.transformer", TRANSFORMER),
    )


def middle_rules(config: UNetConfig) -> tuple[Rule, ...]:
    """The middle block. Without a transformer its second residual block has number 1 instead of 2."""
    rules = nest("middle_block.0", "middle.res1", RES)
    if config.middle_depth:
        rules += nest("middle_block.1", "middle.transformer", TRANSFORMER)
    if config.middle_res > 1:
        rules += nest(f"middle_block.{2 if config.middle_depth else 1}", "middle.res2", RES)
    return rules


def unet_rules(config: UNetConfig) -> tuple[Rule, ...]:
    """The UNet, without a prefix."""
    per_level = config.res_blocks + 1
    # The upsampling comes after the transformer in the last block of each level but the highest.
    ups = ((level * per_level + per_level - 1, depth) for level, depth in enumerate(config.transformer_depth[:0:-1]))
    return (
        *encoder_rules(),
        *middle_rules(config),
        *nest("output_blocks.{n}.0", "decoder.blocks.{n}.res", RES),
        *nest("output_blocks.{n}.1", "decoder.blocks.{n}.transformer", TRANSFORMER),
        *(
            Rule(f"output_blocks.{n}.{2 if deep else 1}.conv.{{p}}", f"decoder.blocks.{n}.up.conv.{{p}}")
            for n, deep in ups
        ),
        Rule("out.0.{p}", "norm_out.{p}"),
        Rule("out.2.{p}", "conv_out.{p}"),
    )


def controlnet_rules(config: UNetConfig, hint_layers: int = 8) -> tuple[Rule, ...]:
    """The ControlNet, without a prefix. Activations take every second place in the hint encoder."""
    return (
        *encoder_rules(),
        *middle_rules(config),
        *(Rule(f"input_hint_block.{2 * i}.{{p}}", f"hint.convs.{i}.{{p}}") for i in range(hint_layers)),
        Rule("zero_convs.{n}.0.{p}", "zero_convs.{n}.conv.{p}"),
        Rule("middle_block_out.0.{p}", "zero_conv_middle.conv.{p}"),
        *UNION_RULES,
    )


def vae_rules(levels: int) -> tuple[Rule, ...]:
    """The autoencoder, without a prefix. LDM numbers the levels of the decoder from the highest resolution."""
    rules = (Rule("quant_conv.{p}", "quant_conv.{p}"), Rule("post_quant_conv.{p}", "post_quant_conv.{p}"))
    for side in ("encoder", "decoder"):
        rules += nest(side, side, VAE_ENDS)
        rules += nest(f"{side}.mid.block_1", f"{side}.middle.res1", VAE_RES)
        rules += nest(f"{side}.mid.attn_1", f"{side}.middle.attn", VAE_ATTENTION)
        rules += nest(f"{side}.mid.block_2", f"{side}.middle.res2", VAE_RES)
    rules += nest("encoder.down.{i}.block.{j}", "encoder.levels.{i}.res.{j}", VAE_RES)
    rules += (Rule("encoder.down.{i}.downsample.conv.{p}", "encoder.levels.{i}.down.conv.{p}"),)
    for level in range(levels):
        theirs, ours = f"decoder.up.{level}", f"decoder.levels.{levels - 1 - level}"
        rules += nest(f"{theirs}.block.{{j}}", f"{ours}.res.{{j}}", VAE_RES)
        rules += (Rule(f"{theirs}.upsample.conv.{{p}}", f"{ours}.up.conv.{{p}}"),)
    return rules


def clip_rules() -> tuple[Rule, ...]:
    """CLIP's text transformer; some files lack the `text_model.` level."""
    body = (
        Rule("embeddings.token_embedding.{p}", "token_embedding.{p}"),
        Rule("embeddings.position_embedding.{p}", "position_embedding.{p}"),
        *nest("encoder.layers.{i}", "layers.{i}", CLIP_LAYER),
        Rule("final_layer_norm.{p}", "norm_out.{p}"),
    )
    old = (Rule(rule.theirs, rule.ours, alias=True) for rule in body)
    projection = Rule("text_projection.weight", "projection.weight")
    return (*add_prefix(body, theirs="text_model."), *old, projection)


def sketch(keys: Iterable[str]) -> Sketch:
    """The model of these keys, which have no prefix."""
    names = set(keys)
    blocks = sum(f"input_blocks.{n}.0.in_layers.0.weight" in names for n in range(64))
    levels = 1 + sum(f"input_blocks.{n}.0.op.weight" in names for n in range(64))
    unet = UNetConfig(
        widths=(32,) * levels,
        res_blocks=blocks // levels,
        transformer_depth=(1,) * levels,
        middle_depth=1 if "middle_block.1.proj_in.weight" in names else 0,
        middle_res=2 if names & {f"middle_block.{n}.in_layers.2.weight" for n in (1, 2)} else 1,
    )
    vae_levels = sum(f"encoder.down.{i}.block.0.norm1.weight" in names for i in range(16))
    return Sketch(unet, vae_levels, sum(f"input_hint_block.{2 * i}.weight" in names for i in range(32)))
