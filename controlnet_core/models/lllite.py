"""ControlNet-LLLite (kohya-ss 2023): small networks that change what the layers of the base's attentions read.

For tokens x in front of a layer, and the hint c in [-1, 1]:

    layer(x + up(relu(mid(concat(convolutions(c), relu(down(x)))))))

The convolutions bring the hint to one vector per token. They see neither x nor t, so they run once. `up` starts at
zero. Facts: kohya-ss/sd-scripts, `docs/train_lllite_README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import SD15, SDXL, LLLiteConfig, LLLiteLayer, UNetConfig
from .control import BindContext, ControlModel, FixedInputs, Place, RowScale, level_side, place_level
from .layers import AttentionChange
from .zero_conv import zero_

LAYERS = ("attn1.q", "attn1.k", "attn1.v", "attn2.q")
"""Layers that can be changed. Keys and values of the cross attention read the text, which a hint does not change."""
TITLES: Mapping[str, UNetConfig] = {"SD1.x and SD2.x": SD15.unet, "SDXL": SDXL.unet}


class LLLite(nn.Module):
    """The network beside one layer."""

    def __init__(self, config: LLLiteLayer, hint_channels: int) -> None:
        super().__init__()
        widths = (hint_channels, *config.hint_widths)
        self.pixels = config.pixels
        self.hint = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride=kernel)
            for before, after, kernel in zip(widths, config.hint_widths, config.kernels, strict=False)
        )
        self.down = nn.Linear(config.width, config.inner)
        self.mid = nn.Linear(config.inner + widths[-1], config.inner)
        self.up = nn.Linear(config.inner, config.width)
        zero_(self.up)

    def embed_hint(self, hint: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, hint_channels, 8h, 8w) in [0, 1] -> (B, N, width). size: of the tokens, where N = height * width."""
        wanted = (size[0] * self.pixels, size[1] * self.pixels)
        # At odd sizes the base rounds up, and a hint of 8 pixels per cell lacks a few pixels of the last row.
        fitted = hint if hint.shape[-2:] == wanted else F.interpolate(hint, size=wanted, mode="nearest-exact")
        h = fitted * 2.0 - 1.0
        for index, conv in enumerate(self.hint):
            h = conv(h if index == 0 else F.relu(h))
        return rearrange(h, "b c h w -> b (h w) c")

    def forward(self, x: Tensor, hint: Tensor) -> Tensor:
        """What is added to tokens x (B, N, width). hint: embedded, (1 or B, N, its width)."""
        down = F.relu(self.down(x.to(hint.dtype)))
        joined = torch.cat([hint.expand(len(x), -1, -1), down], dim=-1)
        return self.up(F.relu(self.mid(joined))).to(x.dtype)


class LLLiteStep(NamedTuple):
    """One network with its embedded hint."""

    net: LLLite
    hint: Tensor

    def add_to(self, tokens: Tensor, scale: RowScale) -> Tensor:
        """Tokens (rows, N, width) with what the network adds."""
        return scale.add(tokens, partial(self.net, hint=self.hint))


class _Fields(NamedTuple):
    steps: tuple[LLLiteStep | None, ...]
    scale: RowScale


class LLLiteChange(_Fields, AttentionChange):
    """The change of one transformer block. steps: for each of `LAYERS`, or None.

    A named tuple: an acceleration finds the tensors of an evaluation in nested tuples.
    """

    __slots__ = ()

    def self_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add the net's output to what the layers for queries, keys and values of the self attention read."""
        return self._changed(0, query), self._changed(1, key), self._changed(2, value)

    def text_query(self, query: Tensor) -> Tensor:
        """Add the net's output to what the layer for queries of the cross attention reads."""
        return self._changed(3, query)

    def _changed(self, index: int, tokens: Tensor) -> Tensor:
        step = self.steps[index]
        return tokens if step is None else step.add_to(tokens, self.scale)


EmbeddedHints: TypeAlias = tuple[Tensor, ...]
"""The hint as each network reads it, (1 or rows, N, width), in the order of the config."""


class ControlLLLite(ControlModel):
    """All networks of a file."""

    entry = "attention"
    config: LLLiteConfig

    def __init__(self, config: LLLiteConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleDict({layer_name(own): LLLite(own, config.hint_channels) for own in config.layers})
        self.numbers = {(Place(own.stack, own.block, own.depth), own.layer): n for n, own in enumerate(config.layers)}

    @property
    def made_for(self) -> str:
        """The base in words, for messages."""
        known = [title for title, unet in TITLES.items() if self.fits(unet)]
        widths = sorted({layer.width for layer in self.config.layers})
        return known[0] if known else f"a base with transformers of widths {widths}"

    def fits(self, config: UNetConfig) -> bool:
        """Whether the base has a transformer block of this width and resolution at each place."""
        return all(_has_place(layer, config) for layer in self.config.layers)

    def bind(self, context: BindContext) -> FixedInputs:
        """Embed the hint for every layer."""
        hints = []
        for own, net in zip(self.config.layers, self.layers.values(), strict=True):
            assert isinstance(net, LLLite)
            size = [level_side(side, _level(own, context.base)) for side in context.size]
            hints.append(context.spread(net.embed_hint(context.hint, (size[0], size[1]))))
        return FixedInputs(tuple(hints))

    def attention_change(self, inputs: EmbeddedHints, place: Place, scale: RowScale) -> LLLiteChange | None:
        """What the networks beside the layers of one transformer block add."""
        numbers = [self.numbers.get((place, layer)) for layer in LAYERS]
        if not any(number is not None for number in numbers):
            return None
        nets = list(self.layers.values())
        steps = (None if n is None else LLLiteStep(nets[n], inputs[n]) for n in numbers)  # type: ignore[arg-type]
        return LLLiteChange(tuple(steps), scale)


def layer_name(layer: LLLiteLayer) -> str:
    """The name of a network in the module and in its weights, such as "encoder_4_0_attn1_q"."""
    return f"{layer.stack}_{layer.block}_{layer.depth}_{layer.layer.replace('.', '_')}"


def _level(layer: LLLiteLayer, base: UNetConfig) -> int:
    return place_level(Place(layer.stack, layer.block, layer.depth), len(base.widths), base.res_blocks)


def _has_place(layer: LLLiteLayer, base: UNetConfig) -> bool:
    level = _level(layer, base)
    if not 0 <= level < len(base.widths):
        return False
    downsampling = layer.stack == "encoder" and layer.block % (base.res_blocks + 1) == 0
    depth = base.middle_depth if layer.stack == "middle" else base.transformer_depth[level]
    fits = layer.width == base.widths[level] and layer.pixels == 8 << level
    return fits and not downsampling and layer.depth < depth
