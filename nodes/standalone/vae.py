"""Native nodes between pictures and latents."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..host import Node
from ..values import Latent, Vae
from .autoencoder import crop_to_multiple


class VAEDecode(Node):
    """Latents to pictures."""

    CATEGORY = "latent"
    DESCRIPTION = "Decodes latents into pictures."
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}

    def run(self, samples: Latent, vae: Vae) -> tuple[Tensor]:
        """-> IMAGE."""
        return (self.host.decode(vae, samples["samples"]),)


class VAEDecodeTiled(Node):
    """Latents to large pictures, piece by piece."""

    CATEGORY = "_for_testing"
    DESCRIPTION = "Decodes latents into pictures in overlapping tiles, for pictures too large at once."
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT",),
                "vae": ("VAE",),
                "tile_size": ("INT", {"default": 512, "min": 64, "max": 4096, "step": 32}),
                "overlap": ("INT", {"default": 64, "min": 0, "max": 4096, "step": 32}),
                "temporal_size": ("INT", {"default": 64, "min": 8, "max": 4096, "step": 4}),
                "temporal_overlap": ("INT", {"default": 8, "min": 4, "max": 4096, "step": 4}),
            }
        }

    def run(
        self,
        samples: Latent,
        vae: Vae,
        tile_size: int,
        overlap: int = 64,
        temporal_size: int = 64,
        temporal_overlap: int = 8,
    ) -> tuple[Tensor]:
        """-> IMAGE. The temporal inputs are for video models and change nothing here."""
        overlap = min(overlap, tile_size // 4)
        factor = 8 if vae is None else vae.factor
        return (self.host.decode(vae, samples["samples"], tile_size // factor, overlap // factor),)


class VAEEncode(Node):
    """Pictures to latents."""

    CATEGORY = "latent"
    DESCRIPTION = "Encodes pictures into latents."
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}}

    def run(self, pixels: Tensor, vae: Vae) -> tuple[Latent]:
        """-> LATENT."""
        return ({"samples": self.host.encode(vae, pixels)},)


class VAEEncodeForInpaint(Node):
    """Pictures to latents, gray where something new is wanted."""

    CATEGORY = "latent/inpaint"
    DESCRIPTION = "Encodes pictures with the masked part taken out, for models made to fill it in."
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        grow = ("INT", {"default": 6, "min": 0, "max": 64, "step": 1})
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",), "mask": ("MASK",), "grow_mask_by": grow}}

    def run(self, pixels: Tensor, vae: Vae, mask: Tensor, grow_mask_by: int = 6) -> tuple[Latent]:
        """-> LATENT with a noise mask, grown by some pixels so that no seam is seen."""
        factor = 8 if vae is None else vae.factor
        mask = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), size=pixels.shape[1:3], mode="bilinear")
        pixels = crop_to_multiple(pixels[..., :3], factor)
        mask = crop_to_multiple(mask.movedim(1, -1), factor).round()
        emptied = (pixels - 0.5) * (1.0 - mask) + 0.5
        return ({"samples": self.host.encode(vae, emptied), "noise_mask": grow(mask.movedim(-1, 1), grow_mask_by)},)


def grow(mask: Tensor, pixels: int) -> Tensor:
    """A mask (B, 1, H, W) of 0 and 1, each 1 widened to a square of side `pixels`."""
    if pixels <= 1:
        return mask
    wide = F.max_pool2d(mask, pixels, stride=1, padding=pixels // 2)
    return wide[:, :, : mask.shape[2], : mask.shape[3]]


NODES: dict[str, type] = {
    "VAEDecode": VAEDecode,
    "VAEDecodeTiled": VAEDecodeTiled,
    "VAEEncode": VAEEncode,
    "VAEEncodeForInpaint": VAEEncodeForInpaint,
}
