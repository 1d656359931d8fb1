"""Native nodes on latents."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..host import Node
from ..values import Latent
from .resize import CROPS, LATENT_METHODS, resize

MAX_SIDE = 16384


class EmptyLatentImage(Node):
    """Nothing yet."""

    CATEGORY = "latent"
    DESCRIPTION = "Empty latents, to paint from nothing. Width and height are in pixels."
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = ("INT", {"default": 512, "min": 16, "max": MAX_SIDE, "step": 8})
        batch = ("INT", {"default": 1, "min": 1, "max": 4096})
        return {"required": {"width": side, "height": side, "batch_size": batch}}

    def run(self, width: int, height: int, batch_size: int = 1) -> tuple[Latent]:
        """-> LATENT of zeros."""
        return ({"samples": torch.zeros(batch_size, 4, height // 8, width // 8)},)


class LatentUpscale(Node):
    """To a size."""

    CATEGORY = "latent"
    DESCRIPTION = "Resizes latents to a width and height in pixels; 0 keeps the aspect."
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = ("INT", {"default": 512, "min": 0, "max": MAX_SIDE, "step": 8})
        return {
            "required": {
                "samples": ("LATENT",),
                "upscale_method": (list(LATENT_METHODS),),
                "width": side,
                "height": side,
                "crop": (list(CROPS),),
            }
        }

    def run(self, samples: Latent, upscale_method: str, width: int, height: int, crop: str) -> tuple[Latent]:
        """-> LATENT."""
        if width == 0 and height == 0:
            return (samples,)
        x = samples["samples"]
        if width == 0:
            width = round(x.shape[-1] * max(64, height) / x.shape[-2])
        elif height == 0:
            height = round(x.shape[-2] * max(64, width) / x.shape[-1])
        cells = (max(64, width) // 8, max(64, height) // 8)
        return ({**samples, "samples": resize(x, *cells, upscale_method, crop)},)


class LatentUpscaleBy(Node):
    """By a factor."""

    CATEGORY = "latent"
    DESCRIPTION = "Resizes latents by a factor."
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT",),
                "upscale_method": (list(LATENT_METHODS),),
                "scale_by": ("FLOAT", {"default": 1.5, "min": 0.01, "max": 8.0, "step": 0.01}),
            }
        }

    def run(self, samples: Latent, upscale_method: str, scale_by: float) -> tuple[Latent]:
        """-> LATENT."""
        x = samples["samples"]
        width, height = round(x.shape[-1] * scale_by), round(x.shape[-2] * scale_by)
        return ({**samples, "samples": resize(x, width, height, upscale_method)},)


class SetLatentNoiseMask(Node):
    """Where to paint."""

    CATEGORY = "latent/inpaint"
    DESCRIPTION = "Paints only where the mask is white; the rest of the latent is kept."
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "mask": ("MASK",)}}

    def run(self, samples: Latent, mask: Tensor) -> tuple[Latent]:
        """-> LATENT."""
        return ({**samples, "noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])},)


class LatentFromBatch(Node):
    """Some of a batch."""

    CATEGORY = "latent/batch"
    DESCRIPTION = "Takes some latents out of a batch, with the noise that they would have had in it."
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT",),
                "batch_index": ("INT", {"default": 0, "min": 0, "max": 63}),
                "length": ("INT", {"default": 1, "min": 1, "max": 64}),
            }
        }

    def run(self, samples: Latent, batch_index: int, length: int) -> tuple[Latent]:
        """-> LATENT with "batch_index"."""
        x = samples["samples"]
        first = min(len(x) - 1, batch_index)
        rows = slice(first, first + min(len(x) - first, length))
        indices = samples.get("batch_index", list(range(len(x))))[rows]
        result = {**samples, "samples": x[rows].clone(), "batch_index": indices}
        mask = samples.get("noise_mask")
        if mask is not None and len(mask) > 1:
            repeats = math.ceil(len(x) / len(mask))
            result["noise_mask"] = mask.repeat(repeats, 1, 1, 1)[: len(x)][rows]
        return (result,)


class RepeatLatentBatch(Node):
    """More of the same."""

    CATEGORY = "latent/batch"
    DESCRIPTION = "Repeats a batch of latents; each gets noise of its own."
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        amount = ("INT", {"default": 1, "min": 1, "max": 64})
        return {"required": {"samples": ("LATENT",), "amount": amount}}

    def run(self, samples: Latent, amount: int) -> tuple[Latent]:
        """-> LATENT."""
        x = samples["samples"]
        result = {**samples, "samples": x.repeat(amount, 1, 1, 1)}
        mask = samples.get("noise_mask")
        if mask is not None and len(mask) > 1:
            result["noise_mask"] = mask.repeat(amount, 1, 1, 1)
        indices = samples.get("batch_index")
        if indices is not None:
            span = max(indices) - min(indices) + 1
            result["batch_index"] = [index + turn * span for turn in range(amount) for index in indices]
        return (result,)


NODES: dict[str, type] = {
    "EmptyLatentImage": EmptyLatentImage,
    "LatentUpscale": LatentUpscale,
    "LatentUpscaleBy": LatentUpscaleBy,
    "LatentFromBatch": LatentFromBatch,
    "RepeatLatentBatch": RepeatLatentBatch,
    "SetLatentNoiseMask": SetLatentNoiseMask,
}
