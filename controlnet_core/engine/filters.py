"""What convolutions by tiles take beside the plain ones (`engine.winograd`), told from shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..config import UNetConfig
from ..control.modes import block_heights
from ..models.unet import encoder_widths
from .winograd import IN_BLOCKS, Doubled, Winograd, buffer_bytes, suits


@dataclass(frozen=True)
class Use:
    """Blocks that are run: an encoder and a middle, with the decoder or without, on rows of latents (h, w)."""

    config: UNetConfig
    rows: int
    size: tuple[int, int]
    decoder: bool


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution. size: (B, H, W) of its output. kind: how it goes by tiles."""

    width_in: int
    width: int
    size: tuple[int, int, int]
    kind: type[Winograd] = Winograd

    def goes_by_tiles(self, dtype: torch.dtype) -> bool:
        """Whether it is computed so."""
        rows, height, width = self.size
        filters, cells = torch.Size((self.width, self.width_in, 3, 3)), torch.Size((rows, self.width_in, height, width))
        return suits(filters, IN_BLOCKS, cells, dtype)

    @property
    def values(self) -> int:
        """Of its filter by the definition."""
        return 9 * self.width_in * self.width

    @property
    def tiled_values(self) -> int:
        """Of its filter for tiles."""
        return len(self.kind.PLACES) ** 2 * self.width_in * self.width


def filter_values(uses: Sequence[Use], dtype: torch.dtype, sizes: int) -> int:
    """Of one model: values of its filters in all forms that its uses take, at most `sizes` by the definition."""
    return sum(_form_values(layers, dtype, sizes) for layers in zip(*map(layers_of, uses), strict=True))


def _form_values(layers: Sequence[Layer], dtype: torch.dtype, sizes: int) -> int:
    """The same of one layer at all its sizes: filters of tiles fit all of them."""
    tiled = {layer.kind: layer.tiled_values for layer in layers if layer.goes_by_tiles(dtype)}
    blocked = {layer.size: layer.values for layer in layers if not layer.goes_by_tiles(dtype)}
    return sum(tiled.values()) + sum(list(blocked.values())[:sizes])


def tile_buffer(uses: Iterable[Use], dtype: torch.dtype) -> int:
    """Bytes of the buffer that the layers of one model write to."""
    tiled = (layer for use in uses for layer in layers_of(use) if layer.goes_by_tiles(dtype))
    sizes = (buffer_bytes(layer.kind, (layer.width_in, layer.width), dtype, layer.size) for layer in tiled)
    return max(sizes, default=0)


def layers_of(use: Use) -> Iterator[Layer]:
    """The 3x3 convolutions of stride 1 in the residual blocks and in front of each level of the decoder."""
    config = use.config
    sides = list(zip(block_heights(config, use.size[0]), block_heights(config, use.size[1]), strict=True))
    widths = encoder_widths(config)
    for index, (width_in, width) in enumerate(pairwise(widths)):
        if index % (config.res_blocks + 1) < config.res_blocks:
            yield from _block(width_in, width, (use.rows, *sides[index + 1]))
    for _ in range(config.middle_res):
        yield from _block(widths[-1], widths[-1], (use.rows, *sides[-1]))
    if use.decoder:
        yield from _decoder(use, sides)


def _block(width_in: int, width: int, size: tuple[int, int, int]) -> Iterator[Layer]:
    yield Layer(width_in, width, size)
    yield Layer(width, width, size)


def _decoder(use: Use, sides: list[tuple[int, int]]) -> Iterator[Layer]:
    config, skips = use.config, list(zip(encoder_widths(use.config), sides[:-1], strict=True))
    width = config.widths[-1]
    for level in reversed(range(len(config.widths))):
        for _ in range(config.res_blocks + 1):
            skip, side = skips.pop()
            yield from _block(width + skip, config.widths[level], (use.rows, *side))
            width = config.widths[level]
        if level > 0:
            larger = skips[-1][1]
            twice = larger == (2 * side[0], 2 * side[1])
            yield Layer(width, width, (use.rows, *larger), Doubled if twice else Winograd)
