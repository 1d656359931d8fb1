"""ComfyUI's nodes on CONDITIONING: encoding, combining, areas, masks, time ranges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..fields import choice, clip, conditioning, factor, mask, number, prompt, share, side
from ..node import Node
from ..values import Conditioning

CONDITIONING = conditioning("conditioning")
STRENGTH = factor("strength")
TO_FROM = (conditioning("conditioning_to"), conditioning("conditioning_from"))


def with_options(conditioning: Conditioning, **options: Any) -> Conditioning:
    """Set these options on each entry."""
    return [[text, {**old, **options}] for text, old in conditioning]


class ConditioningNode(Node):
    """Base of the nodes that return a CONDITIONING."""

    CATEGORY = "conditioning"
    RETURN_TYPES = ("CONDITIONING",)


class CLIPTextEncode(ConditioningNode):
    """Encodes a prompt with the text encoder, to guide the model."""

    INPUTS = (prompt("text"), clip("clip"))

    def run(self, text: str, clip: Any) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        return (self.host.encode_prompt(clip, text),)


class ConditioningCombine(ConditioningNode):
    """Uses both prompts: the predictions of the model for each of them are averaged."""

    INPUTS = (conditioning("conditioning_1"), conditioning("conditioning_2"))

    def run(self, conditioning_1: Conditioning, conditioning_2: Conditioning) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        return ([*conditioning_1, *conditioning_2],)


class ConditioningAverage(ConditioningNode):
    """Mixes two encoded texts. Strength 1 is the first text alone."""

    INPUTS = (*TO_FROM, share("conditioning_to_strength", 1.0))

    def run(
        self, conditioning_to: Conditioning, conditioning_from: Conditioning, conditioning_to_strength: float
    ) -> tuple[Conditioning]:
        """-> CONDITIONING. Only the first entry of `conditioning_from` is used."""
        other, other_options = conditioning_from[0]
        share = conditioning_to_strength
        result = []
        for text, options in conditioning_to:
            # The texts may have different lengths: as in ComfyUI, the second is cut or filled up with zeros.
            fitted = torch.zeros_like(text)
            length = min(text.shape[1], other.shape[1])
            fitted[:, :length] = other[:, :length]
            mixed = {**options}
            pooled, other_pooled = options.get("pooled_output"), other_options.get("pooled_output")
            if other_pooled is not None:
                own = other_pooled if pooled is None else pooled
                mixed["pooled_output"] = own * share + other_pooled * (1.0 - share)
            result.append([text * share + fitted * (1.0 - share), mixed])
        return (result,)


class ConditioningConcat(ConditioningNode):
    """Appends one encoded text to another, as one longer text."""

    INPUTS = TO_FROM

    def run(self, conditioning_to: Conditioning, conditioning_from: Conditioning) -> tuple[Conditioning]:
        """-> CONDITIONING. Only the first entry of `conditioning_from` is used."""
        tail = conditioning_from[0][0]
        return ([[torch.cat((text, tail), dim=1), {**options}] for text, options in conditioning_to],)


class ConditioningSetArea(ConditioningNode):
    """Limits a prompt to a rectangle of the image, in pixels."""

    INPUTS = (
        CONDITIONING, side("width", 64, 64), side("height", 64, 64), side("x", 0), side("y", 0), STRENGTH
    )  # fmt: skip

    def run(
        self, conditioning: Conditioning, width: int, height: int, x: int, y: int, strength: float
    ) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        # Areas are stored in latent cells of 8 pixels. A rectangle that a mask set before must no longer count.
        area = (height // 8, width // 8, y // 8, x // 8)
        return (with_options(conditioning, area=area, strength=strength, set_area_to_bounds=False),)


class ConditioningSetAreaPercentage(ConditioningNode):
    """Limits a prompt to a rectangle of the image, in fractions of its sides."""

    INPUTS = (CONDITIONING, share("width", 1.0), share("height", 1.0), share("x", 0.0), share("y", 0.0), STRENGTH)

    def run(
        self, conditioning: Conditioning, width: float, height: float, x: float, y: float, strength: float
    ) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        # Resolved when the sampling starts, since only then the size of the latent is known.
        area = ("percentage", height, width, y, x)
        return (with_options(conditioning, area=area, strength=strength, set_area_to_bounds=False),)


class ConditioningSetAreaStrength(ConditioningNode):
    """Sets the weight of a prompt beside other prompts."""

    INPUTS = (CONDITIONING, STRENGTH)

    def run(self, conditioning: Conditioning, strength: float) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        return (with_options(conditioning, strength=strength),)


class ConditioningSetMask(ConditioningNode):
    """Limits a prompt to the white part of a mask."""

    INPUTS = (CONDITIONING, mask("mask"), STRENGTH, choice("set_cond_area", ["default", "mask bounds"]))

    def run(self, conditioning: Conditioning, mask: Tensor, strength: float, set_cond_area: str) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        # Some packs send masks without a batch dimension.
        mask = mask[None] if mask.ndim < 3 else mask
        bounds = set_cond_area != "default"
        return (with_options(conditioning, mask=mask, set_area_to_bounds=bounds, mask_strength=strength),)


class ConditioningZeroOut(ConditioningNode):
    """Replaces the encoded text by zeros."""

    CATEGORY = "advanced/conditioning"
    INPUTS = (CONDITIONING,)

    def run(self, conditioning: Conditioning) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        result = []
        for text, options in conditioning:
            pooled = options.get("pooled_output")
            # SDXL also reads the pooled text, which has to be zero as well.
            zeroed = {} if pooled is None else {"pooled_output": torch.zeros_like(pooled)}
            result.append([torch.zeros_like(text), {**options, **zeroed}])
        return (result,)


class ConditioningSetTimestepRange(ConditioningNode):
    """Limits a prompt to a part of the sampling: 0 is the start, 1 the end."""

    CATEGORY = "advanced/conditioning"
    INPUTS = (CONDITIONING, share("start", 0.0, step=0.001), share("end", 1.0, step=0.001))

    def run(self, conditioning: Conditioning, start: float, end: float) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        return (with_options(conditioning, start_percent=start, end_percent=end),)


# ---- SDXL, which also reads the size of the image

SDXL_SIZES = tuple(
    side(name, 0 if name.startswith("crop") else 1024, step=None)
    for name in ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
)


class CLIPTextEncodeSDXL(ConditioningNode):
    """Encodes a prompt for SDXL: one text for each of its text encoders, and the sizes that SDXL reads."""

    CATEGORY = "advanced/conditioning"
    INPUTS = (clip("clip"), *SDXL_SIZES, prompt("text_g"), prompt("text_l"))

    def run(self, clip: Any, text_g: str, text_l: str, **sizes: int) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        return (with_options(self.host.encode_prompt(clip, text_g, text_l), **sizes),)


class CLIPTextEncodeSDXLRefiner(ConditioningNode):
    """Encodes a prompt for SDXL's refiner: text, image size, and aesthetic score."""

    CATEGORY = "advanced/conditioning"
    INPUTS = (
        number("ascore", 6.0, 0.0, 1000.0), side("width", 1024, step=None), side("height", 1024, step=None),
        prompt("text"), clip("clip"),
    )  # fmt: skip

    def run(self, ascore: float, width: int, height: int, text: str, clip: Any) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        encoded = self.host.encode_prompt(clip, text)
        return (with_options(encoded, aesthetic_score=ascore, width=width, height=height),)
