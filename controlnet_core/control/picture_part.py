"""A part of a picture with its share of hint and mask, for pictures that are made tile by tile."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .hint import crop_to_aspect, fit_hint, mask_at, stretch
from .unit import ControlUnit, Hint


@dataclass(frozen=True)
class PicturePart:
    """A rectangle of a picture, in pixels.

    size: (height, width) of the picture. The rectangle may reach over its right and lower border, where the last
    pixels are repeated: pictures are filled up to whole latent cells there.
    """

    size: tuple[int, int]
    top: int
    left: int
    height: int
    width: int

    @property
    def is_whole(self) -> bool:
        """Whether the rectangle covers the picture."""
        return self.top == self.left == 0 and self.height >= self.size[0] and self.width >= self.size[1]

    @property
    def _rows(self) -> Tensor:
        return torch.arange(self.top, self.top + self.height).clamp(max=self.size[0] - 1)

    @property
    def _columns(self) -> Tensor:
        return torch.arange(self.left, self.left + self.width).clamp(max=self.size[1] - 1)

    def cut(self, x: Tensor) -> Tensor:
        """(..., H, W) of the picture's size -> (..., height, width)."""
        return _take(x, self._rows, self._columns)

    def hint(self, hint: Tensor, fit: str = "crop") -> Tensor:
        """The part of a hint (B, C, H, W) of any size: that of `fit_hint(hint, *self.size, fit)`.

        Raises as `fit_hint` does.
        """
        if fit not in ("crop", "stretch") or tuple(hint.shape[-2:]) == self.size:
            return self.cut(fit_hint(hint, *self.size, fit))
        # These two fits copy pixels. Which ones is found by numbers instead of pictures: a hint at the size of a large
        # picture would take as much memory as the picture.
        source = crop_to_aspect(hint, *self.size) if fit == "crop" else hint
        numbers = (torch.arange(side, dtype=torch.float32).reshape(1, 1, -1, 1) for side in source.shape[-2:])
        rows, columns = (
            stretch(given, side, 1).flatten().long() for given, side in zip(numbers, self.size, strict=True)
        )
        return _take(source, rows[self._rows], columns[self._columns])

    def mask(self, mask: Tensor) -> Tensor:
        """The part of a mask (B, H, W) of any size, resized by area as `mask_at` does."""
        return self.cut(mask_at(mask, self.size)[:, 0])

    def unit(self, unit: ControlUnit) -> ControlUnit | None:
        """The unit for this part, with its share of all hints and of the mask; None where its mask is black here.

        Latents that a net reads, such as those of a reference, are no maps of the picture: they stay whole.
        """
        if self.is_whole:
            return unit
        mask = None if unit.mask is None else self.mask(unit.mask)
        if mask is not None and not bool((mask > 0).any()):
            return None  # the net would run for nothing
        hints = unit.hints
        if not unit.net.reads_latent:
            hints = tuple(Hint(self.hint(hint.picture, unit.fit), hint.kind) for hint in hints)
        frames = tuple(
            frame if frame.mask is None else replace(frame, mask=self.mask(frame.mask)) for frame in unit.keyframes
        )
        return replace(unit, hint=hints[0].picture, more_hints=hints[1:], mask=mask, keyframes=frames)


def _take(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return x[..., rows.to(x.device), :][..., columns.to(x.device)]
