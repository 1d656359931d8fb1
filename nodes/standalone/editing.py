"""Native nodes for models that read a picture beside the latent: inpainting and InstructPix2Pix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..host import Node
from ..values import Conditioning, Latent, Vae
from .autoencoder import crop_to_multiple
from .conditioning import with_options

RESULT = (("CONDITIONING", "CONDITIONING", "LATENT"), ("positive", "negative", "latent"))


class InpaintModelConditioning(Node):
    """A picture with a part of it to be made anew, for models that were trained to do that."""

    CATEGORY = "conditioning/inpaint"
    DESCRIPTION = "Shows an inpainting model the picture with the masked part taken out, and the mask."
    RETURN_TYPES, RETURN_NAMES = RESULT

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        both = {"positive": ("CONDITIONING",), "negative": ("CONDITIONING",)}
        picture = {"vae": ("VAE",), "pixels": ("IMAGE",), "mask": ("MASK",)}
        tip = "Sample inside the mask only; without it the whole picture may change."
        return {"required": {**both, **picture, "noise_mask": ("BOOLEAN", {"default": True, "tooltip": tip})}}

    def run(
        self,
        positive: Conditioning,
        negative: Conditioning,
        pixels: Tensor,
        vae: Vae,
        mask: Tensor,
        noise_mask: bool = True,
    ) -> tuple[Conditioning, Conditioning, Latent]:
        """-> CONDITIONING, CONDITIONING, LATENT of the whole picture."""
        factor = 8 if vae is None else vae.factor
        mask = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), size=pixels.shape[1:3], mode="bilinear")
        mask = crop_to_multiple(mask.movedim(1, -1), factor)
        pixels = crop_to_multiple(pixels[..., :3], factor)
        emptied = (pixels - 0.5) * (1.0 - mask.round()) + 0.5
        mask = mask.movedim(-1, 1)
        beside = {"concat_latent_image": self.host.encode(vae, emptied), "concat_mask": mask}
        latent = {"samples": self.host.encode(vae, pixels), **({"noise_mask": mask} if noise_mask else {})}
        return with_options(positive, **beside), with_options(negative, **beside), latent


class InstructPixToPixConditioning(Node):
    """A picture to be edited as the prompt says."""

    CATEGORY = "conditioning/instructpix2pix"
    DESCRIPTION = "Shows an InstructPix2Pix model the picture that the prompt tells it to change."
    RETURN_TYPES, RETURN_NAMES = RESULT

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        both = {"positive": ("CONDITIONING",), "negative": ("CONDITIONING",)}
        return {"required": {**both, "vae": ("VAE",), "pixels": ("IMAGE",)}}

    def run(
        self, positive: Conditioning, negative: Conditioning, vae: Vae, pixels: Tensor
    ) -> tuple[Conditioning, Conditioning, Latent]:
        """-> CONDITIONING, CONDITIONING, empty LATENT of the picture's size."""
        picture = self.host.encode(vae, pixels)
        halves = [with_options(half, concat_latent_image=picture) for half in (positive, negative)]
        return halves[0], halves[1], {"samples": torch.zeros_like(picture)}


NODES: dict[str, type] = {
    "InpaintModelConditioning": InpaintModelConditioning,
    "InstructPixToPixConditioning": InstructPixToPixConditioning,
}
