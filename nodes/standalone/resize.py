"""Resizes images and latents bit for bit as ComfyUI does, so that a workflow gives the same image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...controlnet_core.errors import ShapeError, ValueRangeError
from ..upscale import lanczos
from .room import require_room

IMAGE_METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
LATENT_METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "bislerp")
CROPS = ("disabled", "center")


def resize(x: Tensor, width: int, height: int, method: str, crop: str = "disabled") -> Tensor:
    """(B, C, h, w) -> (B, C, height, width). crop: "center" crops to the new aspect ratio first."""
    if width < 1 or height < 1:
        raise ShapeError(f"the new size is {width}x{height}: both sides must be at least 1")
    require_room((*x.shape[:2], height, width))
    # Cropping first: the proportions of what is left do not change.
    if crop == "center":
        x = crop_to_aspect(x, width / height)
    if method == "lanczos":
        return lanczos(x, width, height)
    if method == "bislerp":
        return bislerp(x, width, height)
    if method not in ("nearest-exact", "bilinear", "area", "bicubic"):
        raise ValueRangeError(f"upscale_method {method!r} is unknown: choose one of {', '.join(IMAGE_METHODS)}")
    return F.interpolate(x, size=(height, width), mode=method)


def crop_to_aspect(x: Tensor, aspect: float) -> Tensor:
    """(B, C, h, w) cropped at the centre to width / height = `aspect`."""
    height, width = x.shape[-2:]
    old = width / height
    # The same number of pixels is cut on both sides, so the result can be off by one pixel.
    side = round((width - width * (aspect / old)) / 2) if old > aspect else 0
    top = round((height - height * (old / aspect)) / 2) if old < aspect else 0
    return x[..., top : height - top, side : width - side]


def bislerp(x: Tensor, width: int, height: int) -> Tensor:
    """Resize latents bilinearly, with spherical interpolation of their vectors (slerp, Shoemake 1985).

    The mean of two vectors is shorter than both of them, so plain interpolation reduces the contrast of latents.
    """
    return _slerp_axis(_slerp_axis(x.float(), width, -1), height, -2).to(x.dtype)


def _slerp_axis(x: Tensor, size: int, axis: int) -> Tensor:
    old = x.shape[axis]
    # Interpolating the indices gives the positions of the pixel centres, as with align_corners off.
    index = torch.arange(old, dtype=torch.float32, device=x.device).reshape(1, 1, 1, -1)
    position = F.interpolate(index, size=(1, size), mode="bilinear").flatten()
    first = position.floor().long()
    shape = [1, 1, 1, 1]
    shape[axis] = size
    ratio = (position - first).reshape(shape)
    return _slerp(x.index_select(axis, first), x.index_select(axis, (first + 1).clamp(max=old - 1)), ratio)


def _slerp(a: Tensor, b: Tensor, ratio: Tensor) -> Tensor:
    """Interpolate vectors along dimension 1: the direction on the great circle, the length linearly."""
    length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    unit_a = torch.where(length_a == 0.0, 0.0, a / length_a)
    unit_b = torch.where(length_b == 0.0, 0.0, b / length_b)
    dot = (unit_a * unit_b).sum(dim=1, keepdim=True)
    angle = dot.acos()
    direction = (((1.0 - ratio) * angle).sin() * unit_a + (ratio * angle).sin() * unit_b) / angle.sin()
    result = direction * (length_a * (1.0 - ratio) + length_b * ratio)
    # The formula divides by sin(angle), which is 0 for equal and for opposite directions.
    result = torch.where(dot > 1 - 1e-5, a, result)
    return torch.where(dot < 1e-5 - 1, a * (1.0 - ratio) + b * ratio, result)
