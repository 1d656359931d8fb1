"""The node that prepares inpainting under control: hint, latent and mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .fields import Output, choice, control_net, factor, image, mask, number, optional, prompts, vae, window
from .node import Node
from .values import Conditioning, ControlSpec, Latent

ONLY, HARMONIOUS = "inpaint_only", "inpaint_global_harmonious"


class InpaintControl(Node):
    """Prepares inpainting with an inpaint ControlNet: the hint with the masked area marked, and the latent to start
    from. Sample it, decode it, and in the mode inpaint_only put the result into the image with Paste Back.
    """

    DISPLAY_NAME = "Inpaint Control"
    CATEGORY = "ControlNet Core/control"
    SEARCH_ALIASES = ["inpaint_only", "inpaint_global_harmonious", "inpaint global harmonious", "outpaint"]
    INPUTS = (
        *prompts(),
        vae("vae", "The VAE of the checkpoint; it encodes the image."),
        image("image", "The image to repaint."),
        mask("mask", "White where to repaint."),
        choice(
            "mode",
            [ONLY, HARMONIOUS],
            "inpaint_only: the rest stays as it is at every step. inpaint_global_harmonious: the whole image may "
            "change so that the new part fits; sample with a denoise below 1 to stay near the image.",
        ),
        factor("strength", tooltip="How much the ControlNet acts. 0 turns it off at no cost."),
        *window(
            "Where control starts: 0 is pure noise, 1 is the finished image.",
            "Where control ends.",
        ),
        number(
            "masked_value", -1.0, -1.0, 1.0,
            "How the hint marks masked pixels: -1 for the inpaint ControlNet of SD1.5, 0 (black) for Union ProMax.",
            step=1.0,
        ),
        *optional(
            control_net(
                "control_net", "A ControlNet for inpainting. Without one only the latent is prepared, for use with "
                "other ControlNets.",
            )
        ),
    )  # fmt: skip
    OUTPUTS = (
        Output("CONDITIONING", "positive", "The prompt with control."),
        Output("CONDITIONING", "negative", "The negative prompt with control."),
        Output("LATENT", "latent", "The encoded image, in the mode inpaint_only with the mask of what to sample."),
    )

    def run(
        self, positive: Conditioning, negative: Conditioning, vae: Any, image: Tensor, mask: Tensor, mode: str,
        strength: float, start_percent: float, end_percent: float, masked_value: float, control_net: Any = None,
    ) -> tuple[Conditioning, Conditioning, Latent]:  # fmt: skip
        """-> CONDITIONING, CONDITIONING, LATENT. Raises ValueRangeError for a mask without a white pixel."""
        from .inpaint_parts import as_encoded, cell_mask, inpaint_hint

        samples = self.host.encode(vae, image)
        pixels, where = as_encoded(image, mask, samples)
        if control_net is not None:
            hint = inpaint_hint(pixels, where, masked_value)
            spec = ControlSpec(control_net, hint, strength, start_percent, end_percent)
            positive, negative = self.host.apply_control(positive, negative, [spec])
        latent = {"samples": samples, "noise_mask": cell_mask(where)} if mode == ONLY else {"samples": samples}
        return positive, negative, latent
