"""Our text encoder inside ComfyUI's CLIP.

ComfyUI's CLIP class keeps its hooks, schedules, layer choice and memory; ours are the two things it asks
for: a tokenizer, and a module that turns tokens into states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ...controlnet_core.models.prompt import Section
from ...controlnet_core.models.text_encoder import DualTextEncoder, TextEncoder

KEY = "l"
"""Where ComfyUI looks for the tokens of SD1's text encoder."""


def own_clip(encoder: TextEncoder | DualTextEncoder) -> Any:
    """ComfyUI's CLIP around an encoder."""
    assert isinstance(encoder, TextEncoder)  # ComfyUI itself loads SDXL, the only kind with two encoders
    target = comfy.supported_models_base.ClipTarget(
        lambda **_: OwnTokenizer(encoder),
        lambda **options: OwnTextModel(encoder).to(options.get("device")),
    )
    return comfy.sd.CLIP(target, parameters=sum(p.numel() for p in encoder.parameters()))


class OwnTokenizer:
    """Prompts to tokens in ComfyUI's form: {"l": sections of (id, weight)}."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> dict[str, Any]:
        """Sections of 77 (id, weight), or (id, weight, 0) where the caller wants the place of the word."""
        sections = self.encoder.sections(text)
        extra = (0,) if return_word_ids else ()
        return {KEY: [[(i, w, *extra) for i, w in zip(c.ids, c.weights, strict=True)] for c in sections]}

    def untokenize(self, token_weight_pair: list[tuple[int, float]]) -> list[tuple[tuple[int, float], str]]:
        """Each token with its text."""
        decode = self.encoder.tokenizer.decode
        return [(pair, decode([pair[0]])) for pair in token_weight_pair]

    def state_dict(self) -> dict[str, Any]:
        """Nothing is saved with a tokenizer."""
        return {}


class OwnTextModel(nn.Module):
    """Tokens to states, by our encoder in float32; it is small."""

    dtypes = frozenset({torch.float32})

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder.float()
        self.layer: int | None = None

    def reset_clip_options(self) -> None:
        """Back to the last layer."""
        self.layer = None

    def set_clip_options(self, options: Mapping[str, Any]) -> None:
        """The layer to stop at (-1 is the last); there is no projection to leave out."""
        layer = options.get("layer", self.layer)
        self.layer = layer if layer is None or layer < 0 else None

    def encode_token_weights(self, tokens: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Tokens -> states (1, 77 * sections, width) and pooled (1, width), where ComfyUI keeps results."""
        encoder = self.encoder if self.layer is None else self.encoder.with_clip_skip(self.layer)
        sections = [Section(tuple(int(p[0]) for p in row), tuple(float(p[1]) for p in row)) for row in tokens[KEY]]
        hidden, pooled = encoder.encode_sections(sections)
        where = comfy.model_management.intermediate_device()
        return hidden.to(where), pooled.to(where)
