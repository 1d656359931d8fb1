"""What a net of ours holds besides its weights, counted before it runs, for the editor's memory manager."""

from __future__ import annotations

from ...controlnet_core.config import ControlNetConfig
from ...controlnet_core.engine.footprint import (
    PlainForms,
    encoder_places,
    hint_values,
    net_values,
    text_values,
    time_values,
)

TOKENS = 77
EVALUATIONS = 30
"""Of a run, about: each leaves its projected timesteps."""


def activations(config: ControlNetConfig, size: tuple[int, int], rows: int, pictures: int, factor: int) -> int:
    """Numbers that are alive at a ControlNet's peak, when its last residual joins the others.

    size: (h, w) of the latent; rows: those of x that it sees; pictures: hints of different content; factor: pixels
    per cell.
    """
    unet = config.unet
    places = encoder_places(unet, rows, size)
    residuals = sum(place.values for place in places) + places[-1].values
    kept = (1 if pictures == 1 else rows) * size[0] * size[1] * unet.widths[0]
    kept += text_values(unet, rows, TOKENS, decoder=False) + time_values(unet, rows * EVALUATIONS, decoder=False)
    running = residuals + net_values(unet, rows, size, PlainForms())
    return kept + max(running, hint_values(config, pictures, size, factor))
