"""Checks of a model's config before anything is built from it.

A config comes from a file. A value of a wrong type would be an error in the middle of a run, a number of heads that
does not divide a width too, and a billion blocks would take hours to build.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from functools import cache
from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..config import (
    AdapterConfig,
    ControlNetConfig,
    ControlNetXSConfig,
    CtrLoraConfig,
    DerivedConfig,
    LLLiteConfig,
    LLLiteLayer,
    ModelConfig,
    SparseCtrlConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from ..errors import CheckpointError
from ..limits import CONFIG_NUMBER, MODEL_BLOCKS, SMALL_NETS

Config = (
    ModelConfig
    | ControlNetConfig
    | ControlNetXSConfig
    | CtrLoraConfig
    | AdapterConfig
    | DerivedConfig
    | LLLiteConfig
    | SparseCtrlConfig
    | UNetConfig
    | VAEConfig
    | TextConfig
)
MAY_BE_ZERO = frozenset(
    {"middle_depth", "transformer_depth", "context_dim", "padding", "sigma_min", "latent_mean", "time_mix"}
)
MAY_BE_NEGATIVE = frozenset({"middle_depth", "transformer_depth", "stop_layer", "latent_mean"})
"""Entries that are not positive in every model. A depth of -1 is `EMPTY`."""


def check_config(config: Config) -> None:
    """Raise CheckpointError for a value that no model can have, LimitError for a model that is too large."""
    _check_entries(config)
    MODEL_BLOCKS.check(count_blocks(config), "its model")
    if isinstance(config, ControlNetXSConfig):
        _check_exchange(config)
    for part in (config, *(getattr(config, name, None) for name in ("unet", "text", "text2"))):
        if isinstance(part, UNetConfig):
            depths = (*part.transformer_depth, part.middle_depth)
            for width, depth in zip((*part.widths, part.widths[-1]), depths, strict=True):
                if depth > 0:
                    _check_heads(width, part.heads(width))
        elif isinstance(part, TextConfig):
            _check_heads(part.width, part.heads)


@cache
def _annotations(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_entries(config: Any) -> None:
    for name, hint in _annotations(type(config)).items():
        value = getattr(config, name)
        # The length first, because each entry is checked by itself below.
        if isinstance(value, tuple):
            limit = SMALL_NETS if hint == tuple[LLLiteLayer, ...] else MODEL_BLOCKS
            limit.check(len(value), f"the entry {name} of its config")
        if not _fits(hint, value):
            raise CheckpointError(f"its config says {name} = {value!r}, expected {getattr(hint, '__name__', hint)}")
        if is_dataclass(value):
            _check_entries(value)
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                CONFIG_NUMBER.check(abs(number), f"the entry {name} of its config")
                zero = number == 0 and name in MAY_BE_ZERO
                if not isfinite(number) or not (number > 0 or zero or name in MAY_BE_NEGATIVE):
                    raise CheckpointError(f"its config says {name} = {number}, expected a positive number")


def _fits(hint: Any, value: object) -> bool:
    """Whether a value is of an annotated type; True is no number here."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        return value in choices
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(choices[0], one) for one in value)
    if choices:  # a union
        return any(_fits(choice, value) for choice in choices)
    # Not isinstance: True is an int, and no number of channels.
    return type(value) in ((int, float) if hint is float else (hint,))


def _check_heads(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise CheckpointError(f"its config divides the width {width} among {heads} attention heads: it is damaged")


def _check_exchange(config: ControlNetXSConfig) -> None:
    """Raise CheckpointError for a ControlNet-XS whose parts do not fit each other."""
    for width, heads in zip(config.widths, config.heads, strict=True):
        _check_heads(width, heads)
    if config.time_mix is not None and config.time_mix > 1.0:
        raise CheckpointError(f"its config says time_embedding_mix = {config.time_mix}, expected 0 to 1")


def count_blocks(config: Config) -> int:
    """How many residual blocks and transformer blocks the largest part of a model has."""
    match config:
        case ModelConfig():
            return max(count_blocks(part) for part in (config.unet, config.vae, config.text, config.text2) if part)
        case ControlNetConfig():
            return count_blocks(config.unet) + len(config.hint_widths) + (config.union.layers if config.union else 0)
        case ControlNetXSConfig():
            per_level = len(config.widths) + sum(max(depth, 0) for depth in config.transformer_depth)
            return config.res_blocks * per_level + len(config.hint_widths) + max(config.middle_depth, 0)
        case CtrLoraConfig():
            return count_blocks(config.unet)
        case SparseCtrlConfig():
            motion = len(config.unet.widths) * config.unet.res_blocks * config.motion_depth
            return count_blocks(config.unet) + len(config.hint_widths) + motion
        case UNetConfig():  # the decoder has one residual block per level more than the encoder
            per_level = len(config.widths) + sum(max(depth, 0) for depth in config.transformer_depth)
            return (2 * config.res_blocks + 1) * per_level + max(config.middle_depth, 0)
        case AdapterConfig() | VAEConfig():
            return (2 * config.res_blocks + 1) * len(config.widths)
        case DerivedConfig():
            return len(config.hint_widths)
        case LLLiteConfig():
            return len({(layer.stack, layer.block, layer.depth) for layer in config.layers})
    return config.layers
