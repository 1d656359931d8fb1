"""Block weights: a factor for each residual of a net, given as numbers, by resolution, or by a named formula.

Blocks are numbered i = 0 .. N; N is the middle (12 in SD1.5, 9 in SDXL). Presets:

==============  ================================================================  =======================
preset          weight of block i                                                  SDXL, first / middle
==============  ================================================================  =======================
soft            0.825^(N - i): the middle is always 1 (Advanced-ControlNet)        0.177 / 1
soft-webui      0.825^(12 - i): SD1.5's numbers, the last ones missing where a     0.0994 / 0.5615
                net has fewer blocks (sd-webui-controlnet)
soft-diffusers  10^(i / N - 1): evenly spaced exponents (diffusers' guess mode)    0.1 / 1
linear          a + (b - a) i / N                                                  a / b
ease-in         a + (b - a) (i / N)^2                                              a / b
ease-out        a + (b - a) (1 - (1 - i / N)^2)                                    a / b
ease-in-out     a + (b - a) (3 (i / N)^2 - 2 (i / N)^3)                            a / b
==============  ================================================================  =======================

In SD1.5 soft and soft-webui are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import ValueRangeError
from .easing import ease
from .modes import SOFT, block_heights

if TYPE_CHECKING:
    from ..config import UNetConfig

SD15_LAST = 12
"""The number i of SD1.5's middle block."""

Formula = Callable[[int, int, float, float], float]
"""(i, N, a, b) -> weight."""


def _eased(easing: str, i: int, last: int, a: float, b: float) -> float:
    return ease(easing, a, b, i / last)


PRESETS: Mapping[str, Formula] = MappingProxyType(
    {
        "soft": lambda i, last, a, b: SOFT ** (last - i),
        "soft-webui": lambda i, last, a, b: SOFT ** (SD15_LAST - i),
        "soft-diffusers": lambda i, last, a, b: 10.0 ** (i / last - 1.0),
        **{name: partial(_eased, name) for name in ("linear", "ease-in", "ease-out", "ease-in-out")},
    }
)


@dataclass(frozen=True)
class BlockWeights:
    """Block weights for a net of any shape; `resolve` gives the numbers for one net.

    levels: a factor for the skips of each resolution, the highest first. middle: factor of the middle block.
    custom: used instead if not empty: a factor for each block, skips first to last and then the middle.
    preset: used instead if not empty: a formula of `PRESETS`. first, last: a and b in the formulas that have them.
    Raises ValueRangeError for an unknown preset, and for a number that is not finite.
    """

    levels: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    middle: float = 1.0
    custom: tuple[float, ...] = ()
    preset: str = ""
    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        if self.preset and self.preset not in PRESETS:
            raise ValueRangeError(f"block weights {self.preset!r} are unknown: choose one of {', '.join(PRESETS)}")
        if not self.levels:
            raise ValueRangeError("there is no block weight for any level: give at least one")
        for number in (*self.levels, self.middle, *self.custom, self.first, self.last):
            if not isfinite(number):
                raise ValueRangeError(f"a block weight is {number}: give finite numbers")

    def resolve(self, config: UNetConfig) -> tuple[float, ...]:
        """Compute a factor for each skip and the middle of a net on this base (13 in SD1.5).

        Raises ValueRangeError if `custom` has another count.
        """
        count = len(block_heights(config, 1))
        if self.custom:
            return check_count(self.custom, count)
        if self.preset:
            formula = PRESETS[self.preset]
            return tuple(formula(i, count - 1, self.first, self.last) for i in range(count))
        count_levels = len(config.widths)
        # Nets with more resolutions than `levels` repeat the last factor.
        levels = (*self.levels, *self.levels[-1:] * count_levels)[:count_levels]
        found = [levels[0]]
        for level, factor in enumerate(levels):
            found += [factor] * config.res_blocks
            found += levels[level + 1 : level + 2]  # the skip after a downsampling belongs to the next resolution
        return (*found, self.middle)


def check_count(weights: tuple[float, ...], count: int) -> tuple[float, ...]:
    """Return the weights if there are `count` of them. Raises ValueRangeError otherwise."""
    if len(weights) != count:
        raise ValueRangeError(
            f"{len(weights)} block weights came, this net has {count} blocks ({count - 1} skips and the middle): "
            f"give {count} weights"
        )
    return weights
