"""A model's config from the shapes of its weights, under this package's names.

Shapes do not show the number of attention heads and the scaling factor of the autoencoder. These come from
the config of the file where it has one (`fileconfig.py`), otherwise from its family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

from .. import config
from ..errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sketch:
    """What a key table needs to know of a model, found from its keys: levels, blocks and the number of hint layers."""

    unet: config.UNetConfig
    vae_levels: int
    hint_layers: int


DEFAULT_CONTEXT = 768
HEAD_DIM = 64
HEAD_DIM_CONTEXTS = frozenset({1024, 1280, 2048})
"""Widths of the text in SD2 and SDXL, whose attention heads are 64 wide. SD1.5 has 8 heads at every width."""
CONTEXT_OF_LABEL: Mapping[int, int] = {2816: 2048, 2560: 1280}
"""Width of the text by the width of the label vector, for nets without any transformer (SDXL small)."""
OPENCLIP_WIDTHS = frozenset({1024, 1280})
"""Widths of the OpenCLIP text encoders, which use the exact GELU."""


def _size(shapes: Shapes, key: str, axis: int) -> int:
    if key not in shapes:
        raise CheckpointError(f"the weight {key} is missing: the file is incomplete, download it again")
    if len(shapes[key]) <= axis:
        raise CheckpointError(
            f"the weight {key} has the shape {list(shapes[key])}, expected at least {axis + 1} axes: the file is "
            "damaged, download it again"
        )
    return shapes[key][axis]


def _count(shapes: Shapes, pattern: str) -> int:
    """How many of pattern.format(0), pattern.format(1), ... there are."""
    n = 0
    while pattern.format(n) in shapes:
        n += 1
    return n


def _encoder_levels(shapes: Shapes) -> list[list[int]]:
    """Indices of the encoder's residual blocks by level; a downsampling stands between two levels."""
    levels: list[list[int]] = [[]]
    n = 1
    while True:  # block 0 is the first convolution
        if f"encoder.blocks.{n}.res.conv1.weight" in shapes:
            levels[-1].append(n)
        elif f"encoder.blocks.{n}.conv.weight" in shapes:
            levels.append([])
        else:
            return levels
        n += 1


def unet_config(shapes: Shapes) -> config.UNetConfig:
    """Config of a UNet, or of the encoder half of one. Raises CheckpointError when weights are missing."""
    levels = _encoder_levels(shapes)
    if not all(len(level) == len(levels[0]) > 0 for level in levels):
        counts = ", ".join(str(len(level)) for level in levels)
        raise CheckpointError(f"its levels have {counts} residual blocks, expected the same number in each")
    label = "label_embed.linear1.weight"
    label_dim = _size(shapes, label, 1) if label in shapes else None
    context = _context_dim(shapes, label_dim)
    projection = next((shape for key, shape in shapes.items() if key.endswith("proj_in.weight")), None)
    stem = "encoder.blocks.{}.res.conv1.weight"
    return config.UNetConfig(
        in_channels=_size(shapes, "encoder.blocks.0.conv.weight", 1),
        out_channels=_size(shapes, "conv_out.weight", 0) if "conv_out.weight" in shapes else 4,
        widths=tuple(_size(shapes, stem.format(level[0]), 0) for level in levels),
        res_blocks=len(levels[0]),
        transformer_depth=tuple(_depth(shapes, f"encoder.blocks.{level[0]}") for level in levels),
        middle_depth=_depth(shapes, "middle"),
        middle_res=1 + ("middle.res2.conv1.weight" in shapes),
        head_dim=HEAD_DIM if context in HEAD_DIM_CONTEXTS else None,
        context_dim=context,
        linear_projection=projection is not None and len(projection) == 2,
        label_dim=label_dim,
    )


def _depth(shapes: Shapes, block: str) -> int:
    depth = _count(shapes, f"{block}.transformer.blocks.{{}}.norm1.weight")
    # SDXL's mid ControlNet has transformers without blocks, which are not the same as no transformers
    return config.EMPTY if not depth and f"{block}.transformer.norm.weight" in shapes else depth


def _context_dim(shapes: Shapes, label_dim: int | None) -> int:
    seen = next((_size(shapes, key, 1) for key in shapes if key.endswith("attn2.k.weight")), None)
    return seen or CONTEXT_OF_LABEL.get(label_dim or 0, DEFAULT_CONTEXT)


def controlnet_config(shapes: Shapes) -> config.ControlNetConfig:
    """Config of a ControlNet, a Union included."""
    return config.ControlNetConfig(
        unet=unet_config(shapes),
        hint_channels=_size(shapes, "hint.convs.0.weight", 1),
        hint_widths=hint_widths(shapes),
        union=_union_config(shapes) if "union.task_embedding" in shapes else None,
    )


def hint_widths(shapes: Shapes) -> tuple[int, ...]:
    """Widths of a hint encoder: every second of its convolutions, from the first, widens."""
    # the last convolution leads to the width of the UNet and is not listed
    layers = _count(shapes, "hint.convs.{}.weight")
    return tuple(_size(shapes, f"hint.convs.{i}.weight", 0) for i in range(0, layers - 1, 2))


def _union_config(shapes: Shapes) -> config.UnionConfig:
    types, width = (_size(shapes, "union.task_embedding", axis) for axis in (0, 1))
    return config.UnionConfig(
        types=types,
        width=width,
        layers=_count(shapes, "union.layers.{}.norm1.weight"),
        type_dim=_size(shapes, "union.type_embed.linear1.weight", 1) // types,
    )


def ctrlora_config(shapes: Shapes) -> config.CtrLoraConfig:
    """Config of a base ControlNet of CtrLoRA."""
    return config.CtrLoraConfig(unet_config(shapes))


def sparsectrl_config(shapes: Shapes) -> config.SparseCtrlConfig:
    """Config of a SparseCtrl net. One that reads latents has a single convolution for them."""
    plain = "hint.weight" in shapes
    return config.SparseCtrlConfig(
        unet=unet_config(shapes),
        channels=_size(shapes, "hint.weight" if plain else "hint.convs.0.weight", 1),
        hint_widths=() if plain else hint_widths(shapes),
        motion_depth=_count(shapes, "motion.0.blocks.{}.norm1.weight"),
    )


def controlnet_xs_config(shapes: Shapes) -> config.ControlNetXSConfig:
    """Config of a ControlNet-XS, without what shapes do not show: heads, and groups of norms."""
    unet = unet_config(shapes)
    per_level = unet.res_blocks + 1
    firsts = range(1, len(unet.widths) * per_level, per_level)  # the first block of each level
    return config.ControlNetXSConfig(
        base_widths=tuple(_size(shapes, f"to_base.{number}.conv.weight", 0) for number in firsts),
        widths=unet.widths,
        res_blocks=unet.res_blocks,
        transformer_depth=unet.transformer_depth,
        middle_depth=unet.middle_depth,
        heads=(1,) * len(unet.widths),
        context_dim=unet.context_dim,
        linear_projection=unet.linear_projection,
        time_mix=1.0 if "time_embed.linear1.weight" in shapes else None,
        hint_channels=_size(shapes, "hint.convs.0.weight", 1),
        hint_widths=hint_widths(shapes),
    )


def derived_config(shapes: Shapes) -> config.DerivedConfig:
    """Config of a difference file or Control-LoRA, which may lack any weight that the base has."""
    ends = ("attn2.k.weight", "attn2.k.down")
    context = next((_size(shapes, key, 1) for key in shapes if key.endswith(ends)), 0)
    return config.DerivedConfig(context, _size(shapes, "hint.convs.0.weight", 1), hint_widths(shapes))


def adapter_config(shapes: Shapes) -> config.AdapterConfig:
    """Config of a T2I-Adapter; one that reads 256 or 768 channels takes 16 x 16 pixels per cell, others 8 x 8."""
    light = "levels.0.out.weight" in shapes
    channels = _size(shapes, "levels.0.widen.weight" if light else "conv_in.weight", 1)
    # channels = (1 or 3) * unshuffle^2: 64 and 192 for 8, 256 and 768 for 16.
    unshuffle = 16 if channels in (256, 768) else 8
    out = "levels.{}.out.weight" if light else "levels.{}.res.0.conv1.weight"
    return config.AdapterConfig(
        widths=tuple(_size(shapes, out.format(i), 0) for i in range(_count(shapes, out))),
        hint_channels=channels // unshuffle**2,
        unshuffle=unshuffle,
        res_blocks=_count(shapes, "levels.0.res.{}.conv1.weight"),
        kernel=1 if light else _size(shapes, "levels.0.res.0.conv2.weight", 3),
        light=light,
        conv_down=any(key.endswith(".down.conv.weight") for key in shapes),
    )


def lllite_config(shapes: Shapes) -> config.LLLiteConfig:
    """Config of a ControlNet-LLLite: a network for each name such as `layers.encoder_4_0_attn1_q`."""
    names = dict.fromkeys(key.split(".")[1] for key in shapes)
    return config.LLLiteConfig(tuple(_lllite_layer(shapes, name) for name in names))


def _lllite_layer(shapes: Shapes, name: str) -> config.LLLiteLayer:
    stack, block, depth, attention, layer = name.split("_")
    stem = f"layers.{name}"
    convs = range(_count(shapes, f"{stem}.hint.{{}}.weight"))
    hints = [f"{stem}.hint.{i}.weight" for i in convs]
    width, inner = (_size(shapes, f"{stem}.down.weight", axis) for axis in (1, 0))
    widths, kernels = (tuple(_size(shapes, key, axis) for key in hints) for axis in (0, 3))
    if min(width, inner, *widths, *kernels) < 1:
        raise CheckpointError(f"the weights of {stem} have an axis of length 0: the file is damaged, download it again")
    return config.LLLiteLayer(stack, int(block), int(depth), f"{attention}.{layer}", width, inner, widths, kernels)


def vae_config(shapes: Shapes) -> config.VAEConfig:
    """Config of an autoencoder. It works on patches of p x p pixels if it has 3 p^2 channels instead of 3."""
    levels = _count(shapes, "encoder.levels.{}.res.0.conv1.weight")
    pixels = _size(shapes, "decoder.conv_out.weight", 0)
    patch = isqrt(pixels // 3) if pixels % 3 == 0 else 1
    # 3 channels for each of p^2 pixels, where p^2 = pixels / 3 has to be a square.
    patched = patch > 1 and 3 * patch**2 == pixels
    return config.VAEConfig(
        image_channels=3 if patched else pixels,
        latent_channels=_size(shapes, "decoder.conv_in.weight", 1),
        widths=tuple(_size(shapes, f"encoder.levels.{i}.res.0.conv1.weight", 0) for i in range(levels)),
        res_blocks=_count(shapes, "encoder.levels.0.res.{}.conv1.weight"),
        patch=patch if patched else 1,
    )


def text_config(shapes: Shapes) -> config.TextConfig:
    """Config of a CLIP text transformer; heads are 64 wide in every released one."""
    vocab_size, width = (_size(shapes, "token_embedding.weight", axis) for axis in (0, 1))
    return config.TextConfig(
        width=width,
        layers=_count(shapes, "layers.{}.norm1.weight"),
        heads=max(1, width // HEAD_DIM),
        vocab_size=vocab_size,
        max_length=_size(shapes, "position_embedding.weight", 0),
        activation="gelu" if width in OPENCLIP_WIDTHS else "quick_gelu",
        projection=_size(shapes, "projection.weight", 0) if "projection.weight" in shapes else None,
    )
