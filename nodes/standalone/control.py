"""ComfyUI's nodes that apply ControlNets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ...controlnet_core.models.union_types import UNION_CHOICES
from ..fields import choice, conditioning, control_net, factor, image, mask, optional, vae, window
from ..node import Node
from ..units import add_units
from ..values import Conditioning, ControlSpec, Halves
from .values import ControlNetHandle

CATEGORY = "conditioning/controlnet"
PROMPTS = (conditioning("positive"), conditioning("negative"))
NET, IMAGE, VAE = control_net("control_net"), image("image"), vae("vae")
STRENGTH = factor("strength")


class ControlNetApply(Node):
    """Makes an image follow a hint. The negative prompt is controlled the same way."""

    CATEGORY = CATEGORY
    DEPRECATED = True
    RETURN_TYPES = ("CONDITIONING",)
    INPUTS = (conditioning("conditioning"), NET, IMAGE, STRENGTH)

    def run(
        self, conditioning: Conditioning, control_net: ControlNetHandle, image: Tensor, strength: float
    ) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        # As in ComfyUI: nothing is applied, so not even the base model has to match.
        if strength == 0:
            return (conditioning,)
        unit = self.host.unit(ControlSpec(control_net, image, strength))
        return (add_units(conditioning, [unit], to_uncond=True),)


class ControlNetApplyAdvanced(Node):
    """Makes an image follow a hint, during a part of the sampling."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    INPUTS = (*PROMPTS, NET, IMAGE, STRENGTH, *window(), *optional(VAE))

    def run(
        self, positive: Conditioning, negative: Conditioning, control_net: ControlNetHandle, image: Tensor,
        strength: float, start_percent: float, end_percent: float, vae: Any = None, mask: Tensor | None = None,
    ) -> Halves:  # fmt: skip
        """-> CONDITIONING, CONDITIONING.

        As in ComfyUI, a window that ends before it starts contains no step. vae and mask are not used: only
        ControlNets of other base models read them.
        """
        if start_percent > end_percent:
            return positive, negative
        spec = ControlSpec(control_net, image, strength, start_percent, end_percent)
        return self.host.apply_control(positive, negative, [spec])


class ControlNetApplySD3(ControlNetApplyAdvanced):
    """The same node with the autoencoder as a required input."""

    DEPRECATED = True
    INPUTS = (*PROMPTS, NET, VAE, IMAGE, STRENGTH, *window())


class ControlNetInpaintingAliMamaApply(ControlNetApplyAdvanced):
    """The same node with a mask, for inpainting ControlNets of other base models.

    The inpainting ControlNets of Stable Diffusion read a hint that is made from image and mask: see Inpaint Hint.
    """

    INPUTS = (*PROMPTS, NET, VAE, IMAGE, mask("mask"), STRENGTH, *window())


class SetUnionControlNetType(Node):
    """Sets what the hint of a ControlNet Union shows; auto leaves it unset. Other ControlNets ignore it."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("CONTROL_NET",)
    INPUTS = (NET, choice("type", ["auto", *UNION_CHOICES]))

    def run(self, control_net: ControlNetHandle, type: str) -> tuple[ControlNetHandle]:
        """-> CONTROL_NET."""
        return (replace(control_net, kind="" if type == "auto" else type),)
