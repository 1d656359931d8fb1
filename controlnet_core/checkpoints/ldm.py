"""Key tables of the original release: LDM checkpoints, and ControlNets of its `cldm` package.

A table is generated from a config where the foreign name depends on the model's shape: the place of
the upsampling in a decoder block, the order of the autoencoder's decoder levels.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..config import UNetConfig
from .keymap import Pairs, Rule, add_prefix, nest

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."
OPEN_TEXT_PREFIX = "cond_stage_model.model."
EMBEDDER_PREFIXES = ("conditioner.embedders.0.", "conditioner.embedders.1.")
"""Where the text encoders of SDXL are: CLIP below `transformer.`, OpenCLIP below `model.`."""
CONTROL_PREFIX = "control_model."

RES: Pairs = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "emb"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "skip"),
)
TRANSFORMER: Pairs = (
    ("norm", "norm"),
    ("proj_in", "proj_in"),
    ("proj_out", "proj_out"),
    *(
        (f"transformer_blocks.{{k}}.{theirs}", f"blocks.{{k}}.{ours}")
        for theirs, ours in (
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("norm3", "norm3"),
            ("ff.net.0.proj", "ff.proj"),
            ("ff.net.2", "ff.out"),
            *((f"{attn}.to_{part}", f"{attn}.{part}") for attn in ("attn1", "attn2") for part in "qkv"),
            ("attn1.to_out.0", "attn1.out"),
            ("attn2.to_out.0", "attn2.out"),
        )
    ),
)
EMBED: Pairs = (("time_embed.0", "time_embed.linear1"), ("time_embed.2", "time_embed.linear2"))
LABEL: Pairs = (("label_emb.0.0", "label_embed.linear1"), ("label_emb.0.2", "label_embed.linear2"))
VAE_RES: Pairs = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "skip"),
)
VAE_ATTENTION: Pairs = (("norm", "norm"), ("q", "q"), ("k", "k"), ("v", "v"), ("proj_out", "out"))
VAE_ENDS: Pairs = (("conv_in", "conv_in"), ("norm_out", "norm_out"), ("conv_out", "conv_out"))
CLIP_LAYER: Pairs = (
    ("layer_norm1", "norm1"),
    ("layer_norm2", "norm2"),
    ("mlp.fc1", "fc1"),
    ("mlp.fc2", "fc2"),
    *((f"self_attn.{part}_proj", f"attn.{part}") for part in ("q", "k", "v", "out")),
)

UNION_LAYER: Pairs = (
    ("attn.out_proj", "out"),
    ("ln_1", "norm1"),
    ("ln_2", "norm2"),
    ("mlp.c_fc", "fc1"),
    ("mlp.c_proj", "fc2"),
)
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
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "scale_factor",
)
DROP = (
    *SCHEDULE_BUFFERS,
    "model_ema.{rest}",
    "denoiser.sigmas",
    "first_stage_model.loss.{rest}",
    "first_stage_model.model_ema.{rest}",
    "cond_stage_model.logit_scale",
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "cond_stage_model.transformer.embeddings.position_ids",
    "cond_stage_model.text_projection",
    "cond_stage_model.text_projection.weight",
    *(
        f"{prefix}{name}"
        for prefix in ("cond_stage_model.model.", "conditioner.embedders.{n}.model.")
        for name in ("logit_scale", "attn_mask")
    ),
    "conditioner.embedders.{n}.logit_scale",
    "conditioner.embedders.{n}.text_projection",
    "conditioner.embedders.{n}.text_projection.weight",
    "conditioner.embedders.{n}.transformer.text_model.embeddings.position_ids",
    "v_pred",
    "ztsnr",
    "edm_mean",
    "edm_std",
    "edm_vpred.sigma_max",
    "edm_vpred.sigma_min",
    "embedding_manager.{rest}",
)
"""Training state, and buffers that follow from the config. Nothing else may be left over."""
CONTROL_DROP = (
    *DROP,
    "model.diffusion_model.{rest}",
    "first_stage_model.{rest}",
    "cond_stage_model.{rest}",
)
"""A ControlNet's training checkpoint carries its locked base along."""


def encoder_rules() -> tuple[Rule, ...]:
    """Timestep embedding, encoder and middle: what UNet and ControlNet have in common."""
    return (
        *(Rule(f"{a}.{{p}}", f"{b}.{{p}}") for a, b in (*EMBED, *LABEL)),
        Rule("input_blocks.0.0.{p}", "encoder.blocks.0.conv.{p}"),
        Rule("input_blocks.{n}.0.op.{p}", "encoder.blocks.{n}.conv.{p}"),
        *nest("input_blocks.{n}.0", "encoder.blocks.{n}.res", RES),
        *nest("input_blocks.{n}.1", "encoder.blocks.{n}.transformer", TRANSFORMER),
    )


def middle_rules(config: UNetConfig) -> tuple[Rule, ...]:
    """The middle block: its last residual block moves up where there is no transformer."""
    last = 2 if config.middle_depth else 1
    second = nest(f"middle_block.{last}", "middle.res2", RES) if config.middle_res > 1 else ()
    transformer = nest("middle_block.1", "middle.transformer", TRANSFORMER) if config.middle_depth else ()
    return (
        *nest("middle_block.0", "middle.res1", RES),
        *transformer,
        *second,
    )


def unet_rules(config: UNetConfig) -> tuple[Rule, ...]:
    """The UNet, without a prefix."""
    return (
        *encoder_rules(),
        *middle_rules(config),
        *nest("output_blocks.{n}.0", "decoder.blocks.{n}.res", RES),
        *nest("output_blocks.{n}.1", "decoder.blocks.{n}.transformer", TRANSFORMER),
        *_up_rules(config),
        Rule("out.0.{p}", "norm_out.{p}"),
        Rule("out.2.{p}", "conv_out.{p}"),
    )


def _up_rules(config: UNetConfig) -> tuple[Rule, ...]:
    """Upsampling stands behind the transformer of the last block of each level but the highest."""
    per_level = config.res_blocks + 1
    depths = tuple(reversed(config.transformer_depth))[:-1]
    return tuple(
        Rule(f"output_blocks.{n}.{2 if depth else 1}.conv.{{p}}", f"decoder.blocks.{n}.up.conv.{{p}}")
        for n, depth in ((level * per_level + per_level - 1, depth) for level, depth in enumerate(depths))
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
    """The autoencoder, without a prefix. Its decoder's levels are numbered from the highest resolution."""
    sides = ("encoder", "decoder")
    return (
        Rule("quant_conv.{p}", "quant_conv.{p}"),
        Rule("post_quant_conv.{p}", "post_quant_conv.{p}"),
        *(rule for side in sides for rule in nest(side, side, VAE_ENDS)),
        *(rule for side in sides for rule in nest(f"{side}.mid.block_1", f"{side}.middle.res1", VAE_RES)),
        *(rule for side in sides for rule in nest(f"{side}.mid.attn_1", f"{side}.middle.attn", VAE_ATTENTION)),
        *(rule for side in sides for rule in nest(f"{side}.mid.block_2", f"{side}.middle.res2", VAE_RES)),
        *nest("encoder.down.{i}.block.{j}", "encoder.levels.{i}.res.{j}", VAE_RES),
        Rule("encoder.down.{i}.downsample.conv.{p}", "encoder.levels.{i}.down.conv.{p}"),
        *(rule for level in range(levels) for rule in _vae_up_level(level, levels - 1 - level)),
    )


def _vae_up_level(theirs: int, ours: int) -> tuple[Rule, ...]:
    return (
        *nest(f"decoder.up.{theirs}.block.{{j}}", f"decoder.levels.{ours}.res.{{j}}", VAE_RES),
        Rule(f"decoder.up.{theirs}.upsample.conv.{{p}}", f"decoder.levels.{ours}.up.conv.{{p}}"),
    )


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


def sketch_unet(keys: Iterable[str]) -> UNetConfig:
    """Levels, residual blocks and middle of a model, as far as its keys tell; all that the tables need."""
    names = set(keys)
    blocks = sum(f"input_blocks.{n}.0.in_layers.0.weight" in names for n in range(64))
    downs = [n for n in range(64) if f"input_blocks.{n}.0.op.weight" in names]
    levels = len(downs) + 1
    return UNetConfig(
        widths=(32,) * levels,
        res_blocks=blocks // levels,
        transformer_depth=(1,) * levels,
        middle_depth=1 if "middle_block.1.proj_in.weight" in names else 0,
        middle_res=2 if names & {f"middle_block.{n}.in_layers.2.weight" for n in (1, 2)} else 1,
    )


def sketch_vae(keys: Iterable[str]) -> int:
    """Number of the autoencoder's levels."""
    names = set(keys)
    return sum(f"encoder.down.{i}.block.0.norm1.weight" in names for i in range(16))


def sketch_hint(keys: Iterable[str]) -> int:
    """Number of convolutions in the hint encoder."""
    names = set(keys)
    return sum(f"input_hint_block.{2 * i}.weight" in names for i in range(32))
