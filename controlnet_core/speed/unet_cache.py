"""Run the UNet's lower levels in every k-th evaluation only (Ma et al. 2024, "DeepCache")."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..denoise import ControlledUNet
from ..prepare import BatchInputs
from .context import RunContext
from .forecast import Forecast


class UNetCache:
    """Replaces `ControlledUNet.decode`: what the lower levels pass to the top level is computed or continued."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.forecasts: dict[object, Forecast] = {}

    def __call__(self, model: ControlledUNet, rows: Tensor, inputs: BatchInputs) -> Tensor:
        """The decoder's output, (rows, widths[0], h, w)."""
        clock, decoder, blocks = self.context.clock, model.unet.decoder, inputs.blocks.decoder
        assert blocks is not None  # only a ControlNet has no decoder
        forecast = self.forecasts.setdefault(inputs.key, clock.forecast_lower_levels())
        if not forecast.is_due(clock.now, clock.limit):
            # The top level reads the first skips only, so that the encoder stops there and no net runs.
            skips = model.features(model, rows, inputs, decoder.top_blocks)
            return decoder.top(next(forecast.next(clock.now, None)), skips, blocks)
        *skips, middle = model.features(model, rows, inputs, None)
        h = decoder.lower(middle, skips, blocks)
        forecast.next(clock.now, lambda: [h])
        return decoder.top(h, skips, blocks)


def wrap(denoiser: Any, context: RunContext) -> None:
    """Cache the lower levels."""
    denoiser.unet.decode = UNetCache(context)
