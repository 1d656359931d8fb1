"""Image to image in overlapping tiles, for an image of any size.

    for each tile of the image:
        latent = encode(the tile)
        latent = sample(latent, prompts and control of this part, its part of the noise of the whole image)
        image += decode(latent) * weights of the tile

No tile depends on another one, so their order does not matter. They agree where they overlap because they see the same
noise, the same hint and the same image there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..controlnet_core.control.picture_part import PicturePart
from ..controlnet_core.diffusion.noise import NoisePart
from ..controlnet_core.errors import ValueRangeError
from ..controlnet_core.limits import PICTURE_PIXELS
from ..controlnet_core.run_options import DEFAULTS
from ..controlnet_core.sample import SampleSettings
from .fields import MAX_SEED, MAX_SIDE
from .host import Host
from .tile_conditioning import crop_prompts
from .tile_grid import CELL, TileGrid
from .upscale import lanczos
from .values import SamplerInputs


def target_size(size: tuple[int, int], scale: float, width: int, height: int) -> tuple[int, int]:
    """(height, width) of the result. width, height: 0 to keep the proportions; both 0: `scale` times `size`.

    Raises ValueRangeError for a result without pixels, or sides above MAX_SIDE or too many pixels.
    """
    if not width and not height:
        width, height = round(size[1] * scale), round(size[0] * scale)
    height = height or max(1, round(size[0] * width / size[1]))
    width = width or max(1, round(size[1] * height / size[0]))
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise ValueRangeError(f"the result would be {width}x{height} pixels: give sides from 1 to {MAX_SIDE}")
    if width * height > PICTURE_PIXELS.number:
        raise ValueRangeError(
            f"the result would be {width}x{height} pixels: give at most {PICTURE_PIXELS.number:,} in all, such as "
            "8192x8192"
        )
    return height, width


def enlarge_to(host: Host, image: Tensor, size: tuple[int, int], upscale_model: Any = None) -> Tensor:
    """IMAGE (B, h, w, 3) -> (B, H, W, 3) of `size`, by an UPSCALE_MODEL and then by Lanczos where that is not exact.

    Raises ValueRangeError for an image with NaN or infinity.
    """
    # One NaN would spread over its whole tile.
    if not bool(torch.isfinite(image).all()):
        raise ValueRangeError("the image contains NaN or infinity: check the node that made it")
    large = image if upscale_model is None else host.enlarge(upscale_model, image)
    if tuple(large.shape[1:3]) == size:
        return large
    return lanczos(large.movedim(-1, 1), size[1], size[0]).movedim(1, -1)


def sample_tiles(host: Host, inputs: SamplerInputs, vae: Any, image: Tensor, tile: int, overlap: int) -> Tensor:
    """IMAGE (B, H, W, 3), sampled in tiles of `tile` pixels that overlap by `overlap` pixels or more.

    inputs: their latent is not used. An image that one tile covers is what encoding, sampling and decoding it make, bit
    for bit. Raises ValueRangeError for an overlap above half a tile.
    """
    size = (image.shape[1], image.shape[2])
    # Tiles are whole latent cells. The rest of the last cell is filled with the last pixels, and cut off at the end.
    filled = (-(-size[0] // CELL) * CELL, -(-size[1] // CELL) * CELL)
    grid = TileGrid.cover(filled, tile - tile % CELL, overlap - overlap % CELL)
    result = torch.zeros(len(image), *filled, 3)
    for number, (row, column) in enumerate(grid.tiles):
        part = PicturePart(size, grid.rows[row], grid.columns[column], *grid.tile)
        # The image itself where one tile is all of it: in another memory layout an encoder may round otherwise.
        pixels = image if filled == grid.tile == size else part.cut(image.movedim(-1, 1)).movedim(1, -1)
        made = _sample_tile(host, inputs, vae, pixels, part, (number, len(grid.tiles)))
        place = result[:, part.top : part.top + part.height, part.left : part.left + part.width]
        place += made.to(result) * grid.weights(row, column)[..., None]
    return result[:, : size[0], : size[1]]


def _sample_tile(
    host: Host, inputs: SamplerInputs, vae: Any, pixels: Tensor, part: PicturePart, tile: tuple[int, int]
) -> Tensor:
    """IMAGE (B, height, width, 3) of one tile. tile: its number, and how many there are."""
    positive, negative = crop_prompts(host, inputs.positive, inputs.negative, part)
    if not positive or not negative:
        return pixels  # no prompt says what should be here
    settings = _tile_settings(inputs.settings, part, tile[0])
    latent = {"samples": host.encode(vae, pixels)}
    sampled = host.sample(
        inputs._replace(positive=positive, negative=negative, latent=latent, settings=settings),
        replace(DEFAULTS, part=tile),
    )
    return host.decode(vae, sampled["samples"])


def _tile_settings(settings: SampleSettings, part: PicturePart, number: int) -> SampleSettings:
    """The settings of a tile: its part of the noise, and noise of its own between the steps."""
    if part.is_whole:
        return settings
    cells = (-(-part.size[0] // CELL), -(-part.size[1] // CELL))
    noise = NoisePart(settings.seed, cells, part.top // CELL, part.left // CELL)
    # Ancestral noise with the same seed would draw the same pattern into each tile.
    return replace(settings, seed=(settings.seed + number) % (MAX_SEED + 1), noise_part=noise)
