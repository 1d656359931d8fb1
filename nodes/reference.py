"""The node that takes over the look of a picture without a trained net."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .fields import Output, choice, image, mask, optional, prompts, share, vae, window
from .node import Node
from .values import Conditioning, ControlSpec, Halves, UnitOptions

MODES = ("attention", "adain", "attention+adain")
"""The same as `models.reference.MODES`, which is not imported: ComfyUI imports this file at its start."""
NAME = "reference"


class ReferenceControl(Node):
    """Makes the generated image take over the look of a reference image: its subject, colours and style. Needs no model
    file. Each step runs the UNet once more, on the reference.
    """

    DISPLAY_NAME = "Reference Control"
    CATEGORY = "ControlNet Core/control"
    SEARCH_ALIASES = ["reference only", "reference_only", "reference adain", "style transfer", "style fidelity"]
    INPUTS = (
        *prompts(),
        vae("vae", "The VAE of the checkpoint; it encodes the reference."),
        image(
            "image", "The reference: one image, or one for each image of the batch. Use about the size of the result."
        ),
        choice(
            "mode",
            list(MODES),
            "attention: the image also attends to the reference (reference_only). adain: feature maps get the mean and "
            "contrast of those of the reference (reference_adain): colours and mood. attention+adain: both.",
            "attention",
        ),
        share("strength", 1.0, "How much is taken over. 0 turns the node off at no cost."),
        share(
            "style_fidelity",
            0.5,
            "How closely the style is followed: at 1 the negative half of the guidance does not see the reference, "
            "which enlarges its effect; at 0 both halves see it. Too much may look overdone.",
        ),
        *window(
            "Where the reference starts to act: 0 is pure noise, 1 is the finished image.",
            "Where the reference stops acting. Early steps decide the layout, late steps the details.",
        ),
        *optional(mask("mask", "The reference acts where the mask is white; without a mask it acts everywhere.")),
    )
    OUTPUTS = (
        Output("CONDITIONING", "positive", "The prompt with the reference."),
        Output("CONDITIONING", "negative", "The negative prompt, with what style_fidelity leaves of the reference."),
    )

    def run(
        self, positive: Conditioning, negative: Conditioning, vae: Any, image: Tensor, mode: str, strength: float,
        style_fidelity: float, start_percent: float, end_percent: float, mask: Tensor | None = None,
    ) -> Halves:  # fmt: skip
        """-> CONDITIONING, CONDITIONING."""
        from ..controlnet_core.models.reference import Reference

        latent = self.host.encode(vae, image)
        spec = ControlSpec(
            self.host.control_of(Reference(mode), NAME), latent.movedim(1, -1), strength, start_percent, end_percent,
            mask=mask, options=UnitOptions(negative=1.0 - style_fidelity), name=NAME,
        )  # fmt: skip
        return self.host.apply_control(positive, negative, [spec])
