"""The units of control that Prompt Edit makes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..controlnet_core.errors import ShapeError, ValueRangeError
from ..controlnet_core.models.prompt_edit import PromptEdit
from ..controlnet_core.models.prompt_words import Alignment
from .values import Conditioning

ROUNDING = 1e-3
"""Two encodings of one prompt differ by less, relative to the largest value."""


def check_source(positive: Conditioning, text: Tensor, prompt: str) -> None:
    """Raise ValueRangeError if no part of a CONDITIONING is this prompt's text (1, tokens, width)."""
    for given, _ in positive:
        if given.shape == text.shape and bool((given - text).abs().max() <= ROUNDING * text.abs().max()):
            return
    raise ValueRangeError(
        f"positive was not encoded from the prompt {prompt[:100]!r} by this CLIP: write the prompt of the node that "
        "encodes it, word for word, and link the same CLIP"
    )


def edit_stages(
    text: Tensor, edited: Tensor, alignment: Alignment, positions: tuple[float, float, float]
) -> Iterator[tuple[PromptEdit, float, float]]:
    """Nets with their windows. positions: start, end of the kept places, end.

    First the edited words act in the places of the prompt's, then by themselves, both with the words' weights.
    Raises ShapeError for a text encoder whose tokens are not CLIP's, ValueRangeError for an end before the start.
    """
    start, keep, end = positions
    if start > end:
        raise ValueRangeError(f"the edit starts at {start:g} and ends at {end:g}, before it begins: swap them")
    if (text.shape[1], edited.shape[1]) != tuple(alignment.moved.shape):
        raise ShapeError(
            f"the encoded prompt has {text.shape[1]} tokens, expected {len(alignment.moved)}: Prompt Edit works with "
            "the text encoders of Stable Diffusion 1, 2 and XL"
        )
    if start < keep:
        yield PromptEdit(text, edited, alignment.moved, alignment.added), start, min(keep, end)
    if keep < end:
        weighted = torch.diag(alignment.weights)
        yield PromptEdit(edited, edited, weighted, torch.zeros(len(weighted))), max(start, keep), end
