"""Configs that files carry: this package's metadata, and the JSON configs of a diffusers folder, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from typing import Any, get_args, get_type_hints

from ..config import ControlNetConfig, NoiseConfig, Parametrization, TextConfig, UNetConfig, VAEConfig
from ..errors import CheckpointError, CoreError
from .check_config import Config, check_config
from .files import parse_table

CONFIG_KEY = "controlnet_core.config"
"""Metadata entry with the config, as JSON with the name of its type."""

FAMILY_KEY = "controlnet_core.family"
"""Metadata entry with the name of the model, or of the base that a ControlNet is made for."""

OLD_NAMES = {"norm_skipped": "norms_stop_layer"}
"""Entries that files of earlier versions call otherwise."""

SAME_ARITHMETIC: Mapping[str, Any] = {
    "norm_num_groups": 32,
    "act_fn": "silu",
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "controlnet_conditioning_channel_order": "rgb",
    "shift_factor": None,
}
"""Entries of a diffusers config that change the arithmetic and not the shapes, with the values that run here."""


def config_to_json(config: Config) -> str:
    """A config as JSON, for the metadata of a file."""
    return json.dumps({"type": type(config).__name__, **asdict(config)}, separators=(",", ":"))


def config_from_json(text: str, kind: type[Config]) -> Config:
    """The config of this type that `config_to_json` wrote. Raises CheckpointError when it is none."""
    try:
        content = parse_table(text, "the text")
        if (name := content.pop("type")) != kind.__name__:
            raise ValueError(f"it is a {name}, the weights are those of a {kind.__name__}")
        config = _build(kind, content)
        check_config(config)
        return config
    except (CoreError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"its metadata entry {CONFIG_KEY} is no config of this version ({error}): "
            "save the file again, or update this package"
        ) from error


def _build(kind: type, content: Mapping[str, Any]) -> Any:
    hints, content = get_type_hints(kind), {OLD_NAMES.get(name, name): value for name, value in content.items()}
    if extra := sorted(set(content) - hints.keys()):
        raise ValueError(f"unknown entries {', '.join(extra)}")
    return kind(**{name: _value(hints[name], value) for name, value in content.items()})


def _value(hint: Any, value: Any) -> Any:
    kinds = [kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)]
    if kinds and value is not None:
        return _build(kinds[0], value)  # type: ignore[arg-type]
    # JSON has no tuples, and a frozen config with a list in it could not be hashed.
    return tuple(value) if isinstance(value, list) else value


# --------------------------------------------------------------------------------- diffusers' configs


def check_arithmetic(entries: Mapping[str, Any]) -> None:
    """Raise CheckpointError when a diffusers config asks for arithmetic that this package does not have."""
    for name, expected in SAME_ARITHMETIC.items():
        if (found := entries.get(name, expected)) != expected:
            raise CheckpointError(f"its config says {name} = {found!r}, this version runs {expected!r} only")


def refine_unet(config: UNetConfig, entries: Mapping[str, Any]) -> UNetConfig:
    """The config of a UNet with the number of heads from its diffusers config."""
    check_arithmetic(entries)
    # Despite its name, `attention_head_dim` is the number of heads: one for all levels, or one for each level.
    heads = entries.get("num_attention_heads") or entries.get("attention_head_dim")
    if isinstance(heads, int):
        return replace(config, num_heads=heads, head_dim=None)
    if not isinstance(heads, list) or len(heads) != len(config.widths):
        return config
    if not all(type(count) is int and count > 0 for count in heads):
        raise CheckpointError(f"its config says that it has {heads} attention heads, expected positive numbers")
    if len(set(heads)) == 1:
        return replace(config, num_heads=heads[0], head_dim=None)
    # SD2 and SDXL have more heads at wider levels, so that all heads are equally wide.
    dims = {width // count for width, count in zip(config.widths, heads, strict=True)}
    if len(dims) != 1:
        raise CheckpointError(f"its heads are {heads} for widths {list(config.widths)}, expected equal ones")
    return replace(config, head_dim=dims.pop())


def refine_vae(config: VAEConfig, entries: Mapping[str, Any]) -> VAEConfig:
    """The config of an autoencoder with the scale of its latents from its diffusers config."""
    check_arithmetic(entries)
    mean, std = (tuple(entries.get(f"latents_{name}") or ()) for name in ("mean", "std"))
    factor = float(entries.get("scaling_factor", config.scaling_factor))
    if not mean or not std:
        return replace(config, scaling_factor=factor)
    return replace(config, scaling_factor=factor, latent_mean=mean, latent_std=std)


def refine_text(config: TextConfig, entries: Mapping[str, Any]) -> TextConfig:
    """The config of a text encoder with heads and activation from its transformers config."""
    activation = entries.get("hidden_act", config.activation)
    if activation not in ("quick_gelu", "gelu"):
        raise CheckpointError(f"its text encoder uses {activation}, expected quick_gelu or gelu")
    return replace(config, heads=int(entries.get("num_attention_heads", config.heads)), activation=activation)


def unet_entries(config: UNetConfig) -> dict[str, Any]:
    """The diffusers config of a UNet; the reverse of `refine_unet`. Raises CheckpointError for SDXL's."""
    if config.label_dim is not None or set(config.transformer_depth) > {0, 1} or config.middle_depth != 1:
        raise CheckpointError("a diffusers folder of this shape cannot be written: save a single file instead")
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in config.transformer_depth]
    heads: Any = config.num_heads
    if config.head_dim is not None:
        heads = [config.heads(width) for width in config.widths]
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.res_blocks,
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "cross_attention_dim": config.context_dim,
        "attention_head_dim": heads,
        "use_linear_projection": config.linear_projection,
    }


def controlnet_entries(config: ControlNetConfig) -> dict[str, Any]:
    """The diffusers config of a ControlNet. Raises CheckpointError for a Union and for SDXL's."""
    if config.union is not None:
        raise CheckpointError("a diffusers folder of a ControlNet Union cannot be written: save a single file instead")
    unet = unet_entries(config.unet)
    return {
        **{name: value for name, value in unet.items() if name not in ("out_channels", "up_block_types")},
        "_class_name": "ControlNetModel",
        "conditioning_channels": config.hint_channels,
        "conditioning_embedding_out_channels": list(config.hint_widths),
        "global_pool_conditions": config.global_pool,
    }


def vae_entries(config: VAEConfig) -> dict[str, Any]:
    """The diffusers config of an autoencoder. Raises CheckpointError for one that works on patches."""
    if config.patch != 1:
        raise CheckpointError("a diffusers folder has no patches of pixels: save a single file instead")
    levels = len(config.widths)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.res_blocks,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": config.scaling_factor,
    }


def training(entries: Mapping[str, Any]) -> tuple[Parametrization, NoiseConfig]:
    """What the UNet predicts and its noise levels, from the config of a diffusers scheduler.

    Raises CheckpointError for a prediction or a schedule that this package does not have.
    """
    kind = entries.get("prediction_type", "epsilon")
    table: dict[str, Parametrization] = {"epsilon": "eps", "v_prediction": "v"}
    if kind not in table:
        raise CheckpointError(f"its scheduler predicts {kind!r}, expected {' or '.join(table)}")
    if "EDM" not in str(entries.get("_class_name", "")):
        return table[kind], NoiseConfig(zero_terminal_snr=bool(entries.get("rescale_betas_zero_snr", False)))
    levels = {name: float(entries[name]) for name in ("sigma_min", "sigma_max", "sigma_data") if name in entries}
    noise = replace(NoiseConfig("edm", sigma_max=80.0, sigma_data=0.5), **levels)
    return "edm" if kind == "epsilon" else "v", noise
