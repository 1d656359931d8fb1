"""ComfyUI's nodes that read pictures with CLIP, and models that are guided by them (Stable unCLIP, SDXL)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...controlnet_core.models.vision_encoder import ClipVisionModel, VisionOutput, prepare_pictures
from ..fields import choice, conditioning, files, image, number, share, socket
from ..node import Node
from ..values import Conditioning
from .values import Clip, Model, Vae

VISION = "CLIP_VISION"
OUTPUT = "CLIP_VISION_OUTPUT"


class CLIPVisionLoader(Node):
    """Loads CLIP's image encoder."""

    CATEGORY = "loaders"
    RETURN_TYPES = (VISION,)
    INPUTS = (files("clip_name", "clip_vision"),)

    def run(self, clip_name: str) -> tuple[ClipVisionModel]:
        """-> CLIP_VISION."""
        return (self.host.load_vision_encoder(self.host.find("clip_vision", clip_name)),)


class CLIPVisionEncode(Node):
    """Reads images with CLIP's image encoder."""

    CATEGORY = "conditioning"
    RETURN_TYPES = (OUTPUT,)
    INPUTS = (socket(VISION, "clip_vision"), image("image"), choice("crop", ["center", "none"]))

    def run(self, clip_vision: ClipVisionModel, image: Tensor, crop: str) -> tuple[VisionOutput]:
        """-> CLIP_VISION_OUTPUT, on the CPU."""
        runtime = self.host.runtime
        encoder = clip_vision.to(device=runtime.device, dtype=runtime.dtype)
        with torch.inference_mode():
            # Resized in float32 whatever the precision of the encoder is.
            pictures = prepare_pictures(image.to(runtime.device), encoder.config.side, crop=crop == "center")
            return (VisionOutput(*(found.float().cpu() for found in encoder(pictures.to(runtime.dtype)))),)


class unCLIPConditioning(Node):
    """Guides a model by images that CLIP read: Stable unCLIP 2.1, or SDXL in place of its pooled text."""

    CATEGORY = "conditioning"
    RETURN_TYPES = ("CONDITIONING",)
    INPUTS = (
        conditioning("conditioning"), socket(OUTPUT, "clip_vision_output"),
        number("strength", 1.0, -10.0, 10.0), share("noise_augmentation", 0.0),
    )  # fmt: skip

    def run(
        self, conditioning: Conditioning, clip_vision_output: VisionOutput, strength: float, noise_augmentation: float
    ) -> tuple[Conditioning]:
        """-> CONDITIONING. Several of these nodes in a row add their images."""
        if strength == 0:
            return (conditioning,)
        own: dict[str, Any] = {
            "clip_vision_output": clip_vision_output, "strength": strength, "noise_augmentation": noise_augmentation
        }  # fmt: skip
        key = "unclip_conditioning"
        return ([[text, {**options, key: [*options.get(key, ()), own]}] for text, options in conditioning],)


class unCLIPCheckpointLoader(Node):
    """Loads a checkpoint of Stable unCLIP: model, text encoder, autoencoder and image encoder."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", VISION)
    INPUTS = (files("ckpt_name", "checkpoints"),)

    def run(self, ckpt_name: str) -> tuple[Model, Clip | None, Vae | None, ClipVisionModel]:
        """-> MODEL, CLIP, VAE, CLIP_VISION."""
        path = self.host.find("checkpoints", ckpt_name)
        return (*self.host.load_checkpoint(path), self.host.load_vision_encoder(path))
