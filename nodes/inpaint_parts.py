"""What Inpaint Control makes of an image and a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..controlnet_core.errors import ShapeError, ValueRangeError
from ..preprocessors.classic.tones import inpaint
from .finish import LATENT_CELL, crop_as_encoded, for_each

MARKED = 0.5
"""A pixel above this is masked, as in the hint of the inpaint ControlNet."""


def as_encoded(image: Tensor, mask: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """IMAGE (B, H, W, C) and MASK (M, h, w) -> the part of both that VAE Encode kept, (B, H', W', 3) and (M, H', W').

    samples: the latent of the image, (B, 4, H'/8, W'/8). A mask of another size is resized to the image first.
    Raises ValueRangeError for a mask without a white pixel in that part, or with NaN.
    """
    mask = mask.float().reshape(-1, *mask.shape[-2:])
    if not bool(torch.isfinite(mask).all()):
        raise ValueRangeError("the mask contains NaN or infinity: check the node before")
    if mask.shape[1:] != image.shape[1:3]:
        mask = F.interpolate(mask[:, None], size=tuple(image.shape[1:3]), mode="bilinear")[:, 0]
    height, width = (LATENT_CELL * side for side in samples.shape[-2:])
    pixels = crop_as_encoded(image[..., :3], (height, width))
    where = crop_as_encoded(mask[..., None], (height, width))[..., 0]
    if pixels.shape[1:3] != (height, width):
        size = f"{image.shape[2]}x{image.shape[1]}"
        raise ShapeError(f"the VAE makes latents for {width}x{height} of an image of {size}: link a VAE of 8 pixels")
    if not bool((where > MARKED).any()):
        raise ValueRangeError("the mask has no white pixel, so there is nothing to repaint: paint it where to repaint")
    return pixels.expand(-1, -1, -1, 3), where


def inpaint_hint(pixels: Tensor, mask: Tensor, masked_value: float) -> Tensor:
    """(B, H, W, 3) and (M, H, W) -> the hint (B, H, W, 3): the image, and `masked_value` under the mask."""
    return for_each(
        lambda picture, where: inpaint(picture, mask=where, masked_value=masked_value), picture=pixels, where=mask
    )


def cell_mask(mask: Tensor) -> Tensor:
    """(M, H, W) in pixels -> (M, 1, H/8, W/8): 1 for the cells that have a masked pixel, or one beside them.

    A pixel beyond the cell counts too, because the decoder mixes neighbouring cells. Source: lllyasviel 2023,
    inpaint_only in sd-webui-controlnet, where the same cells keep the latent of the image at every step.
    """
    marked = (mask > MARKED).float()[:, None]
    return F.max_pool2d(marked, LATENT_CELL + 2, stride=LATENT_CELL, padding=1)
