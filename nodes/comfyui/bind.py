"""Describes the rows of a batch in ComfyUI for our nets (see `models.control.BindContext`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...controlnet_core.config import UNetConfig
from ...controlnet_core.control.hint import check_hint_channels, fit_hint
from ...controlnet_core.control.unit import ControlUnit
from ...controlnet_core.models.control import BindContext, ControlModel
from ...controlnet_core.models.to_device import to_device_async

FACTOR = 8
"""Pixels per latent cell."""


class HostSchedule:
    """The model's timesteps in float32, whatever kind of noise levels it has. device: where they are needed."""

    def __init__(self, sampling: Any, device: torch.device) -> None:
        self.sampling, self.device = sampling, device

    def timestep(self, sigma: Tensor) -> Tensor:
        """Sigmas -> timesteps, float32, of the same shape, on the device."""
        return self.sampling.timestep(to_device_async(sigma, self.device)).float()

    def noisy(self, clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """What the UNet reads of a clean latent (scaled) with this noise at a noise level."""
        level = torch.tensor(sigma, device=clean.device)
        return self.sampling.calculate_input(level, clean + level * noise)

    def position(self, sigma: Tensor) -> float:
        """The position of a sigma on the timestep axis, from 0 (pure noise) to 1."""
        last = len(self.sampling.sigmas) - 1 if hasattr(self.sampling, "sigmas") else 999
        return 1.0 - float(self.timestep(sigma).flatten()[0]) / last


def bind_context(
    unit: ControlUnit,
    net: ControlModel,
    base: UNetConfig,
    x: Tensor,
    images: tuple[int, ...],
    text: Tensor,
    label: Tensor | None,
    schedule: HostSchedule,
    dtype: torch.dtype,
    extend: bool = False,
    to_model: Callable[[Tensor], Tensor] | None = None,
) -> BindContext:
    """The context for the rows of x (all rows, C, h, w) that the net sees.

    images: for each of these rows the index of its image in the batch. text, label: of these rows, on the device, in
    the net's dtype. extend: whether the last hint stands for all images after it; else hints begin again. to_model:
    scales a latent for the model.
    """
    height, width = x.shape[-2] * FACTOR, x.shape[-1] * FACTOR
    hints = []
    for hint in unit.hints:
        fitted = check_hint_channels(hint.picture, net.hint_channels)
        if net.reads_latent and to_model is not None:  # at its own size
            fitted = to_model(fitted).to(x.device, dtype)
        else:
            fitted = fit_hint(fitted, height, width, unit.fit).to(x.device, dtype)
        if extend and 1 < len(fitted) <= max(images):
            fitted = fitted[[min(image, len(fitted) - 1) for image in range(1 + max(images))]]
        hints.append(fitted)
    return BindContext(
        hints=tuple(hints),
        kinds=tuple(hint.kind for hint in unit.hints),
        text=text,
        label=label,
        timesteps=schedule,
        sigmas=(),
        # Hints are dealt out to the images of a batch in turn, as ComfyUI does.
        image_of_row=images,
        # All of them: ComfyUI may put different rectangles of the image into one batch.
        distinct_rows=len(images),
        size=(x.shape[-2], x.shape[-1]),
        pool=unit.pool,
        base=base,
        per_row=True,
        name=unit.name,
        noisy=schedule.noisy,
    )
