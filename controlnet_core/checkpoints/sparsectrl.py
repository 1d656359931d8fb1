"""SparseCtrl's files: the layout of diffusers, with the motion modules under diffusers' or the authors' names."""

from __future__ import annotations

from ..config import UNetConfig
from . import diffusers
from .keymap import Pairs, Rule, nest

KIND = "sparsectrl"
HINT_CONVOLUTION = "controlnet_cond_embedding.weight"
"""The only convolution of nets that read latents."""
ENDS: Pairs = tuple((name, name) for name in ("norm", "proj_in", "proj_out"))
ATTENTION: Pairs = (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out"))
FEED_FORWARD: Pairs = (("ff.net.0.proj", "ff.proj"), ("ff.net.2", "ff.out"))
BLOCK: Pairs = (
    ("norm1", "norm1"), ("norm3", "norm2"), *FEED_FORWARD, *((f"attn1.{a}", f"attn.{b}") for a, b in ATTENTION),
)  # fmt: skip
OLD_BLOCK: Pairs = (
    ("norms.0", "norm1"), ("ff_norm", "norm2"), *FEED_FORWARD,
    *((f"attention_blocks.0.{a}", f"attn.{b}") for a, b in ATTENTION),
)  # fmt: skip
_MODULE = "down_blocks.{i}.motion_modules.{j}"
# Positions are a formula.
DROP = (
    *diffusers.DROP,
    f"{_MODULE}.transformer_blocks.{{k}}.pos_embed.pe",
    f"{_MODULE}.temporal_transformer.transformer_blocks.{{k}}.attention_blocks.{{a}}.pos_encoder.pe",
)


def rules(config: UNetConfig, hint_layers: int) -> tuple[Rule, ...]:
    """Names without a prefix. hint_layers: 0 for a net that reads latents."""
    base = diffusers.controlnet_rules(config, hint_layers or 2)
    if not hint_layers:
        base = (
            Rule("controlnet_cond_embedding.{p}", "hint.{p}"),
            *(r for r in base if "cond_embedding" not in r.theirs),
        )
    motion: tuple[Rule, ...] = ()
    for level in range(len(config.widths)):
        for place in range(config.res_blocks):
            theirs = f"down_blocks.{level}.motion_modules.{place}"
            ours = f"motion.{level * config.res_blocks + place}"
            for old, stem, block in ((False, theirs, BLOCK), (True, f"{theirs}.temporal_transformer", OLD_BLOCK)):
                motion += nest(stem, ours, ENDS, alias=old)
                motion += nest(f"{stem}.transformer_blocks.{{k}}", f"{ours}.blocks.{{k}}", block, alias=old)
    return base + motion
