"""Values that are alive while blocks are computed, told from shapes: a UNet, its nets, an autoencoder.

What a block holds beside its input is a number of values per cell and channel (`Forms`), and a walk over the blocks
adds up what is kept meanwhile. Scratch memory inside an operator is not counted. Who asks, and for what run, is
`engine.footprint`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from ..config import EMPTY, UNetConfig, VAEConfig
from ..control.modes import block_heights
from ..models.control import Load
from ..models.unet import encoder_widths
from .fuse import FusedFeedForward


class Forms(Protocol):
    """Values that a block holds at most beside its input, its output among them, for so many cells."""

    def residual(self, cells: int, width_in: int, width: int) -> int: ...

    def transformer(self, cells: int, width: int) -> int: ...

    def weight(self, values: int) -> int:
        """Of a layer's weight of so many values, what is made of it at each use."""
        ...


class PlainForms:
    """Blocks as `models.layers` has them."""

    def weight(self, values: int) -> int:
        """It is at hand."""
        return 0

    def residual(self, cells: int, width_in: int, width: int) -> int:
        """The first activation with its input; the second with its input and the hidden state."""
        return cells * max(2 * width_in, width_in + width, 3 * width)

    def transformer(self, cells: int, width: int) -> int:
        """The feed-forward: 4 maps around it, 8 of its middle, 4 of the gate and 4 of the gated."""
        return 20 * cells * width


class FusedForms:
    """Blocks as `engine.fuse` has them."""

    def weight(self, values: int) -> int:
        """It is at hand."""
        return 0

    def residual(self, cells: int, width_in: int, width: int) -> int:
        """Hidden state, activation and output, the latter on top of a widened input where there is one."""
        return cells * max(width_in + width, (3 if width_in != width else 2) * width)

    def transformer(self, cells: int, width: int) -> int:
        """Queries, keys and values of the self attention, or the feed-forward and one piece of its middle."""
        piece = min(FusedFeedForward.TOKENS, cells)
        return max(6 * cells, 4 * cells + 9 * piece) * width


@dataclass(frozen=True)
class CastForms:
    """Blocks of layers in float8, whose weights are cast at each use, and, `packed`, reordered as well."""

    forms: Forms
    packed: bool

    def weight(self, values: int) -> int:
        """Cast; then in the other order too."""
        return 2 * values if self.packed else values

    def residual(self, cells: int, width_in: int, width: int) -> int:
        """Beside the larger of the two 3x3 convolutions."""
        return self.forms.residual(cells, width_in, width) + self.weight(9 * max(width_in, width) * width)

    def transformer(self, cells: int, width: int) -> int:
        """Beside the feed-forward's first layer, or, packed, both of its layers at once."""
        return self.forms.transformer(cells, width) + self.weight(8 * width**2)


@dataclass
class Ledger:
    """Values alive, and the most there were."""

    held: int = 0
    most: int = 0

    def keep(self, values: int) -> None:
        """So many more stay."""
        self.held += values
        self.passing(0)

    def passing(self, values: int) -> None:
        """So many more are there for a moment."""
        self.most = max(self.most, self.held + values)


@dataclass(frozen=True)
class Place:
    """A block. cells: rows x height x width of its output. depth: of its transformer, None for a plain convolution."""

    cells: int
    width_in: int
    width: int
    depth: int | None = None

    @property
    def values(self) -> int:
        """Of its output."""
        return self.cells * self.width

    def passing(self, forms: Forms) -> int:
        """Held at most while it runs, beside its input."""
        if self.depth is None:
            return self.values + forms.weight(9 * self.width_in * self.width)
        residual = forms.residual(self.cells, self.width_in, self.width)
        return max(residual, self.values + _transformer(forms, self.cells, self.width, self.depth))


def _transformer(forms: Forms, cells: int, width: int, depth: int) -> int:
    """Beside its input; one without blocks is a normalisation and two projections."""
    if depth == 0:
        return 0
    return 3 * cells * width if depth == EMPTY else forms.transformer(cells, width)


def target_cells(config: UNetConfig, size: tuple[int, int]) -> tuple[int, ...]:
    """Cells of each place where control enters a latent of this size (h, w): the skips, then the middle."""
    sides = zip(block_heights(config, size[0]), block_heights(config, size[1]), strict=True)
    return tuple(height * width for height, width in sides)


def encoder_places(config: UNetConfig, rows: int, size: tuple[int, int]) -> list[Place]:
    """The blocks of the encoder for rows of latents of this size (h, w)."""
    cells = [rows * each for each in target_cells(config, size)]
    widths = encoder_widths(config)
    places = [Place(cells[0], config.in_channels, widths[0])]
    for index, (width_in, width) in enumerate(pairwise(widths)):
        level, block = divmod(index, config.res_blocks + 1)
        depth = config.transformer_depth[level] if block < config.res_blocks else None
        places.append(Place(cells[index + 1], width_in, width, depth))
    return places


def middle_passing(config: UNetConfig, forms: Forms, cells: int) -> int:
    """Held at most by the middle, beside its input."""
    width = config.widths[-1]
    residual = forms.residual(cells, width, width)
    return cells * width + max(residual, _transformer(forms, cells, width, config.middle_depth))


def skip_values(config: UNetConfig, rows: int, size: tuple[int, int]) -> int:
    """All outputs of the encoder, and the middle's; as many as a ControlNet's residuals have."""
    places = encoder_places(config, rows, size)
    return sum(place.values for place in places) + places[-1].values


def lower_values(config: UNetConfig, rows: int, size: tuple[int, int]) -> int:
    """What the decoder's lower levels give to the top one."""
    return rows * size[0] * size[1] * config.widths[min(1, len(config.widths) - 1)]


@dataclass(frozen=True)
class Running:
    """A net in an evaluation. rows: of x that it sees. forms: of its blocks."""

    load: Load
    rows: int
    forms: Forms


@dataclass(frozen=True)
class Turns:
    """How the nets of an evaluation take turns.

    continued: their residuals are kept for later evaluations, and those of the last time are there already; both are
    counted elsewhere. skips: the same of the skips. beside: all residuals are held until the last net has run. streams:
    they run at the same time, beside the encoder.
    """

    continued: bool = False
    skips: bool = False
    beside: bool = False
    streams: bool = False


ONE_BY_ONE = Turns()


def step_values(
    config: UNetConfig,
    nets: Sequence[Running],
    rows: int,
    size: tuple[int, int],
    forms: Forms,
    turns: Turns = ONE_BY_ONE,
) -> int:
    """Most values alive in an evaluation: the encoder, the nets, the decoder. forms: of the UNet's blocks."""
    ledger = Ledger()
    places = encoder_places(config, rows, size)
    last = places[-1]
    ledger.keep(2 * places[0].cells * config.in_channels)
    for place in places:
        ledger.passing(place.passing(forms))
        ledger.keep(place.values)
    ledger.passing(middle_passing(config, forms, last.cells))
    ledger.keep(last.values)
    if turns.streams:
        ledger.most += sum(net_values(net, size, keeps=True) for net in nets)
    else:
        ledger.passing(_nets(nets, size, turns))
    decoder = Ledger(ledger.held)
    _decode(decoder, config, places, forms)
    made_anew = skip_values(config, rows, size) if turns.skips else 0
    return max(ledger.most - made_anew, decoder.most)


def _nets(nets: Sequence[Running], size: tuple[int, int], turns: Turns) -> int:
    """Most values that the nets hold while they run one after the other."""
    ledger = Ledger()
    for net in nets:
        values = net_values(net, size, keeps=turns.continued or turns.beside)
        made = sum(net.load.residuals)
        ledger.passing(values - made if turns.continued else values)
        if turns.beside:
            ledger.keep(made)
    return ledger.most


def net_values(net: Running, size: tuple[int, int], keeps: bool = False) -> int:
    """Most values that a net holds: one feature map, and what the next block or its outlet takes.

    keeps: whether its residuals stay until the last one is there.
    """
    ledger = Ledger()
    before = 0
    for (passing, place), residual in zip(_walk(net, size), net.load.residuals, strict=True):
        ledger.passing(before + passing)
        before = residual if place is None else place.values
        ledger.passing(before + residual + (0 if place is None else place.width**2))
        if keeps:
            ledger.keep(residual)
    return ledger.most


def _walk(net: Running, size: tuple[int, int]) -> Iterator[tuple[int, Place | None]]:
    """What passes while each feature map of a net is made, and the block that makes it, where that is known."""
    blocks, forms = net.load.blocks, net.forms
    if blocks is None:
        yield from [(0, None)] * len(net.load.residuals)
        return
    places = encoder_places(blocks, net.rows, size)
    yield from ((place.passing(forms), place) for place in places)
    yield middle_passing(blocks, forms, places[-1].cells), places[-1]


def _decode(ledger: Ledger, config: UNetConfig, skips: list[Place], forms: Forms) -> None:
    """The decoder: each block reads what came before it beside a skip, which is let go when it is read."""
    skips = list(skips)
    width, cells = skips[-1].width, skips[-1].cells
    for level in reversed(range(len(config.widths))):
        depth, level_width = config.transformer_depth[level], config.widths[level]
        for index in range(config.res_blocks + 1):
            skip = skips.pop()
            both = Place(cells, width + skip.width, level_width, depth)
            ledger.keep(cells * both.width_in)
            ledger.keep(-skip.values)
            ledger.passing(both.passing(forms))
            ledger.keep(both.values - cells * (width + both.width_in))
            width = level_width
            if level > 0 and index == config.res_blocks:
                larger = skips[-1].cells
                ledger.passing(2 * larger * width + forms.weight(9 * width**2))
                ledger.keep((larger - cells) * width)
                cells = larger
    ledger.passing(2 * cells * width)


def _transformers(config: UNetConfig, decoder: bool) -> Iterator[tuple[int, int]]:
    """(width, depth) of every transformer."""
    count = config.res_blocks + (config.res_blocks + 1 if decoder else 0)
    yield config.widths[-1], config.middle_depth
    for width, depth in zip(config.widths, config.transformer_depth, strict=True):
        yield from [(width, depth)] * count


def text_values(config: UNetConfig, rows: int, tokens: int, decoder: bool) -> int:
    """Keys and values of the text in every cross attention."""
    return sum(2 * rows * tokens * width * max(depth, 0) for width, depth in _transformers(config, decoder))


def time_values(config: UNetConfig, timesteps: int, decoder: bool) -> int:
    """The timestep's projection for every residual block."""
    count = config.res_blocks + (config.res_blocks + 1 if decoder else 0)
    return timesteps * (config.middle_res * config.widths[-1] + count * sum(config.widths))


def decode_values(config: VAEConfig, rows: int, size: tuple[int, int]) -> int:
    """Most values alive while latents (rows, 4, h, w) become pictures."""
    forms = PlainForms()
    cells = rows * size[0] * size[1]
    widths = tuple(reversed(config.widths))
    ledger = Ledger(held=cells * 2 * config.latent_channels)
    ledger.passing(8 * cells * widths[0])  # the attention over all cells
    for level, (width_in, width) in enumerate(pairwise((widths[0], *widths))):
        ledger.held = cells * width_in
        ledger.passing(forms.residual(cells, width_in, width))
        ledger.keep(cells * width)
        ledger.passing(forms.residual(cells, width, width))
        if level < len(widths) - 1:
            ledger.passing(2 * 4 * cells * width)
            cells *= 4
    return ledger.most
