"""Control modes: how strongly each block is controlled, and in which half of the guidance.

Blocks are numbered i = 0 .. N, where N is the number of skip connections (12 in SD1.5) and i = N is
the middle block. All formulas give one weight per block.

==============  =====================  =========================================================
mode            acts on                weight of block i
==============  =====================  =========================================================
balanced        both halves            1
prompt          both halves            0.825^(N - i): the prompt decides in the shallow blocks
control         conditional half only  0.825^(N - i)
cfg-rw          conditional half only  H / h_i, H the latent's height, h_i the block's: the paper's
                                       resolution weighting, which is 64 / h_i at 512 pixels
cfg-rw-literal  conditional half only  64 / h_i at any size, as the paper states it
mid-only        both halves            0 for the skips, 1 for the middle
==============  =====================  =========================================================

Sources: Zhang et al. 2023, section 3.4 (cfg-rw); the authors' code ("guess mode", 0.825).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import ValueRangeError

if TYPE_CHECKING:
    from ..config import UNetConfig

SOFT = 0.825
CONDITIONAL_ONLY = frozenset({"control", "cfg-rw", "cfg-rw-literal"})

FORMULAS: Mapping[str, Callable[[int, int, int, int], float]] = MappingProxyType(
    {
        "balanced": lambda i, last, height, h: 1.0,
        "prompt": lambda i, last, height, h: SOFT ** (last - i),
        "control": lambda i, last, height, h: SOFT ** (last - i),
        "cfg-rw": lambda i, last, height, h: height / h,
        "cfg-rw-literal": lambda i, last, height, h: 64.0 / h,
        "mid-only": lambda i, last, height, h: float(i == last),
    }
)
"""(i, N, the latent's height, the block's height) -> weight."""
MODES: tuple[str, ...] = tuple(FORMULAS)


def mode_weights(mode: str, config: UNetConfig, latent_height: int) -> tuple[float, ...]:
    """The weight of each skip, first to last, and then of the middle. Raises ValueRangeError for an unknown mode."""
    if mode not in FORMULAS:
        raise ValueRangeError(f"control mode {mode!r} is unknown: choose one of {', '.join(MODES)}")
    heights = block_heights(config, latent_height)
    return tuple(FORMULAS[mode](i, len(heights) - 1, latent_height, h) for i, h in enumerate(heights))


def block_heights(config: UNetConfig, latent_height: int) -> tuple[int, ...]:
    """Height of the feature map at each skip, and then of the middle's."""
    heights = [latent_height]
    height = latent_height
    for level in range(len(config.widths)):
        heights += [height] * config.res_blocks
        if level != len(config.widths) - 1:
            height = (height + 1) // 2  # a strided convolution with padding 1 rounds up
            heights.append(height)
    return (*heights, height)


def block_names(count: int) -> tuple[str, ...]:
    """Names of that many blocks: ("0", "1", ..., "mid")."""
    return (*(str(i) for i in range(count - 1)), "mid")
