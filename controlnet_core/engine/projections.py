"""A net's timesteps and text, projected once instead of at every evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.schedule import NoiseSchedule
from ..models.control import Embed
from ..models.unet import Projected, Shifts, Stack


@dataclass(eq=False)
class Projections:
    """A net's timestep projections by sigma, and its keys and values of the text.

    net: a UNet, or a net with the same parts. embed: in place of `net.embed`.
    """

    net: nn.Module
    schedule: NoiseSchedule
    context: Tensor
    label: Tensor | None
    embed: Embed | None = None
    shifts: dict[float, tuple[Shifts, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = (name for name in ("encoder", "middle", "decoder") if hasattr(self.net, name))
        self.parts: list[Any] = [getattr(self.net, name) for name in names]
        self.kv = [part.text_kv(self.context) for part in self.parts]

    def announce(self, sigmas: Iterable[float]) -> None:
        """Project the timesteps of these sigmas, all at once."""
        new = [s for s in dict.fromkeys(sigmas) if s not in self.shifts]
        if not new:
            return
        embed = self.embed or self.net.embed
        t = self.schedule.timestep(torch.tensor(new)).to(self.context.device)
        if self.label is not None:
            for sigma, step in zip(new, t, strict=True):
                emb = embed(step.expand(self.label.shape[0]), self.label)
                self.shifts[sigma] = tuple(part.time_shifts(emb) for part in self.parts)
            return
        emb = embed(t, None)
        projected = [part.time_shifts(emb) for part in self.parts]
        for row, sigma in enumerate(new):
            self.shifts[sigma] = tuple(
                tuple(None if s is None else s[row : row + 1] for s in part) for part in projected
            )

    def at(self, sigma: float) -> Stack:
        """What the net needs besides x at this sigma."""
        self.announce([sigma])
        parts = (Projected(s, kv) for s, kv in zip(self.shifts[sigma], self.kv, strict=True))
        return Stack(*parts)
