"""Where a net acts in the editor, and what it is given while it is bound (see `models.control`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...controlnet_core.config import UNetConfig
from ...controlnet_core.control.hint import check_hint_channels, fit_hint
from ...controlnet_core.control.unit import ControlUnit
from ...controlnet_core.engine.projections import Projections
from ...controlnet_core.engine.seat import UnitSeat
from ...controlnet_core.models.control import Embed
from ...controlnet_core.models.transfer import sent

FACTOR = 8
"""Pixels per latent cell."""


class HostSchedule:
    """The model's timesteps in float32, whatever kind of noise levels it has. device: where they are needed."""

    def __init__(self, sampling: Any, device: torch.device) -> None:
        self.sampling, self.device = sampling, device

    def timestep(self, sigma: Tensor) -> Tensor:
        """Sigmas -> timesteps, float32, of the same shape, on the device: from there nothing is to be brought back."""
        return self.sampling.timestep(sent(sigma, self.device)).float()

    def position(self, sigma: Tensor) -> float:
        """Where a sigma lies on the timestep axis, from 0 (pure noise) to 1."""
        last = len(self.sampling.sigmas) - 1 if hasattr(self.sampling, "sigmas") else 999
        return 1.0 - float(self.timestep(sigma).flatten()[0]) / last


@dataclass(frozen=True, eq=False)
class HostSeat(UnitSeat):
    """A unit's place in a batch of the editor.

    x: (all rows, C, h, w). index: the rows that the net sees; pictures: rows per conditioning. context,
    label: of the seen rows, on the device, in the net's dtype.
    """

    unit: ControlUnit
    base: UNetConfig
    x: Tensor
    index: list[int]
    pictures: int
    context: Tensor
    label: Tensor | None
    schedule: HostSchedule
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        """Rows of x that the net will see."""
        return len(self.index)

    @property
    def distinct(self) -> int:
        """All of them: the editor may put different rectangles of the picture into one batch."""
        return self.rows

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of x."""
        return self.x.shape[-2], self.x.shape[-1]

    def hints(self, channels: int) -> list[Tensor]:
        """All pictures of the unit, at the size, on the device and in the dtype that the net reads."""
        height, width = (side * FACTOR for side in self.size)
        return [
            fit_hint(check_hint_channels(hint.picture, channels), height, width, self.unit.fit).to(
                self.x.device, self.dtype
            )
            for hint in self.unit.hints
        ]

    def spread(self, x: Tensor) -> Tensor:
        """(b, ...) -> one for each row: hints are dealt out to the pictures of a batch in turn, as natively."""
        if x.shape[0] == 1:
            return x
        return x[[row % self.pictures % x.shape[0] for row in self.index]]

    def project(self, net: nn.Module, embed: Embed | None = None) -> Projections:
        """Text and timesteps, projected for a net, the latter for each row, as natively."""
        schedule: Any = self.schedule
        return Projections(net, schedule, self.context, self.label, embed, per_row=True)
