"""What is to be sampled, all but the noise."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from ..config import ModelConfig
from ..control.unit import ControlUnit
from ..diffusion.schedule import NoiseSchedule
from ..models.unet import UNet
from .condition import Condition, identity


@dataclass(frozen=True, eq=False)
class Job:
    """A model, the halves of its guidance, and the size of what is made.

    positive, negative: no negative means no guidance (cfg 1). shape: (B, 4, h, w) of the latents. sigmas: those
    that are known before the run; others are prepared when they are met.
    """

    unet: UNet
    config: ModelConfig
    schedule: NoiseSchedule
    positive: Sequence[Condition]
    negative: Sequence[Condition]
    shape: tuple[int, ...]
    sigmas: Sequence[float]

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All conditions; those of the positive half come first."""
        return (*self.positive, *self.negative)

    @property
    def units(self) -> tuple[ControlUnit, ...]:
        """All units, each once."""
        return tuple(dict.fromkeys(unit for condition in self.conditions for unit in condition.units))

    def key(self) -> tuple[tuple[Hashable, ...], Iterable[object]]:
        """What is equal for jobs that are prepared alike, and the model and units that it means (see `Memo.once`).

        The same texts, masks, units, sizes and weights are the same job: neither sigmas, which are prepared when they
        are met, nor seed or latent are part of it.
        """
        halves = tuple(tuple(identity(c) for c in half) for half in (self.positive, self.negative))
        return (id(self.unet), self.config, self.schedule, halves, tuple(self.shape)), (self.unet, *self.units)
