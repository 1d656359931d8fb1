"""GLIGEN: texts at places of the picture, by an attention of its own in each transformer block.

Between self and cross attention, the tokens x of the picture attend to themselves and to grounding tokens g, one for
each box with its text (Li et al. 2023, "GLIGEN: Open-Set Grounded Text-to-Image Generation", eq. 5 and 7):

    x = x + tanh(a) attention(norm([x, linear(g)])) of the picture's tokens
    x = x + tanh(b) feed_forward(norm(x))
    g = mlp([text, sinusoids of the box])        or learned vectors, for the boxes that are left
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import UNetConfig
from .control import BindContext, FixedInputs, Place, RowScale, TextControl
from .layers import Attention, AttentionChange

MAX_BOXES = 30
"""Boxes of the training. The rest is filled up with learned vectors, so the number of tokens is always this."""
FREQUENCIES, TEMPERATURE = 8, 100.0
SD1_TEXT, SD1_HEADS, HEAD_WIDTH = 768, 8, 64


@dataclass(frozen=True)
class GligenConfig:
    """widths: of the transformer blocks, in the order of the UNet. text_width: of the boxes' texts and of the base's.
    hidden: of the perceptron for boxes."""

    widths: tuple[int, ...]
    text_width: int = SD1_TEXT
    hidden: int = 512


@dataclass(frozen=True, eq=False)
class TextBox:
    """A text (1, text width), pooled, and where it stands: height, width, top, left in latent cells."""

    text: Tensor
    box: tuple[int, int, int, int]


class Fuser(nn.Module):
    """The gated attention of one transformer block."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        heads = SD1_HEADS if text_width == SD1_TEXT else width // HEAD_WIDTH
        self.linear = nn.Linear(text_width, width)
        self.attn = Attention(width, width, heads)
        # Two layers of its own: the twin of a `FeedForward` for packed weights belongs to the blocks of the base.
        self.ff_proj, self.ff_out = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.alpha_attn, self.alpha_dense = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, grounding: Tensor) -> Tensor:
        """Tokens (B, N, width) and grounding tokens (1 or B, boxes, text width) -> (B, N, width)."""
        added = self.linear(grounding.to(x.dtype)).expand(len(x), -1, -1)
        both = self.norm1(torch.cat((x, added), dim=1))
        # Only the picture's tokens go on, so only their queries are computed.
        attended = self.attn(both[:, : x.shape[1]], self.attn.kv(both))
        x = x + torch.tanh(self.alpha_attn) * attended
        value, gate = self.ff_proj(self.norm2(x)).tensor_split(2, dim=-1)
        return x + torch.tanh(self.alpha_dense) * self.ff_out(value * F.gelu(gate))


class Grounding(nn.Module):
    """Makes a grounding token of a text and a box."""

    def __init__(self, config: GligenConfig) -> None:
        super().__init__()
        sinusoids = FREQUENCIES * 2 * 4
        hidden = config.hidden
        self.linear1 = nn.Linear(config.text_width + sinusoids, hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.linear3 = nn.Linear(hidden, config.text_width)
        self.no_text = nn.Parameter(torch.zeros(config.text_width))
        self.no_box = nn.Parameter(torch.zeros(sinusoids))

    def forward(self, boxes: Tensor, texts: Tensor) -> Tensor:
        """Corners (n, 4) as fractions of the picture, and texts (n, width) -> (1, MAX_BOXES, width)."""
        left = MAX_BOXES - len(boxes)
        frequencies = TEMPERATURE ** (torch.arange(FREQUENCIES, device=boxes.device) / FREQUENCIES)
        waves = [wave(frequency * boxes) for frequency in frequencies for wave in (torch.sin, torch.cos)]
        places = torch.cat((torch.cat(waves, dim=-1), self.no_box.expand(left, -1)))
        x = torch.cat((torch.cat((texts, self.no_text.expand(left, -1))), places), dim=-1)
        return self.linear3(F.silu(self.linear2(F.silu(self.linear1(x)))))[None]


class Gligen(nn.Module):
    """The weights of a file."""

    def __init__(self, config: GligenConfig) -> None:
        super().__init__()
        self.config = config
        self.fusers = nn.ModuleList(Fuser(width, config.text_width) for width in config.widths)
        self.grounding = Grounding(config)


class _Fields(NamedTuple):
    fuser: Fuser
    grounding: Tensor
    scale: RowScale


class GligenChange(_Fields, AttentionChange):
    """The change of one transformer block. A named tuple, so that the tensors of an evaluation are found."""

    __slots__ = ()

    def between(self, x: Tensor) -> Tensor:
        """Let the tokens attend to the boxes."""
        return self.scale.add(x, lambda own: self.fuser(own, self.grounding) - own)


class GligenControl(TextControl):
    """Boxes with texts as a kind of control. Its hint is not read."""

    entry = "attention"
    config: GligenConfig

    def __init__(self, weights: Gligen, boxes: Sequence[TextBox]) -> None:
        super().__init__()
        self.config, self.weights = weights.config, weights
        self.places = tuple(box.box for box in boxes)
        self.texts = nn.Parameter(torch.cat([box.text for box in boxes]).clone(), requires_grad=False)

    @property
    def made_for(self) -> str:
        """The base in words, for messages."""
        return f"a base with {len(self.config.widths)} transformer blocks and {self.config.text_width} wide text"

    def fits(self, config: UNetConfig) -> bool:
        """Whether the base has transformer blocks of these widths."""
        return super().fits(config) and block_widths(config) == self.config.widths

    def bind(self, context: BindContext) -> FixedInputs:
        """Make the grounding tokens, (1, MAX_BOXES, text width), and list the transformer blocks of the base."""
        height, width = context.size
        corners = [
            (left / width, top / height, (left + across) / width, (top + down) / height)
            for down, across, top, left in self.places
        ]
        boxes = torch.tensor(corners, dtype=self.texts.dtype, device=self.texts.device)
        return FixedInputs((self.weights.grounding(boxes, self.texts), tuple(block_places(context.base))))

    def attention_change(self, inputs: tuple[Tensor, tuple[Place, ...]], place: Place, scale: RowScale) -> GligenChange:
        """The gated attention of this block."""
        grounding, places = inputs
        fuser = self.weights.fusers[places.index(place)]
        assert isinstance(fuser, Fuser)
        return GligenChange(fuser, grounding, scale)


def block_places(config: UNetConfig) -> list[Place]:
    """The places of all transformer blocks of a base, in the order in which they run."""
    return [place for place, _ in _blocks(config)]


def block_widths(config: UNetConfig) -> tuple[int, ...]:
    """The widths of all transformer blocks of a base, in the order in which they run."""
    return tuple(width for _, width in _blocks(config))


def _blocks(config: UNetConfig) -> list[tuple[Place, int]]:
    levels = list(zip(config.widths, config.transformer_depth, strict=True))
    found: list[tuple[Place, int]] = []
    block = 1  # block 0 is the first convolution
    for width, depth in levels:
        for _ in range(config.res_blocks):
            found += [(Place("encoder", block, n), width) for n in range(max(depth, 0))]
            block += 1
        # The downsampling between two levels.
        block += 1
    found += [(Place("middle", 0, n), config.widths[-1]) for n in range(max(config.middle_depth, 0))]
    block = 0
    for width, depth in reversed(levels):
        for _ in range(config.res_blocks + 1):
            found += [(Place("decoder", block, n), width) for n in range(max(depth, 0))]
            block += 1
    return found
