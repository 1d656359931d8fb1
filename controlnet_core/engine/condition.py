"""What one half of the guidance asks for: text, control, and where in the picture."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields
from hashlib import blake2b
from math import lcm

import torch
from torch import Tensor

from ..control.unit import ControlStack


@dataclass(frozen=True)
class Area:
    """A rectangle in latent cells."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Condition:
    """text: (1, tokens, context_dim). label: (1, label_dim) for models that have a label vector.

    beside: (B, C, h, w), what inpainting and editing models read beside the noisy latent (`engine.concat`).
    units: the ControlNets that act on this condition. strength, mask (B, H, W) and area weigh its
    prediction against that of the other conditions of its half; start and end are its window.
    """

    text: Tensor
    units: ControlStack = ()
    label: Tensor | None = None
    strength: float = 1.0
    mask: Tensor | None = None
    area: Area | None = None
    start: float = 0.0
    end: float = 1.0
    beside: Tensor | None = None


def identity(condition: Condition) -> tuple[Hashable, ...]:
    """Equal for conditions of the same numbers and units, as long as the units live.

    Tensors count by what they hold: a label or a mask is often made anew for each run. Nothing is kept alive;
    units are not either, since those hold nets: forget an identity when one of them goes.
    """
    values = (getattr(condition, f.name) for f in fields(condition) if f.name != "units")
    units = (id(unit) for unit in condition.units)
    return (*(_contents(v) if isinstance(v, Tensor) else v for v in values), *units)


def _contents(tensor: Tensor) -> Hashable:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return tuple(tensor.shape), tensor.dtype, blake2b(flat.view(torch.uint8).numpy()).digest()


def crop(x: Tensor, area: Area | None, factor: int = 1) -> Tensor:
    """The rectangle of (..., H, W); `factor`: cells of x per latent cell. A view."""
    if area is None:
        return x
    top, left = area.top * factor, area.left * factor
    return x[..., top : top + area.height * factor, left : left + area.width * factor]


def equal_length(texts: list[Tensor]) -> list[Tensor]:
    """Repeat texts of different length to their least common multiple, as the host does.

    Repeating all tokens alike does not change what cross attention reads.
    """
    tokens = lcm(*(text.shape[1] for text in texts))
    return [text.repeat(1, tokens // text.shape[1], 1) for text in texts]
