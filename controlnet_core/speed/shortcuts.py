"""Shortcuts: work that a run may skip, at a price in exactness. Without them every evaluation is computed in full.

reuse_every k          a ControlNet runs at every k-th evaluation
reuse_tolerance e      a ControlNet runs when the scaled latent has moved by more than e (relative L2 norm) since its
                       last run: often while the layout forms, rarely during the details
encoder_every k        the UNet's encoder and all control run at every k-th evaluation, the decoder at each: the
                       encoder's features change little between neighbours (Li et al. 2023, "Faster Diffusion")
deep_every k           the UNet's lower levels, and the ControlNets, run at every k-th evaluation, its top level at
                       each (Ma et al. 2024, "DeepCache")
guidance_start, _end   outside this window of the timestep axis the negative half is not computed (Kynkaanniemi et al.
                       2024, "Applying guidance in a limited interval")

Skipped values are continued along a line, see `speed.forecast`. The first two evaluations define the line and are
always computed, and k grows in stages (`STAGES`): an early error becomes another image, a late one is a detail.

The user judges the error: `controlnet run --measure` and `benchmarks/shortcuts.py` print it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ValueRangeError

STAGES = ((0.3, 2), (0.5, 3))
"""(position on the timestep axis, maximum number of evaluations between two computed ones until there)."""


@dataclass(frozen=True)
class Shortcuts:
    """What a run may skip. careful: each of `STAGES` has one evaluation less, so that the layout is computed in full.

    Raises ValueRangeError for values out of range.
    """

    reuse_every: int = 1
    reuse_tolerance: float = 0.0
    encoder_every: int = 1
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    deep_every: int = 1
    careful: bool = False

    def __post_init__(self) -> None:
        for name in ("reuse_every", "encoder_every", "deep_every"):
            if getattr(self, name) < 1:
                raise ValueRangeError(
                    f"{name} is {getattr(self, name)}: use 1 for every evaluation, 2 for every second one, and so on"
                )
        if self.careful and max(self.reuse_every, self.encoder_every, self.deep_every) == 1:
            raise ValueRangeError(
                "careful has no effect alone: also set reuse_every (--reuse), deep_every or encoder_every to 2 or more"
            )
        if self.encoder_every > 1 and self.deep_every > 1:
            raise ValueRangeError("encoder_every and deep_every skip the same blocks: set only one of them")
        if not 0.0 <= self.reuse_tolerance < float("inf"):  # also refuses nan
            raise ValueRangeError(f"reuse_tolerance is {self.reuse_tolerance}: use 0 (off) or more, such as 0.1")
        if not 0.0 <= self.guidance_start <= self.guidance_end <= 1.0:
            raise ValueRangeError(
                f"the guidance window is {self.guidance_start} to {self.guidance_end}: use two positions between 0 "
                "(pure noise) and 1 (finished image), the smaller one first"
            )

    @property
    def continues_nets(self) -> bool:
        """Whether a net inside its window is skipped in some evaluations."""
        return self.reuse_every > 1 or self.reuse_tolerance > 0.0 or self.deep_every > 1

    @property
    def shortens_unet(self) -> bool:
        """Whether a part of the UNet is skipped in some evaluations."""
        return self.deep_every > 1 or self.encoder_every > 1

    @property
    def limits_guidance(self) -> bool:
        """Whether the negative half is skipped anywhere."""
        return (self.guidance_start, self.guidance_end) != (0.0, 1.0)

    @property
    def words(self) -> str:
        """For reports, such as "nets every 2 evaluations, guidance from 10 % to 80 %"."""
        every = {"nets": self.reuse_every, "encoder": self.encoder_every, "lower levels": self.deep_every}
        careful = ", carefully" if self.careful else ""
        parts = [f"{what} once in {count} evaluations{careful}" for what, count in every.items() if count > 1]
        if self.reuse_tolerance > 0.0:
            parts.append(f"nets when the latent has moved by {self.reuse_tolerance:.2%}")
        if self.limits_guidance:
            parts.append(f"guidance from {self.guidance_start:.0%} to {self.guidance_end:.0%}")
        return ", ".join(parts) or "nothing is skipped"


EXACT = Shortcuts()


@dataclass(eq=False)
class EvaluationClock:
    """Counts the evaluations of a run.

    ends: sigmas at which `STAGES` end. limit: in this evaluation, the maximum number of evaluations between two
    computed ones.
    """

    shortcuts: Shortcuts = EXACT
    ends: tuple[float, ...] = ()
    now: int = 0
    limit: float = math.inf

    def begin(self, sigma: float) -> None:
        """An evaluation at this noise level begins."""
        self.now += 1
        limits = (limit for end, (_, limit) in zip(self.ends, STAGES, strict=False) if sigma > end)
        self.limit = next(limits, math.inf) - self.shortcuts.careful


def stage_ends(percent_to_sigma: Callable[[float], Any]) -> tuple[float, ...]:
    """The sigmas at which `STAGES` end. percent_to_sigma: position on the timestep axis -> sigma."""
    return tuple(float(percent_to_sigma(end)) for end, _ in STAGES)
