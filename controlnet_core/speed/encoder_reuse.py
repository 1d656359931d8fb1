"""Run the UNet's encoder and all control in every k-th evaluation only (Li et al. 2023, "Faster Diffusion")."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..denoise import ControlledUNet
from ..prepare import BatchInputs
from .context import RunContext
from .forecast import Forecast


class EncoderReuse:
    """Surrounds `ControlledUNet.features`. forecasts: by batch of conditions and active units."""

    def __init__(self, inner: Any, context: RunContext) -> None:
        self.inner, self.context = inner, context
        self.forecasts: dict[object, Forecast] = {}

    def __call__(
        self, model: ControlledUNet, rows: Tensor, inputs: BatchInputs, count: int | None = None
    ) -> list[Tensor]:
        """Skips and middle with all control, computed or continued."""
        clock = self.context.clock
        forecast = self.forecasts.setdefault(inputs.key, clock.forecast_encoder())
        due = forecast.is_due(clock.now, clock.limit)
        return list(forecast.next(clock.now, (lambda: self.inner(model, rows, inputs, count)) if due else None))


def wrap(denoiser: Any, context: RunContext) -> None:
    """Reuse the encoder's features."""
    denoiser.unet.features = EncoderReuse(denoiser.unet.features, context)
