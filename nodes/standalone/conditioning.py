"""Native nodes on CONDITIONING: encoding, combining, areas, masks, windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..host import Node
from ..values import Conditioning

MAX_SIDE = 16384
STRENGTH = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01})


def with_options(conditioning: Conditioning, **options: Any) -> Conditioning:
    """Each entry with these options set."""
    return [[text, {**old, **options}] for text, old in conditioning]


class CLIPTextEncode(Node):
    """A prompt."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Encodes a prompt with the text encoder, to guide the model."
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        text = ("STRING", {"multiline": True, "dynamicPrompts": True})
        return {"required": {"text": text, "clip": ("CLIP",)}}

    def run(self, text: str, clip: Any) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        return (self.host.encode_prompt(clip, text),)


class ConditioningCombine(Node):
    """Both at once: their predictions are averaged."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Uses both: what the model predicts for each is averaged."
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning_1": ("CONDITIONING",), "conditioning_2": ("CONDITIONING",)}}

    def run(self, conditioning_1: Conditioning, conditioning_2: Conditioning) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        return ([*conditioning_1, *conditioning_2],)


class ConditioningAverage(Node):
    """A mixture of two texts."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Mixes the encoded texts themselves: strength 1 is the first alone."
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        share = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        return {
            "required": {
                "conditioning_to": ("CONDITIONING",),
                "conditioning_from": ("CONDITIONING",),
                "conditioning_to_strength": share,
            }
        }

    def run(
        self, conditioning_to: Conditioning, conditioning_from: Conditioning, conditioning_to_strength: float
    ) -> tuple[Conditioning]:
        """-> CONDITIONING; of `conditioning_from` the first entry counts."""
        other, other_options = conditioning_from[0]
        share = conditioning_to_strength
        result = []
        for text, options in conditioning_to:
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


class ConditioningConcat(Node):
    """One text after the other."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Reads one text after the other, as one longer text."
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning_to": ("CONDITIONING",), "conditioning_from": ("CONDITIONING",)}}

    def run(self, conditioning_to: Conditioning, conditioning_from: Conditioning) -> tuple[Conditioning]:
        """-> CONDITIONING; of `conditioning_from` the first entry counts."""
        tail = conditioning_from[0][0]
        return ([[torch.cat((text, tail), dim=1), {**options}] for text, options in conditioning_to],)


class ConditioningSetArea(Node):
    """A rectangle in pixels."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Limits a prompt to a rectangle of the picture, in pixels."
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = ("INT", {"default": 64, "min": 64, "max": MAX_SIDE, "step": 8})
        corner = ("INT", {"default": 0, "min": 0, "max": MAX_SIDE, "step": 8})
        box = {"width": side, "height": side, "x": corner, "y": corner}
        return {"required": {"conditioning": ("CONDITIONING",), **box, "strength": STRENGTH}}

    def run(
        self, conditioning: Conditioning, width: int, height: int, x: int, y: int, strength: float
    ) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        area = (height // 8, width // 8, y // 8, x // 8)
        return (with_options(conditioning, area=area, strength=strength, set_area_to_bounds=False),)


class ConditioningSetAreaPercentage(Node):
    """A rectangle in shares of the picture."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Limits a prompt to a rectangle of the picture, in shares of its sides."
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        part = {"min": 0, "max": 1.0, "step": 0.01}
        side, corner = ("FLOAT", {"default": 1.0, **part}), ("FLOAT", {"default": 0, **part})
        box = {"width": side, "height": side, "x": corner, "y": corner}
        return {"required": {"conditioning": ("CONDITIONING",), **box, "strength": STRENGTH}}

    def run(
        self, conditioning: Conditioning, width: float, height: float, x: float, y: float, strength: float
    ) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        area = ("percentage", height, width, y, x)
        return (with_options(conditioning, area=area, strength=strength, set_area_to_bounds=False),)


class ConditioningSetAreaStrength(Node):
    """How much a prompt counts."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Sets how much a prompt counts beside the others."
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",), "strength": STRENGTH}}

    def run(self, conditioning: Conditioning, strength: float) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        return (with_options(conditioning, strength=strength),)


class ConditioningSetMask(Node):
    """Where a prompt counts."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Limits a prompt to where a mask is white."
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "mask": ("MASK",),
                "strength": STRENGTH,
                "set_cond_area": (["default", "mask bounds"],),
            }
        }

    def run(self, conditioning: Conditioning, mask: Tensor, strength: float, set_cond_area: str) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        mask = mask[None] if mask.ndim < 3 else mask
        bounds = set_cond_area != "default"
        return (with_options(conditioning, mask=mask, set_area_to_bounds=bounds, mask_strength=strength),)


class ConditioningZeroOut(Node):
    """Nothing said."""

    CATEGORY = "advanced/conditioning"
    DESCRIPTION = "Replaces the encoded text by zeros."
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def run(self, conditioning: Conditioning) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        result = []
        for text, options in conditioning:
            pooled = options.get("pooled_output")
            zeroed = {} if pooled is None else {"pooled_output": torch.zeros_like(pooled)}
            result.append([torch.zeros_like(text), {**options, **zeroed}])
        return (result,)


class ConditioningSetTimestepRange(Node):
    """When a prompt counts."""

    CATEGORY = "advanced/conditioning"
    DESCRIPTION = "Limits a prompt to a part of the sampling: 0 is the start, 1 the end."
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        part = {"min": 0.0, "max": 1.0, "step": 0.001}
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "start": ("FLOAT", {"default": 0.0, **part}),
                "end": ("FLOAT", {"default": 1.0, **part}),
            }
        }

    def run(self, conditioning: Conditioning, start: float, end: float) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        return (with_options(conditioning, start_percent=start, end_percent=end),)


NODES: dict[str, type] = {
    "CLIPTextEncode": CLIPTextEncode,
    "ConditioningCombine": ConditioningCombine,
    "ConditioningAverage": ConditioningAverage,
    "ConditioningConcat": ConditioningConcat,
    "ConditioningSetArea": ConditioningSetArea,
    "ConditioningSetAreaPercentage": ConditioningSetAreaPercentage,
    "ConditioningSetAreaStrength": ConditioningSetAreaStrength,
    "ConditioningSetMask": ConditioningSetMask,
    "ConditioningZeroOut": ConditioningZeroOut,
    "ConditioningSetTimestepRange": ConditioningSetTimestepRange,
}
