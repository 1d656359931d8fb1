"""Where a net acts in one run, and what it is given while it is bound (see `models.control`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from ..config import UNetConfig
from ..control.hint import check_hint_channels, fit_hint, repeat_to
from ..control.unit import ControlUnit
from ..diffusion.schedule import NoiseSchedule
from ..errors import ShapeError
from ..models.control import Embed
from .backend import Backend
from .condition import Area
from .projections import Projections


class UnitSeat(ABC):
    """What a seat says of its unit, in whatever home."""

    unit: ControlUnit

    @property
    def pool(self) -> bool:
        """Whether the unit wants residuals averaged over the picture."""
        return self.unit.pool

    @property
    def kinds(self) -> tuple[str, ...]:
        """What each hint shows."""
        return tuple(hint.kind for hint in self.unit.hints)

    def hint(self, channels: int) -> Tensor:
        """The unit's only picture, (b, channels, 8h, 8w). Raises ShapeError when there are several."""
        hints = self.hints(channels)
        if len(hints) > 1:
            raise ShapeError(
                f"{self.unit.name or 'this ControlNet'} reads one picture and got {len(hints)}: "
                "make a unit for each of them, or load a union ControlNet"
            )
        return hints[0]

    @abstractmethod
    def hints(self, channels: int) -> list[Tensor]:
        """All pictures of the unit, at the size, on the device and in the dtype that the net reads."""
        ...


@dataclass(frozen=True, eq=False)
class Seat(UnitSeat):
    """A unit's place in a batch.

    latent: (B, h, w) of the whole latent; area: the rectangle of it that the rows show, to whose size the whole
    hint and the whole mask are brought, as the host does. context: (rows, tokens, context_dim), label: (rows,
    label_dim). sigmas: those that are known before the run.
    factor: pixels per latent cell. base: the UNet that is controlled.
    """

    unit: ControlUnit
    latent: tuple[int, int, int]
    area: Area | None
    context: Tensor
    label: Tensor | None
    schedule: NoiseSchedule
    sigmas: tuple[float, ...]
    factor: int
    backend: Backend
    base: UNetConfig

    @property
    def rows(self) -> int:
        """Rows of x that the net will see."""
        return self.context.shape[0]

    @property
    def distinct(self) -> int:
        """Rows that differ: conditions read the same latents."""
        return self.latent[0]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of x."""
        return self.latent[1:] if self.area is None else (self.area.height, self.area.width)

    def hints(self, channels: int) -> list[Tensor]:
        """All pictures of the unit, at the size, on the device and in the layout that the net reads."""
        return [self._fitted(hint.picture, channels) for hint in self.unit.hints]

    def _fitted(self, picture: Tensor, channels: int) -> Tensor:
        height, width = (side * self.factor for side in self.size)
        fitted = fit_hint(check_hint_channels(picture, channels), height, width, self.unit.fit)
        fitted = fitted.to(self.backend.runtime.device, self.backend.runtime.dtype)
        return self.backend.layout(repeat_to(fitted, self.latent[0], "hint"))

    def spread(self, x: Tensor) -> Tensor:
        """(b, ...) -> (1 or rows, ...)."""
        return repeat_to(x, self.rows, "hint")

    def project(self, net: nn.Module, embed: Embed | None = None) -> Projections:
        """Text and timesteps of the run, projected for a net."""
        projections = Projections(net, self.schedule, self.context, self.label, embed)
        projections.announce(self.sigmas)
        return projections
