"""ComfyUI's nodes that encode and decode images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...controlnet_core.errors import ValueRangeError
from ..fields import conditioning, image, integer, latent, mask, switch, vae
from ..node import Node
from ..values import Conditioning, Latent
from .autoencoder import crop_to_multiple
from .conditioning import with_options
from .values import Vae

PROMPTS = (conditioning("positive"), conditioning("negative"))
PIXELS, VAE = image("pixels"), vae("vae")
FACTOR = 8
"""Pixels in a latent cell, where no autoencoder is given that says so."""


class VAEDecode(Node):
    """Decodes latents into images."""

    CATEGORY = "latent"
    RETURN_TYPES = ("IMAGE",)
    INPUTS = (latent("samples"), VAE)

    def run(self, samples: Latent, vae: Vae) -> tuple[Tensor]:
        """-> IMAGE."""
        return (self.host.decode(vae, samples["samples"]),)


class VAEDecodeTiled(Node):
    """Decodes latents in overlapping tiles, for images that do not fit into memory as a whole."""

    CATEGORY = "_for_testing"
    RETURN_TYPES = ("IMAGE",)
    INPUTS = (
        latent("samples"),
        VAE,
        integer("tile_size", 512, 64, 4096, step=32),
        integer("overlap", 64, 0, 4096, step=32),
        integer("temporal_size", 64, 8, 4096, step=4),
        integer("temporal_overlap", 8, 4, 4096, step=4),
    )

    def run(self, samples: Latent, vae: Vae, tile_size: int, overlap: int = 64, **temporal: int) -> tuple[Tensor]:
        """-> IMAGE. The temporal inputs are for video models and have no effect here."""
        # ComfyUI's limit. Larger overlaps would decode most pixels several times.
        overlap = min(overlap, tile_size // 4)
        factor = FACTOR if vae is None else vae.factor
        return (self.host.decode(vae, samples["samples"], tile_size // factor, overlap // factor),)


class VAEEncode(Node):
    """Encodes images into latents."""

    CATEGORY = "latent"
    RETURN_TYPES = ("LATENT",)
    INPUTS = (PIXELS, VAE)

    def run(self, pixels: Tensor, vae: Vae) -> tuple[Latent]:
        """-> LATENT."""
        return ({"samples": self.host.encode(vae, pixels)},)


class VAEEncodeTiled(Node):
    """Encodes images in overlapping tiles, for images that do not fit into memory as a whole."""

    CATEGORY = "_for_testing"
    RETURN_TYPES = ("LATENT",)
    INPUTS = (PIXELS, VAE, integer("tile_size", 512, 64, 4096, step=64), *VAEDecodeTiled.INPUTS[3:])

    def run(self, pixels: Tensor, vae: Vae, tile_size: int, overlap: int = 64, **temporal: int) -> tuple[Latent]:
        """-> LATENT. The temporal inputs are for video models and have no effect here."""
        if overlap >= tile_size // 2:
            raise ValueRangeError(f"overlap is {overlap} and tile_size {tile_size}: give an overlap below its half")
        return ({"samples": self.host.encode(vae, pixels, tile_size, overlap)},)


class VAEEncodeForInpaint(Node):
    """Encodes images with the masked part removed, for models that were trained to fill it in."""

    CATEGORY = "latent/inpaint"
    RETURN_TYPES = ("LATENT",)
    INPUTS = (PIXELS, VAE, mask("mask"), integer("grow_mask_by", 6, 0, 64, step=1))

    def run(self, pixels: Tensor, vae: Vae, mask: Tensor, grow_mask_by: int = 6) -> tuple[Latent]:
        """-> LATENT with a noise mask that is grown by some pixels, so that no seam is visible."""
        pixels, mask = fit_mask(pixels, mask, vae)
        samples = self.host.encode(vae, remove_masked(pixels, mask))
        return ({"samples": samples, "noise_mask": grow(mask.round(), grow_mask_by)},)


class InpaintModelConditioning(Node):
    """Gives an inpainting model the image without the masked part, and the mask."""

    CATEGORY = "conditioning/inpaint"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "LATENT")
    RETURN_NAMES = ("positive", "negative", "latent")
    INPUTS = (
        *PROMPTS,
        VAE,
        PIXELS,
        mask("mask"),
        switch("noise_mask", True, "Sample only inside the mask; otherwise the whole image may change."),
    )

    def run(
        self, positive: Conditioning, negative: Conditioning, pixels: Tensor, vae: Vae, mask: Tensor,
        noise_mask: bool = True,
    ) -> tuple[Conditioning, Conditioning, Latent]:  # fmt: skip
        """-> CONDITIONING, CONDITIONING, LATENT of the whole image."""
        pixels, mask = fit_mask(pixels, mask, vae)
        masked = self.host.encode(vae, remove_masked(pixels, mask))
        options = {"concat_latent_image": masked, "concat_mask": mask}
        latent = {"samples": self.host.encode(vae, pixels), **({"noise_mask": mask} if noise_mask else {})}
        return with_options(positive, **options), with_options(negative, **options), latent


class InstructPixToPixConditioning(Node):
    """Gives an InstructPix2Pix model the image that the prompt tells it to change."""

    CATEGORY = "conditioning/instructpix2pix"
    RETURN_TYPES = InpaintModelConditioning.RETURN_TYPES
    RETURN_NAMES = InpaintModelConditioning.RETURN_NAMES
    INPUTS = (*PROMPTS, VAE, PIXELS)

    def run(
        self, positive: Conditioning, negative: Conditioning, vae: Vae, pixels: Tensor
    ) -> tuple[Conditioning, Conditioning, Latent]:
        """-> CONDITIONING, CONDITIONING, empty LATENT of the image's size."""
        picture = self.host.encode(vae, pixels)
        halves = [with_options(half, concat_latent_image=picture) for half in (positive, negative)]
        return halves[0], halves[1], {"samples": torch.zeros_like(picture)}


def fit_mask(pixels: Tensor, mask: Tensor, vae: Any) -> tuple[Tensor, Tensor]:
    """IMAGE (B, H, W, 3) and mask (B, 1, H, W) of the image's size, both cropped to what the autoencoder divides."""
    factor = FACTOR if vae is None else vae.factor
    mask = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), size=pixels.shape[1:3], mode="bilinear")
    mask = crop_to_multiple(mask.movedim(1, -1), factor).movedim(-1, 1)
    return crop_to_multiple(pixels[..., :3], factor), mask


def remove_masked(pixels: Tensor, mask: Tensor) -> Tensor:
    """IMAGE (B, H, W, 3) with gray where the mask (B, 1, H, W) is above 0.5."""
    return (pixels - 0.5) * (1.0 - mask.round().movedim(1, -1)) + 0.5


def grow(mask: Tensor, pixels: int) -> Tensor:
    """A mask (B, 1, H, W) of 0 and 1, with each 1 widened to a square of side `pixels`."""
    if pixels <= 1:
        return mask
    # An even side makes the result one pixel larger, which is cut off.
    wide = F.max_pool2d(mask, pixels, stride=1, padding=pixels // 2)
    return wide[:, :, : mask.shape[2], : mask.shape[3]]
