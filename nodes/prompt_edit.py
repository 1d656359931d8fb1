"""The node that edits words of a prompt and keeps the picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .fields import Output, clip, conditioning, factor, mask, optional, share, text
from .node import Node, with_text
from .values import Conditioning, ControlSpec, UnitOptions

NAME = "prompt edit"
EXAMPLE = "red -> blue"


class PromptEdit(Node):
    """Edits words of the prompt and keeps the rest of the picture: swaps words, weighs, adds or removes them
    (prompt-to-prompt). Sample with the same seed and ControlNets as the unedited picture.
    """

    DISPLAY_NAME = "Prompt Edit"
    CATEGORY = "ControlNet Core/prompt"
    SEARCH_ALIASES = ["prompt to prompt", "prompt-to-prompt", "p2p", "word swap", "cross attention control"]
    INPUTS = (
        conditioning("positive", "The encoded prompt, with its ControlNets."),
        conditioning("negative", "The encoded negative prompt. Edits do not change it."),
        clip("clip", "The text encoder of the checkpoint; it encodes the edited prompt."),
        text("prompt", "The prompt that `positive` was encoded from, word for word.", multiline=True),
        text(
            "edits",
            "One line for each edit. 'red -> blue' swaps words, 'ball: 1.5' weighs one (0 removes its effect, below 0 "
            "reverses it), 'red -> blue: 1.5' does both, 'a ball -> a shiny ball' adds a word. Empty: nothing changes.",
            EXAMPLE,
            multiline=True,
        ),
        factor("strength", tooltip="How much of the edit acts. 0 turns the node off."),
        share(
            "start_percent",
            0.2,
            "Where the edit starts: 0 is pure noise, 1 is the finished image. Before it the unedited prompt decides "
            "the layout. A later start keeps more of the image and changes less.",
            step=0.001,
        ),
        share("end_percent", 1.0, "Where the edit ends.", step=0.001),
        share(
            "keep_places_until",
            0.5,
            "Until this position the new words act in the places of the old words. After it they choose their own "
            "places, which shows them more clearly.",
        ),
        *optional(mask("mask", "The edit acts where the mask is white; without a mask it acts everywhere.")),
    )
    OUTPUTS = (
        Output("CONDITIONING", "positive", "The prompt with the edit."),
        Output("CONDITIONING", "negative", "The negative prompt, for the same sampler."),
        Output("STRING", "edited_prompt", "The edited prompt."),
    )

    def run(
        self, positive: Conditioning, negative: Conditioning, clip: Any, prompt: str, edits: str, strength: float,
        start_percent: float, end_percent: float, keep_places_until: float, mask: Tensor | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """-> CONDITIONING, CONDITIONING, the edited prompt. Raises ValueRangeError."""
        from ..controlnet_core.models.prompt_words import align, read_edits
        from .prompt_edit_units import check_source, edit_stages

        edited, alignment = align(prompt, read_edits(edits))
        if alignment.changes_nothing:
            return with_text(edited, positive, negative, edited)
        texts = [self.host.encode_prompt(clip, words)[0][0] for words in (prompt, edited)]
        check_source(positive, texts[0], prompt)
        specs = [
            ControlSpec(
                self.host.control_of(net, NAME), torch.zeros(1, 8, 8, 3), strength, start, end, mask=mask,
                options=UnitOptions(negative=0.0), name=NAME,
            )
            for net, start, end in edit_stages(
                texts[0], texts[1], alignment, (start_percent, keep_places_until, end_percent)
            )
        ]  # fmt: skip
        return with_text(edited, *self.host.apply_control(positive, negative, specs), edited)
