"""ControlNet-XS (Zavadski, Feiden, Rother 2023): a narrow network that exchanges feature maps with the base.

Its encoder and middle run beside those of the base, block by block. With the base's feature map b and its own h in
front of block i:

    h <- own block_i (concat(h, zero convolution_i (b)))      reads the base
    b <- base block_i (b) + weight * zero convolution_i (h)   the next blocks and the skip read the sum

In front of each block of the base's decoder, a third zero convolution adds the h that belongs to the block's skip. Own
blocks read the timestep embedding of the base, or both networks read one that is learned (`time_mix`).

Facts: the authors' code (vislearn/ControlNet-XS) and diffusers' `UNetControlNetXSModel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..config import ControlNetConfig, ControlNetXSConfig, UNetConfig
from ..errors import UnfitError
from .control import BindContext, CopyControl, ResidualProjection
from .controlnet import HintEncoder, embed_hint
from .float8 import computable
from .layers import ConvBlock, ConvIn, Downsample, Mlp, ResBlock, ResTransformer, SpatialTransformer
from .module_tree import on_meta
from .projections import Projections
from .to_device import to_device_async
from .unet import BlockStack, TimeEmbedding, UNet, UNetInputs, UNetMiddle, embed_time_and_label, encoder_widths
from .zero_conv import ZeroConv

MIX_POWER = 0.3
"""Of `time_mix`, in the authors' code."""
LATENT_CHANNELS = 4


def count_groups(width: int, most: int) -> int:
    """The largest divisor of a width up to `most`: the groups of its normalisation."""
    return next((count for count in range(min(most, width), 0, -1) if width % count == 0), 1)


def _transformer(config: ControlNetXSConfig, level: int, depth: int, groups: int) -> SpatialTransformer:
    width, heads = config.widths[level], config.heads[level]
    return SpatialTransformer(width, config.context_dim, heads, depth, config.linear_projection, groups)


class XSBlock(ResTransformer):
    """A residual block on [h, base], and its transformer. Widths may be no multiples of 32."""

    def __init__(self, config: ControlNetXSConfig, level: int, width_in: int) -> None:
        nn.Module.__init__(self)
        width, depth = config.widths[level], config.transformer_depth[level]
        groups = count_groups(width_in, config.max_groups), count_groups(width, config.max_groups)
        self.res = ResBlock(width_in, width, config.unet.embed_dim, groups=groups)
        self.transformer = _transformer(config, level, depth, groups[1]) if depth else None


class XSEncoder(BlockStack):
    """The encoder. All blocks but the first read their own feature map and the base's."""

    def __init__(self, config: ControlNetXSConfig) -> None:
        super().__init__()
        width, base = config.widths[0], config.base_widths[0]
        blocks: list[ConvBlock | ResTransformer] = [ConvIn(LATENT_CHANNELS, width, stride=1)]
        for level, (level_width, base_width) in enumerate(zip(config.widths, config.base_widths, strict=True)):
            for _ in range(config.res_blocks):
                blocks.append(XSBlock(config, level, width + base))
                width, base = level_width, base_width
            if level != len(config.widths) - 1:
                blocks.append(Downsample(width + base, width, stride=2))
        self.blocks = cast("Sequence[ConvBlock | ResTransformer]", nn.ModuleList(blocks))


class XSMiddle(UNetMiddle):
    """The middle on [h, base]."""

    def __init__(self, config: ControlNetXSConfig) -> None:
        BlockStack.__init__(self)
        width, embed_dim = config.widths[-1], config.unet.embed_dim
        first, others = config.middle_groups
        self.res1 = ResBlock(width + config.base_widths[-1], width, embed_dim, groups=(first, others))
        self.transformer = _transformer(config, -1, config.middle_depth, others) if config.middle_depth else None
        self.res2 = ResBlock(width, width, embed_dim, groups=(others, others))


class BaseEmbedding(nn.Module):
    """A copy of the base's embeddings of timestep and label."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.time_embed = TimeEmbedding(config)
        self.label_embed = None if config.label_dim is None else Mlp(config.label_dim, config.embed_dim)


class ControlNetXS(CopyControl):
    """The net of a file. `resolve` and `complete` return one that has the base's embeddings too, and can be bound."""

    entry = "exchange"
    compared = ("widths", "res_blocks", "context_dim")
    config: ControlNetXSConfig

    def __init__(self, config: ControlNetXSConfig) -> None:
        super().__init__()
        self.config = config
        self.base: BaseEmbedding | None = None
        own = UNetConfig(widths=config.widths, res_blocks=config.res_blocks)
        base_widths = encoder_widths(config.unet)
        widths = encoder_widths(own)
        self.time_embed = None if config.time_mix is None else TimeEmbedding(config.unet)
        self.hint = HintEncoder(ControlNetConfig(own, config.hint_channels, config.hint_widths))
        self.encoder, self.middle = XSEncoder(config), XSMiddle(config)
        # One per base block that a later block of the net reads: the input of block 1, 2, ... and of the middle.
        self.to_control = nn.ModuleList(ZeroConv(width) for width in base_widths)
        targets = zip([*widths, widths[-1]], [*base_widths, base_widths[-1]], strict=True)
        self.to_base = nn.ModuleList(ZeroConv(width, base_width) for width, base_width in targets)
        decoder = zip(reversed(widths), decoder_input_widths(config.unet), strict=True)
        self.to_decoder = nn.ModuleList(ZeroConv(width, base_width) for width, base_width in decoder)

    @property
    def needs_base(self) -> bool:  # type: ignore[override]
        """Whether the base's embeddings are missing."""
        return self.base is None

    def resolve(self, unet: UNet) -> ControlNetXS:
        """The net with this base's embeddings; itself if it has a base's."""
        return self.complete(unet.config, unet.state_dict()) if self.needs_base else self

    def complete(self, config: UNetConfig, base: Mapping[str, Tensor]) -> ControlNetXS:
        """Return the net with the embeddings of a base.

        config: the base's shape. base: its weights, by our names. Raises UnfitError if the net does not fit this base.
        """
        if not self.fits(config):
            raise UnfitError(f"this ControlNet-XS was made for {self.made_for}: load the base that it was made for")
        with on_meta():
            embedding = BaseEmbedding(replace(config, res_blocks=1))
        like = base["time_embed.linear1.weight"]
        weights = {name: base[name] for name in embedding.state_dict()}
        # A copy: the base's own weights may be moved, packed or changed by a LoRA later.
        copied = {name: w.to(like.device, computable(w.dtype), copy=True) for name, w in weights.items()}
        embedding.load_state_dict(copied, strict=True, assign=True)
        net = deepcopy(self)
        net.base = embedding
        return net.eval().requires_grad_(False)

    def embed_time(self, t: Tensor) -> Tensor:
        """Timesteps (B,) -> (B, embed_dim), what the base and the net read before the label is added."""
        assert self.base is not None
        base = self.base.time_embed(t)
        if self.time_embed is None or self.config.time_mix is None:
            return base
        return torch.lerp(base, self.time_embed(t), self.config.time_mix**MIX_POWER)

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Timesteps (B,) and label vector (B, label_dim) -> (B, embed_dim)."""
        assert self.base is not None
        return embed_time_and_label(self.embed_time, self.base.label_embed, t, y)

    def bind(self, context: BindContext) -> BoundControlNetXS:
        """Embed the hint; project text and timesteps. Raises UnfitError without the base's embeddings."""
        if self.base is None:
            raise UnfitError("this ControlNet-XS is complete only with its base: call resolve(unet), bind the result")
        hint = embed_hint(self.hint, self.config.hint_channels, context.hint, context.size)
        bound = BoundControlNetXS(self, context.spread(hint), context.project(self), context)
        for sigma in context.sigmas:  # before the first step
            bound.inputs_at(sigma)
        return bound

    def features(self, x: Tensor, inputs: ControlNetXSInputs) -> Iterator[Tensor]:
        """What each zero convolution to the base reads. x: (rows, 4, h, w).

        The caller sets `inputs.exchange.base` before it asks for the next one.
        """
        exchange, (encoder, middle, _) = inputs.exchange, inputs.blocks
        assert exchange is not None
        h = self.encoder.blocks[0](x, None, ()) + inputs.hint
        exchange.made.append(h)
        yield h
        for index, to_control in enumerate(self.to_control, start=1):
            assert exchange.base is not None
            joined = torch.cat([h, to_control(exchange.base.to(h.dtype))], dim=1)
            if index < len(self.encoder.blocks):
                h = self.encoder.blocks[index](joined, encoder.shifts[index], encoder.kv[index])
            else:
                h = self.middle(joined, middle)
            exchange.made.append(h)
            yield h

    def projections(self, inputs: ControlNetXSInputs) -> Sequence[ResidualProjection]:
        """The zero convolutions to the base's encoder and middle."""
        return list(self.to_base)

    def decoder_residual(self, exchange: Exchange, number: int) -> Tensor:
        """What is added in front of a block of the base's decoder; its skip is number `decoder_target(number)`."""
        return self.to_decoder[number](exchange.made[self.decoder_target(number)])

    def decoder_target(self, number: int) -> int:
        """The target of control, a skip, whose weight and mask count in front of a block of the base's decoder."""
        return len(self.to_decoder) - 1 - number


def decoder_input_widths(config: UNetConfig) -> list[int]:
    """Width of the feature map in front of each decoder block, without the skip."""
    outputs = [width for width in reversed(config.widths) for _ in range(config.res_blocks + 1)]
    return [config.widths[-1], *outputs[:-1]]


@dataclass(eq=False)
class Exchange:
    """What passes between the base and a net in one evaluation.

    base: the base's feature map in front of its next block, (rows of the net, C, h, w). made: the net's own so far.
    """

    base: Tensor | None = None
    made: list[Tensor] = field(default_factory=list)


class ControlNetXSInputs(NamedTuple):
    """What a net reads at one noise level besides x.

    hint: embedded, (1 or rows, widths[0], h, w). time, emb: the embedding that replaces the base's, (1, embed_dim)
    without its label and (1 or rows, embed_dim) with it; None for a net that reads the base's. exchange: begun anew in
    each evaluation (`control.exchange`).
    """

    hint: Tensor
    blocks: UNetInputs
    time: Tensor | None
    emb: Tensor | None
    exchange: Exchange | None = None


@dataclass(frozen=True, eq=False)
class BoundControlNetXS:
    """A net's hint and projections in one run. hint: embedded."""

    net: ControlNetXS
    hint: Tensor
    projections: Projections
    context: BindContext
    known: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def inputs_at(self, sigma: float) -> ControlNetXSInputs:
        """Hint, text and timestep for this noise level."""
        time, emb = (None, None) if self.net.time_embed is None else self._embedding(sigma)
        return ControlNetXSInputs(self.hint, self.projections.at(sigma), time, emb)

    def _embedding(self, sigma: float) -> tuple[Tensor, Tensor]:
        if sigma not in self.known:
            context = self.context
            t = to_device_async(context.timesteps.timestep(torch.tensor([sigma])), context.text.device)
            time = self.net.embed_time(t)
            assert self.net.base is not None
            emb = embed_time_and_label(lambda _: time, self.net.base.label_embed, t, context.label)
            self.known[sigma] = time, emb
        return self.known[sigma]
