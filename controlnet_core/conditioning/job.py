"""What is to be sampled: model, conditions and size. Everything but the noise."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..config import ModelConfig
from ..control.unit import ControlUnit
from ..diffusion.schedule import NoiseSchedule
from ..models.unet import UNet
from .condition import Condition, fingerprint


@dataclass(frozen=True, eq=False)
class Job:
    """A model, the two halves of its guidance, and the size of the latent.

    negative: empty without guidance (cfg 1). shape: (B, 4, h, w). sigmas: the noise levels that are known before the
    run; others are prepared when they are met.
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
        """All conditions, those of the positive half first."""
        return (*self.positive, *self.negative)

    @property
    def units(self) -> tuple[ControlUnit, ...]:
        """All control units, each once."""
        return tuple(dict.fromkeys(unit for condition in self.conditions for unit in condition.units))

    def with_conditions(self, change: Callable[[Condition], Condition], **more: object) -> Job:
        """A copy in which each condition is replaced by `change(condition)`, and other fields by those in `more`."""
        halves = {name: tuple(change(c) for c in getattr(self, name)) for name in ("positive", "negative")}
        return replace(self, **halves, **more)  # type: ignore[arg-type]

    def key(self) -> tuple[tuple[Hashable, ...], Iterable[object]]:
        """A key that is equal for jobs that are prepared alike, and the objects that it means by their identity.

        Neither seed nor latent is part of it, nor the sigmas, which are prepared when they are met.
        """
        # By identity, because a model's weights are too large to compare. Who keeps a key holds on to these objects.
        halves = tuple(tuple(fingerprint(c) for c in half) for half in (self.positive, self.negative))
        return (id(self.unet), self.config, self.schedule, halves, tuple(self.shape)), (self.unet, *self.units)
