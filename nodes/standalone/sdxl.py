"""Native nodes for SDXL's prompts, which say how large the picture is."""

from __future__ import annotations

from typing import Any

from ..host import Node
from ..values import Clip, Conditioning
from .conditioning import MAX_SIDE, with_options

TEXT = ("STRING", {"multiline": True, "dynamicPrompts": True})


def _side(default: int) -> tuple[str, dict[str, Any]]:
    return ("INT", {"default": default, "min": 0, "max": MAX_SIDE})


class CLIPTextEncodeSDXL(Node):
    """A prompt for each of SDXL's text encoders, with sizes."""

    CATEGORY = "advanced/conditioning"
    DESCRIPTION = "Encodes a prompt for SDXL: a text for each of its encoders, and the sizes that it is told."
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        sizes = {"width": 1024, "height": 1024, "crop_w": 0, "crop_h": 0, "target_width": 1024, "target_height": 1024}
        sides = {name: _side(default) for name, default in sizes.items()}
        return {"required": {"clip": ("CLIP",), **sides, "text_g": TEXT, "text_l": TEXT}}

    def run(self, clip: Clip | None, text_g: str, text_l: str, **sizes: int) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        return (with_options(self.host.encode_prompt(clip, text_g, text_l), **sizes),)


class CLIPTextEncodeSDXLRefiner(Node):
    """A prompt for SDXL's refiner, with size and score."""

    CATEGORY = "advanced/conditioning"
    DESCRIPTION = "Encodes a prompt for SDXL's refiner: text, size, and how much people should like the picture."
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        score = ("FLOAT", {"default": 6.0, "min": 0.0, "max": 1000.0, "step": 0.01})
        sides = {"width": _side(1024), "height": _side(1024)}
        return {"required": {"ascore": score, **sides, "text": TEXT, "clip": ("CLIP",)}}

    def run(self, ascore: float, width: int, height: int, text: str, clip: Clip | None) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        encoded = self.host.encode_prompt(clip, text)
        return (with_options(encoded, aesthetic_score=ascore, width=width, height=height),)


NODES: dict[str, type] = {
    "CLIPTextEncodeSDXL": CLIPTextEncodeSDXL,
    "CLIPTextEncodeSDXLRefiner": CLIPTextEncodeSDXLRefiner,
}
