"""Prompts for regions: in its region, each token of the picture attends to the region's own text.

For the queries q of a cross attention, and the share s_r of region r at a token:

    output = s_0 attention(q, the prompt) + sum_r s_r attention(q, text of r)

Shares come from masks m_r in [0, 1], brought to the tokens by area, and weights w_r:

    s_0 : s_1 : ... = max(0, 1 - sum_r w_r m_r) : w_1 m_1 : ...,    s_0 + s_1 + ... = 1

So the prompt itself acts where no region is, and regions that overlap share a token by their weights. Known as
attention couple (laksjdjf 2023). There is nothing to train: the net below holds texts instead of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .control import BindContext, FixedInputs, Place, RowScale, TextControl, level_side, place_level
from .layers import AttentionChange


@dataclass(frozen=True)
class RegionConfig:
    """weights: w_r of each region. text_width: of the texts."""

    weights: tuple[float, ...]
    text_width: int


class RegionInputs(NamedTuple):
    """What all blocks read. shares: for each level (1 or rows, N, 1 + regions), the prompt's first. res_blocks: of the
    base, for the level of a block."""

    shares: tuple[Tensor, ...]
    res_blocks: int


class _Fields(NamedTuple):
    texts: tuple[Tensor, ...]
    shares: Tensor
    scale: RowScale


class RegionChange(_Fields, AttentionChange):
    """The change of one transformer block. texts: each (1, tokens, width). shares: (1 or rows, N, 1 + regions)."""

    __slots__ = ()

    def text_output(self, output: Tensor, query: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """Mix the output for the prompt with the outputs for the texts of the regions, by their shares."""
        asked = query[self.scale.rows]
        shares = self.shares.to(output.dtype)

        def change(own: Tensor) -> Tensor:
            mixed = own * shares[..., :1]
            for number, text in enumerate(self.texts, 1):
                there = attend(asked, text.to(asked.dtype).expand(len(asked), -1, -1))
                mixed.addcmul_(there, shares[..., number : number + 1])
            return mixed - own

        return self.scale.add(output, change)


class RegionPrompts(TextControl):
    """Texts for regions. Its hint is not a picture but the masks, one channel for each region."""

    entry = "attention"
    config: RegionConfig

    def __init__(self, texts: Sequence[Tensor], weights: Sequence[float]) -> None:
        """texts: each (1, tokens, text width). weights: one for each text, 0 or more."""
        super().__init__()
        self.config = RegionConfig(tuple(weights), texts[0].shape[-1])
        # Parameters, so that they follow the net to its device and dtype.
        self.texts = nn.ParameterList(nn.Parameter(text.detach().clone(), requires_grad=False) for text in texts)

    @property
    def hint_channels(self) -> int:
        """A mask for each region."""
        return len(self.config.weights)

    def bind(self, context: BindContext) -> FixedInputs:
        """Bring the masks to the tokens of each level, and make shares of them."""
        masks, levels = context.hint.float().clamp(0.0, 1.0), range(len(context.base.widths))
        sizes = [[level_side(side, level) for side in context.size] for level in levels]
        shares = (region_shares(masks, self.config.weights, (height, width)) for height, width in sizes)
        inputs = tuple(context.spread(share).to(context.text.dtype) for share in shares)
        return FixedInputs(RegionInputs(inputs, context.base.res_blocks))

    def attention_change(self, inputs: RegionInputs, place: Place, scale: RowScale) -> RegionChange:
        """The texts and their shares at the tokens of this block."""
        level = place_level(place, len(inputs.shares), inputs.res_blocks)
        return RegionChange(tuple(self.texts), inputs.shares[level], scale)


def region_shares(masks: Tensor, weights: Sequence[float], size: tuple[int, int]) -> Tensor:
    """(B, R, H, W) in [0, 1] -> (B, N, 1 + R): shares of the prompt and of each region at N = height * width tokens."""
    at = F.interpolate(masks, size=size, mode="area") * masks.new_tensor(weights)[:, None, None]
    prompt = (1.0 - at.sum(dim=1, keepdim=True)).clamp(min=0.0)
    parts = torch.cat([prompt, at], dim=1).flatten(2).movedim(1, 2)
    return parts / parts.sum(dim=2, keepdim=True)
