"""What one half of the guidance asks for: text, control, and where in the image."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from math import lcm

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
    """A prompt with its ControlNets.

    text: (1, tokens, context_dim). units: the ControlNets that act on this condition. label: (1, label_dim) for models
    that read a label vector (SDXL). strength, mask (B, H, W) and area weigh its prediction against those of the other
    conditions of its half. start, end: its window on the timestep axis, 0 to 1. concat: (B, C, h, w), what inpainting
    and editing models read beside the noisy latent (see `conditioning.concat_channels`).
    """

    text: Tensor
    units: ControlStack = ()
    label: Tensor | None = None
    strength: float = 1.0
    mask: Tensor | None = None
    area: Area | None = None
    start: float = 0.0
    end: float = 1.0
    concat: Tensor | None = None


def fingerprint(condition: Condition) -> tuple[Hashable, ...]:
    """Equal for conditions with the same numbers and the same units.

    Tensors count by their contents, since labels and masks are often made anew for each run. Units count by their
    identity: forget a fingerprint when one of its units is deleted.
    """
    values = (getattr(condition, f.name) for f in fields(condition) if f.name != "units")
    units = (id(unit) for unit in condition.units)
    return (*(_digest(v) if isinstance(v, Tensor) else v for v in values), *units)


def _digest(tensor: Tensor) -> Hashable:
    if tensor.is_meta:  # has no contents, see `memory_estimate`
        return tuple(tensor.shape), tensor.dtype, id(tensor)
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # numpy has neither bfloat16 nor float8, and float32 holds all their values.
    numbers = flat.float() if flat.is_floating_point() and flat.element_size() <= 2 else flat
    # A digest of the bytes instead of the numbers, because NaN would differ from itself.
    return tuple(tensor.shape), tensor.dtype, blake2b(numbers.numpy().data).digest()


def crop_to_area(x: Tensor, area: Area | None) -> Tensor:
    """Crop x (..., h, w), in latent cells, to an area; a view. None is the whole of x."""
    if area is None:
        return x
    return x[..., area.top : area.top + area.height, area.left : area.left + area.width]


def equal_length(texts: Sequence[Tensor]) -> list[Tensor]:
    """Repeat texts of different length to their least common multiple, as ComfyUI does.

    Repeating all tokens does not change the result of cross attention.
    """
    tokens = lcm(*(text.shape[1] for text in texts))
    return [text.repeat(1, tokens // text.shape[1], 1) for text in texts]
