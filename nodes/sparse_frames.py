"""Hints at some frames of a video, for Sparse Frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..controlnet_core.errors import ShapeError, ValueRangeError


def read_frames(text: str, count: int, length: int) -> tuple[int, ...]:
    """The frame of each of `count` hints in a video of `length` frames.

    Raises ValueRangeError for numbers outside of it, for a frame that is listed twice, and for another number of them.
    """
    if not text.strip():
        if count > length:
            raise ValueRangeError(f"{count} hints came for {length} frames: give at most one for each frame")
        return tuple(round(n * (length - 1) / max(1, count - 1)) for n in range(count))
    try:
        given = [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise ValueRangeError(f"frames is {text[:60]!r}, expected whole numbers such as '0, 8, 15'") from None
    outside = [frame for frame in given if not -length <= frame < length]
    if outside:
        raise ValueRangeError(f"frame {outside[0]} is outside of the video: its frames are 0 to {length - 1}")
    placed = tuple(frame % length for frame in given)
    if len(set(placed)) < len(placed):
        raise ValueRangeError(f"frames is {text[:60]!r}: a frame is listed twice, give each one hint")
    if len(placed) != count:
        raise ValueRangeError(f"{count} hints and {len(placed)} frames came: list one frame for each hint")
    return placed


def place_frames(image: Tensor, frames: Sequence[int], length: int) -> Tensor:
    """IMAGE (B, H, W, C) -> IMAGE (length, H, W, 4): each hint at its frame, 1 in the last channel there, else 0."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ShapeError(f"the hints have shape {tuple(image.shape)}, expected images (batch, H, W, 3)")
    placed = image.new_zeros(length, *image.shape[1:3], 4)
    index = torch.tensor(list(frames), device=image.device)
    placed[index, ..., :3] = image[..., :3].expand(-1, -1, -1, 3)
    placed[index, ..., 3] = 1.0
    return placed
