"""The node that makes a CONTROL_NET of ComfyUI's controls for diffusion transformers."""

from __future__ import annotations

from typing import Any

from .fields import Output, image, mask, optional, socket, vae
from .node import Node


class ModelPatchControlNet(Node):
    """Turns a model patch for Qwen-Image (DiffSynth) or Z-Image (Fun) into a ControlNet for Apply ControlNet, which
    adds a window, a strength schedule, a mask and a factor for each half of the guidance. Works only inside ComfyUI.
    """

    DISPLAY_NAME = "Model Patch as ControlNet"
    CATEGORY = "ControlNet Core/load"
    SEARCH_ALIASES = ["qwen image controlnet", "z-image controlnet", "diffsynth", "fun controlnet"]
    INPUTS = (
        socket("MODEL_PATCH", "model_patch", "The control, from Load Model Patch."),
        vae("vae", "The VAE of the model; it encodes the hint."),
        *optional(
            image("inpaint_image", "The image to inpaint, for controls that were trained for inpainting."),
            mask("inpaint_mask", "White where to paint, for controls that were trained for inpainting."),
        ),
    )
    OUTPUTS = (Output("CONTROL_NET", "control_net", "The control, for Apply ControlNet or Control Unit."),)

    def run(self, model_patch: Any, vae: Any, inpaint_image: Any = None, inpaint_mask: Any = None) -> tuple[Any]:
        """-> CONTROL_NET."""
        return (self.host.model_patch_control(model_patch, vae, inpaint_image, inpaint_mask),)
