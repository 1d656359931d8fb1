"""The node that encodes a prompt and a negative prompt."""

from __future__ import annotations

from typing import Any

from .fields import Output, clip, prompt
from .node import Node
from .values import Conditioning


class EncodePrompt(Node):
    """Encodes a prompt and a negative prompt. (words:1.3) increases the weight of words, (words:0.7) decreases it. Long
    prompts are encoded in chunks of 75 tokens.
    """

    DISPLAY_NAME = "Encode Prompt"
    CATEGORY = "ControlNet Core/prompt"
    SEARCH_ALIASES = ["text", "clip text encode", "negative prompt"]
    INPUTS = (
        clip("clip", "The text encoder of the checkpoint."),
        prompt("prompt", "What the image should show.", ""),
        prompt("negative_prompt", "What the image should not show; may be empty.", ""),
    )
    OUTPUTS = (
        Output("CONDITIONING", "positive", "The encoded prompt."),
        Output("CONDITIONING", "negative", "The encoded negative prompt."),
    )

    def run(self, clip: Any, prompt: str, negative_prompt: str) -> tuple[Conditioning, Conditioning]:
        """-> CONDITIONING of the prompt, CONDITIONING of the negative prompt."""
        return self.host.encode_prompt(clip, prompt), self.host.encode_prompt(clip, negative_prompt)
