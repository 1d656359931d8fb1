"""What a net of ours holds besides its weights, counted before it runs, for the editor's memory manager."""

from __future__ import annotations

from ...controlnet_core.config import ControlNetConfig
from ...controlnet_core.engine.activations import (
    PlainForms,
    Running,
    net_values,
    target_cells,
    text_values,
    time_values,
)
from ...controlnet_core.models.control import Sitting
from ...controlnet_core.models.controlnet import load_of

TOKENS = 77
EVALUATIONS = 30
"""Of a run, about: each leaves its projected timesteps."""


def activations(config: ControlNetConfig, size: tuple[int, int], rows: int, pictures: int, factor: int) -> int:
    """Numbers that are alive at a ControlNet's peak, when its last residual joins the others.

    size: (h, w) of the latent; rows: those of x that it sees; pictures: hints of different content; factor: pixels
    per cell.
    """
    unet = config.unet
    pixels = (size[0] * factor, size[1] * factor)
    load = load_of(config, Sitting(rows, size, pixels, 1, pictures, target_cells(unet, size), unet))
    kept = load.kept + text_values(unet, rows, TOKENS, decoder=False)
    kept += time_values(unet, rows * EVALUATIONS, decoder=False)
    running = sum(load.residuals) + net_values(Running(load, rows, PlainForms()), size)
    return kept + max(running, load.binding)
