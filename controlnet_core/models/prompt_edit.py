"""Prompt editing: the words of an edited prompt act where the words of the prompt would have acted.

Prompt-to-prompt (Hertz et al. 2022). A cross attention with queries q computes maps M = softmax(q K^T / sqrt(d)), one
for each token of the text, and puts out M V. Here keys come from the prompt P and values from the edited prompt P*:

    output = M(P) R V(P*) + M(P*) D V(P*)

R (tokens of P, tokens of P*) moves each token's map to the token that takes its place (word swap), multiplied by the
weight c of that word (re-weighting, the paper's c * M). D is diagonal: words that were added have no place in P and
attend by themselves (prompt refinement). Maps are not normalised again, as in the paper.

Values are linear in the text, V(P*) = W text*, so that R V(P*) = W (R text*): both terms are plain attentions whose
layer for values reads another text. No map has to be held, and every attention kernel will do.

The paper runs the unedited picture beside the edited one and takes M(P) from there. Here M(P) is computed at the
edited picture's own queries: one picture is sampled instead of two, in any sampler and batch. The seed and a ControlNet
keep the layout. There is nothing to train: the net below holds texts instead of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .control import BindContext, FixedInputs, Place, RowScale, TextControl
from .layers import AttentionChange


@dataclass(frozen=True)
class PromptEditConfig:
    """text_width: of the texts."""

    text_width: int


class _Fields(NamedTuple):
    keys: Tensor
    values: Tensor
    more_keys: Tensor | None
    more_values: Tensor | None
    scale: RowScale


class PromptEditChange(_Fields, AttentionChange):
    """The change of one transformer block.

    keys, values: (1, tokens of P, width), the text P and R text*. more_keys, more_values: (1, tokens of P*, width), the
    text P* and D text*; None if no word was added.
    """

    __slots__ = ()

    def text_output(self, output: Tensor, query: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """Replace the output for the prompt by that of the edited prompt."""
        asked = query[self.scale.rows]

        def read(text: Tensor) -> Tensor:
            return text.to(asked.dtype).expand(len(asked), -1, -1)

        def change(own: Tensor) -> Tensor:
            edited = attend(asked, read(self.keys), read(self.values))
            if self.more_keys is not None and self.more_values is not None:
                keys = read(self.more_keys)
                edited = edited + attend(asked, keys, read(self.more_values))
                # Each attention ends with a layer that adds its bias; of two, one is too many. Values of 0 show it.
                edited = edited - attend(asked[:, :1], keys, torch.zeros_like(keys))
            return edited - own

        return self.scale.add(output, change)


class PromptEdit(TextControl):
    """A prompt and its edited form. It reads no hint.

    prompt: (1, tokens of P, width). edited: (1, tokens of P*, width). moved: R, (tokens of P, tokens of P*).
    added: the diagonal of D, (tokens of P*,).
    """

    entry = "attention"
    config: PromptEditConfig

    def __init__(self, prompt: Tensor, edited: Tensor, moved: Tensor, added: Tensor) -> None:
        super().__init__()
        adds_words = bool((added != 0).any())
        self.config = PromptEditConfig(prompt.shape[-1])
        values = moved.to(edited) @ edited
        # Parameters, so that they follow the net to its device and dtype.
        self.keys, self.values = _as_parameter(prompt), _as_parameter(values)
        self.more_keys = _as_parameter(edited) if adds_words else None
        self.more_values = _as_parameter(added.to(edited)[:, None] * edited) if adds_words else None

    def bind(self, context: BindContext) -> FixedInputs:
        """Return an empty record: nothing depends on the run."""
        return FixedInputs(None)

    def attention_change(self, inputs: None, place: Place, scale: RowScale) -> PromptEditChange:
        """The change of one transformer block; all blocks read the same texts."""
        return PromptEditChange(self.keys, self.values, self.more_keys, self.more_values, scale)


def _as_parameter(text: Tensor) -> nn.Parameter:
    return nn.Parameter(text.detach().clone(), requires_grad=False)
