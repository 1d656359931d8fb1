"""ComfyUI's nodes that put one image or latent onto another, and that blend them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...controlnet_core.errors import ValueRangeError
from ..fields import choice, image, latent, mask, optional, share, side, switch
from ..node import Node
from ..values import Latent
from .images import resize_image
from .resize import resize

PLACE = (side("x", 0, step=1), side("y", 0, step=1), switch("resize_source", False))
LATENT_PLACE = (side("x", 0), side("y", 0))
CELL = 8
"""Pixels in a latent cell."""


def repeat_rows(x: Tensor, count: int) -> Tensor:
    """The batch repeated or cut to `count` rows."""
    return x.repeat(math.ceil(count / len(x)), *[1] * (x.ndim - 1))[:count]


def paste(destination: Tensor, source: Tensor, left: int, top: int, mask: Tensor | None, fit: bool) -> Tensor:
    """(B, C, H, W) with `source` on it, where `mask` (b, h, w) is white. fit: resize the source to the destination."""
    if left < 0 or top < 0:
        raise ValueRangeError(f"the position is ({left}, {top}): give numbers from 0")
    result = destination.clone()
    size = (destination.shape[-2], destination.shape[-1])
    if fit:
        source = F.interpolate(source, size=size, mode="bilinear")
    source = repeat_rows(source, len(destination))
    opacity = torch.ones_like(source)
    if mask is not None:
        # The mask belongs to the source, whatever its size is.
        grown = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), size=source.shape[-2:], mode="bilinear")
        opacity = repeat_rows(grown, len(source))
    place = result[..., top : top + source.shape[-2], left : left + source.shape[-1]]
    seen = (..., slice(place.shape[-2]), slice(place.shape[-1]))
    place.copy_(opacity[seen] * source[seen] + (1.0 - opacity[seen]) * place)
    return result


def match_channels(destination: Tensor, source: Tensor) -> Tensor:
    """The source (B, H, W, C) with as many channels as the destination; an alpha channel that is added is opaque."""
    missing = destination.shape[-1] - source.shape[-1]
    return F.pad(source, (0, missing), value=1.0) if missing > 0 else source[..., : destination.shape[-1]]


class ImageCompositeMasked(Node):
    """Puts an image onto another, where a mask is white."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    INPUTS = (image("destination"), image("source"), *PLACE, *optional(mask("mask")))

    def run(
        self, destination: Tensor, source: Tensor, x: int, y: int, resize_source: bool, mask: Tensor | None = None
    ) -> tuple[Tensor]:
        """-> IMAGE."""
        source = match_channels(destination, source)
        result = paste(destination.movedim(-1, 1), source.movedim(-1, 1), x, y, mask, resize_source)
        return (result.movedim(1, -1),)


class LatentCompositeMasked(Node):
    """Puts a latent onto another, where a mask is white."""

    CATEGORY = "latent"
    RETURN_TYPES = ("LATENT",)
    INPUTS = (
        latent("destination"), latent("source"), *LATENT_PLACE, switch("resize_source", False), *optional(mask("mask"))
    )  # fmt: skip

    def run(
        self, destination: Latent, source: Latent, x: int, y: int, resize_source: bool, mask: Tensor | None = None
    ) -> tuple[Latent]:
        """-> LATENT."""
        samples = paste(destination["samples"], source["samples"], x // CELL, y // CELL, mask, resize_source)
        return ({**destination, "samples": samples},)


class LatentComposite(Node):
    """Puts a latent onto another; feathering fades it out towards the sides that lie inside the other."""

    CATEGORY = "latent"
    RETURN_TYPES = ("LATENT",)
    INPUTS = (latent("samples_to"), latent("samples_from"), *LATENT_PLACE, side("feather", 0))

    def run(self, samples_to: Latent, samples_from: Latent, x: int, y: int, feather: int) -> tuple[Latent]:
        """-> LATENT."""
        base, top, left = samples_to["samples"].clone(), y // CELL, x // CELL
        place = base[:, :, top:, left:]
        source = samples_from["samples"][:, :, : place.shape[2], : place.shape[3]]
        place = place[:, :, : source.shape[2], : source.shape[3]]
        rows = _fade(source.shape[2], feather // CELL, top, base.shape[2])
        columns = _fade(source.shape[3], feather // CELL, left, base.shape[3])
        opacity = rows[:, None] * columns
        place.copy_(source * opacity + place * (1.0 - opacity) if feather >= CELL else source)
        return ({**samples_to, "samples": base},)


def _fade(length: int, feather: int, start: int, whole: int) -> Tensor:
    """Opacity along a side of `length` cells that starts at `start` of `whole`; a border of the whole is not faded."""
    opacity = torch.ones(length)
    for at in range(min(feather, length)):
        share = (1.0 / feather) * (at + 1)
        if start != 0:
            opacity[at] *= share
        if start + length < whole:
            opacity[length - 1 - at] *= share
    return opacity


class LatentBlend(Node):
    """Mixes two latents. Factor 1 is the first alone."""

    CATEGORY = "_for_testing"
    RETURN_TYPES = ("LATENT",)
    INPUTS = (latent("samples1"), latent("samples2"), share("blend_factor", 0.5))

    def run(self, samples1: Latent, samples2: Latent, blend_factor: float) -> tuple[Latent]:
        """-> LATENT."""
        first, second = samples1["samples"], samples2["samples"]
        if first.shape != second.shape:
            second = resize(second, first.shape[3], first.shape[2], "bicubic", "center")
        return ({**samples1, "samples": first * blend_factor + second * (1 - blend_factor)},)


MODES = ("normal", "multiply", "screen", "overlay", "soft_light", "difference")


class ImageBlend(Node):
    """Mixes two images in one of the ways of image editors. Factor 0 is the first image alone."""

    CATEGORY = "image/postprocessing"
    RETURN_TYPES = ("IMAGE",)
    INPUTS = (image("image1"), image("image2"), share("blend_factor", 0.5), choice("blend_mode", MODES))

    def run(self, image1: Tensor, image2: Tensor, blend_factor: float, blend_mode: str) -> tuple[Tensor]:
        """-> IMAGE."""
        image2 = match_channels(image1, image2)
        if image1.shape != image2.shape:
            image2 = resize_image(image2, image1.shape[2], image1.shape[1], "bicubic", "center")
        mixed = blend(image1, image2, blend_mode)
        return ((image1 * (1 - blend_factor) + mixed * blend_factor).clamp(0, 1),)


def blend(a: Tensor, b: Tensor, mode: str) -> Tensor:
    """Blend two images with values in [0, 1] by the formulas of the PDF standard (ISO 32000, 11.3.5)."""
    if mode == "multiply":
        return a * b
    if mode == "screen":
        return 1 - (1 - a) * (1 - b)
    if mode == "overlay":
        return torch.where(a <= 0.5, 2 * a * b, 1 - 2 * (1 - a) * (1 - b))
    if mode == "soft_light":
        lighter = torch.where(a <= 0.25, ((16 * a - 12) * a + 4) * a, a.sqrt())
        return torch.where(b <= 0.5, a - (1 - 2 * b) * a * (1 - a), a + (2 * b - 1) * (lighter - a))
    return a - b if mode == "difference" else b


class SplitImageWithAlpha(Node):
    """Splits an image into its colours and its transparency."""

    CATEGORY = "mask/compositing"
    RETURN_TYPES = ("IMAGE", "MASK")
    INPUTS = (image("image"),)

    def run(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """-> IMAGE, MASK: 1 where the image is transparent, 0 without an alpha channel."""
        alpha = image[..., 3] if image.shape[-1] > 3 else torch.ones(image.shape[:-1])
        return image[..., :3], 1.0 - alpha


class JoinImageWithAlpha(Node):
    """Makes an image transparent where a mask is white."""

    CATEGORY = "mask/compositing"
    RETURN_TYPES = ("IMAGE",)
    INPUTS = (image("image"), mask("alpha"))

    def run(self, image: Tensor, alpha: Tensor) -> tuple[Tensor]:
        """-> IMAGE (B, H, W, 4)."""
        # As ComfyUI 0.33; earlier releases end with the shorter batch.
        count = max(len(image), len(alpha))
        fitted = F.interpolate(alpha.reshape(-1, 1, *alpha.shape[-2:]), size=image.shape[1:3], mode="bilinear")
        opacity = 1.0 - fitted.movedim(1, -1)
        return (torch.cat((repeat_rows(image[..., :3], count), repeat_rows(opacity, count)), dim=-1),)
