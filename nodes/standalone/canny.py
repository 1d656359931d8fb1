"""Canny edges as in ComfyUI's node: the thresholds are gradients of the smoothed gray image.

Source: Canny 1986, with the steps of kornia.filters.canny, which ComfyUI calls: Gaussian 5x5 of sigma 1, Sobel,
suppression of non-maxima along 8 directions, hysteresis until nothing changes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...controlnet_core.errors import ShapeError, ValueRangeError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the gray image (BT.601)."""
NEIGHBOURS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
"""Offset (row, column) of the neighbour in direction k * 45 degrees; rows count downwards."""


def canny(image: Tensor, low: float, high: float) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 1, H, W) of 0 and 1. Raises ShapeError or ValueRangeError."""
    if low > high:
        raise ValueRangeError(f"low_threshold is {low:g} and high_threshold {high:g}: swap them")
    if min(image.shape[-2:]) < 3:
        raise ShapeError(
            f"the image is {image.shape[-1]}x{image.shape[-2]}: at least 3x3 pixels are needed, enlarge it"
        )
    gx, gy = _sobel(_smooth(_gray(image.float())))
    # The small constant is kornia's: it shifts the thresholds a little, so it must be the same.
    strength = (gx * gx + gy * gy + 1e-6).sqrt()
    thin = strength * _is_ridge(strength, gx, gy)
    return _grow(thin > high, thin > low).float()


def _gray(image: Tensor) -> Tensor:
    if image.shape[1] == 1:
        return image
    return sum(weight * image[:, i : i + 1] for i, weight in enumerate(LUMA))  # type: ignore[return-value]


def _smooth(x: Tensor) -> Tensor:
    """Blur with a Gaussian of sigma 1 over 5x5 pixels; the border is reflected."""
    taps = torch.exp(torch.arange(-2.0, 3.0).square() / -2.0)
    taps = (taps / taps.sum()).to(x)
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
    return F.conv2d(F.conv2d(padded, taps.reshape(1, 1, 1, 5)), taps.reshape(1, 1, 5, 1))


def _sobel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients along x and y, not normalised; the border is repeated."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(x)
    kernels = torch.stack((kernel, kernel.T))[:, None]
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernels).split(1, dim=1)  # type: ignore[return-value]


def _is_ridge(strength: Tensor, gx: Tensor, gy: Tensor) -> Tensor:
    """True where the gradient is stronger than at both neighbours in its direction."""
    height, width = strength.shape[-2:]
    padded = F.pad(strength, (1, 1, 1, 1))
    differences = torch.cat(
        [strength - padded[..., 1 + r : 1 + r + height, 1 + c : 1 + c + width] for r, c in NEIGHBOURS], dim=1
    )
    direction = (torch.atan2(gy, gx) * 180.0 / math.pi / 45.0).round().long()
    ahead = differences.gather(1, direction % 8)
    behind = differences.gather(1, (direction + 4) % 8)
    return torch.minimum(ahead, behind) > 0.0


def _grow(strong: Tensor, weak: Tensor) -> Tensor:
    """Strong pixels, and all weak pixels that are connected to them."""
    # Each round extends the edges by one pixel; most images need few rounds.
    while True:
        wider = (F.max_pool2d(strong.float(), 3, stride=1, padding=1) > 0.0) & (weak | strong)
        if torch.equal(wider, strong):
            return strong
        strong = wider
