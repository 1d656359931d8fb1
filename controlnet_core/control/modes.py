"""Control modes: how strongly each block is controlled, and in which half of the guidance.

Blocks are numbered i = 0 .. N, where N is the number of skip connections (12 in SD1.5) and i = N is
the middle block. All formulas give one weight per block.

==============  =====================  =========================================================
mode            acts on                weight of block i
==============  =====================  =========================================================
balanced        both halves            1
prompt          both halves            0.825^(N - i): the shallow blocks yield to the prompt
control         conditional half only  0.825^(N - i)
cfg-rw          conditional half only  H / h_i, H the latent's height, h_i the block's: the paper's
                                       resolution weighting, which is 64 / h_i at 512 pixels
cfg-rw-literal  conditional half only  64 / h_i at any size, as the paper words it
mid-only        both halves            0 for the skips, 1 for the middle
==============  =====================  =========================================================

Sources: Zhang et al. 2023, section 3.4 (cfg-rw); the authors' code ("guess mode", 0.825).
"""

from __future__ import annotations

from typing import Literal, get_args

from ..config import UNetConfig
from ..errors import ValueRangeError

Mode = Literal["balanced", "prompt", "control", "cfg-rw", "cfg-rw-literal", "mid-only"]
MODES: tuple[str, ...] = get_args(Mode)
SOFT = 0.825
CONDITIONAL_ONLY = frozenset({"control", "cfg-rw", "cfg-rw-literal"})


def mode_weights(mode: str, config: UNetConfig, latent_height: int) -> tuple[float, ...]:
    """The mode's weight of each skip, first to last, then of the middle. Raises ValueRangeError."""
    heights = block_heights(config, latent_height)
    last = len(heights) - 1
    if mode == "balanced":
        return (1.0,) * len(heights)
    if mode in ("prompt", "control"):
        return tuple(SOFT ** (last - i) for i in range(len(heights)))
    if mode == "cfg-rw":
        return tuple(latent_height / h for h in heights)
    if mode == "cfg-rw-literal":
        return tuple(64.0 / h for h in heights)
    if mode == "mid-only":
        return (0.0,) * last + (1.0,)
    raise ValueRangeError(f"control mode {mode!r} is unknown: choose one of {', '.join(MODES)}")


def block_heights(config: UNetConfig, latent_height: int) -> tuple[int, ...]:
    """Height of each skip's feature map, then of the middle's."""
    heights = [latent_height]
    height = latent_height
    for level in range(len(config.widths)):
        heights += [height] * config.res_blocks
        if level != len(config.widths) - 1:
            height = (height + 1) // 2
            heights.append(height)
    return (*heights, height)
