"""The mean of the predictions for several conditions, weighted by strength, mask and area, as ComfyUI does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..control.hint import repeat_to
from .condition import Area, Condition, crop_to_area

SMALLEST_TOTAL = 1e-37
"""Added to the sum of weights, to avoid 0 / 0 where no condition acts: the prediction there becomes 0."""


class BlendPart(NamedTuple):
    """One condition's share. index: of the condition in its job. weight: (1 or B, 1, h, w), in its area."""

    index: int
    area: Area | None
    weight: Tensor


class Blend(NamedTuple):
    """Weighted mean of a half's predictions. total: sum of the weights, (1 or B, 1, h, w); None if one part is all."""

    parts: tuple[BlendPart, ...]
    total: Tensor | None

    def __call__(self, predictions: Mapping[int, Tensor], x: Tensor) -> Tensor:
        """Predictions by condition, each (B, 4, h, w) in its area -> one (B, 4, h, w) for the whole latent x."""
        if self.total is None:
            return predictions[self.parts[0].index]
        summed = torch.zeros_like(x)
        for part in self.parts:
            crop_to_area(summed, part.area).add_(predictions[part.index] * part.weight)
        return summed / self.total


def make_blend(
    conditions: Sequence[tuple[int, Condition]], latent: tuple[int, int, int], device: torch.device
) -> Blend:
    """The blend of the conditions of one half that act at the same time. latent: (B, h, w).

    Raises ShapeError for a mask whose batch size does not fit.
    """
    parts = tuple(BlendPart(index, c.area, _weight(c, latent).to(device)) for index, c in conditions)
    # Multiplying by a weight and dividing by it again would only round.
    if len(parts) == 1 and _is_plain(conditions[0][1]):
        return Blend(parts, None)
    total = torch.full((latent[0], 1, *latent[1:]), SMALLEST_TOTAL, device=device)
    for part in parts:
        crop_to_area(total, part.area).add_(part.weight)
    return Blend(parts, total)


def _is_plain(condition: Condition) -> bool:
    return condition.area is None and condition.mask is None and condition.strength != 0.0


def _weight(condition: Condition, latent: tuple[int, int, int]) -> Tensor:
    batch, *size = latent
    if condition.mask is not None:
        mask = repeat_to(condition.mask[:, None].float(), batch, "mask")
        # Bilinear, as ComfyUI resizes masks of prompts; masks of control are resized by area.
        mask = torch.nn.functional.interpolate(mask, size=size, mode="bilinear")
        return condition.strength * crop_to_area(mask, condition.area)
    if condition.area is None:
        return torch.full((1, 1, *size), condition.strength)
    area = condition.area
    rows = _ramp(area.top, area.height, size[0])
    columns = _ramp(area.left, area.width, size[1])
    return condition.strength * rows[None, None, :, None] * columns


def _ramp(first: int, length: int, side: int) -> Tensor:
    """Weights (length,) that rise and fall at those ends of an area that lie inside the image, as in ComfyUI.

    The ramp is 8 cells wide, or a quarter of the area's side if that is less.
    """
    ramp = torch.ones(length)
    cells = min(8, length // 4)
    rising = torch.arange(1, cells + 1) / cells if cells else torch.ones(0)
    if first > 0:
        ramp[:cells] *= rising
    if first + length < side:
        ramp[length - cells :] *= rising.flip(0)
    return ramp
