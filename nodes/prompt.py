"""Prompt and negative prompt in one node."""

from __future__ import annotations

from typing import Any

from .host import Node
from .values import Conditioning


class EncodePrompt(Node):
    """Two texts in, two conditionings out."""

    DISPLAY_NAME = "Encode Prompt"
    CATEGORY = "ControlNet Core/prompt"
    DESCRIPTION = (
        "Turns what you want, and what you do not want, into conditionings. (words:1.3) weighs words up, "
        "(words:0.7) down; texts of any length are read in chunks of 75 tokens."
    )
    SEARCH_ALIASES = ["text", "clip text encode", "negative prompt"]
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = ("What the picture should show.", "What it should keep away from.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        text = {"multiline": True, "dynamicPrompts": True, "default": ""}
        return {
            "required": {
                "clip": ("CLIP", {"tooltip": "The text encoder of the checkpoint."}),
                "prompt": ("STRING", {**text, "tooltip": "What the picture should show."}),
                "negative_prompt": (
                    "STRING",
                    {**text, "tooltip": "What the picture should keep away from; may be empty."},
                ),
            }
        }

    def run(self, clip: Any, prompt: str, negative_prompt: str) -> tuple[Conditioning, Conditioning]:
        """-> CONDITIONING of the prompt, CONDITIONING of the negative prompt."""
        return self.host.encode_prompt(clip, prompt), self.host.encode_prompt(clip, negative_prompt)
