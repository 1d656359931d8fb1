"""Nodes for decoded pictures: the colour fix of tile ControlNets, and the repainted part back in its source."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..controlnet_core.errors import ShapeError
from ..preprocessors.classic.color_fix import fix_colors
from ..preprocessors.classic.paste import paste_back
from .fields import Output, image, integer, mask, number
from .grid import resize_batch
from .node import Node
from .preprocess import core_errors

CATEGORY = "ControlNet Core/finish"
LATENT_CELL = 8
"""Pixels of a latent cell: VAE Encode cuts off the remainder of a side, half of it at each end."""


class TileColorFix(Node):
    """Gives an upscaled or repainted image the colours of its source: the mean colour of each block becomes that of
    the source, detail finer than a block stays. For tile ControlNets, whose results drift in colour. Link it after
    VAE Decode.
    """

    DISPLAY_NAME = "Tile Colour Fix"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["tile_colorfix", "tile_colorfix+sharp", "color match", "colour drift"]
    INPUTS = (
        image("image", "The decoded image."),
        image("source", "The image whose colours are kept. Another size is resized to that of the decoded image."),
        integer(
            "block_size", 8, 1, 256,
            "Side of a block in pixels. Small blocks keep more of the source; large ones only its coarse colours.",
        ),
        number(
            "sharpness", 0.0, 0.0, 2.0,
            "How much the finest detail is raised. 0 is tile_colorfix, 1 is about tile_colorfix+sharp.", step=0.05,
        ),
    )  # fmt: skip
    OUTPUTS = (Output("IMAGE", "image", "The image with the colours of the source."),)

    def run(self, image: Tensor, source: Tensor, block_size: int, sharpness: float) -> tuple[Tensor]:
        """-> IMAGE (B, H, W, 3). Raises ShapeError for batches that do not match, ValueRangeError for NaN."""
        size = (image.shape[1], image.shape[2])
        return (
            for_each(
                lambda result, wanted: fix_colors(result, wanted, block=block_size, sharpness=sharpness),
                image=resize_batch(image, size).movedim(1, -1),
                source=resize_batch(crop_as_encoded(source, size), size).movedim(1, -1),
            ),
        )


class PasteBack(Node):
    """Puts the repainted part of an image back into its source. Pixels outside the mask stay bit-equal to those
    of the source; encoding and decoding alone would change them.
    """

    DISPLAY_NAME = "Paste Back"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["inpaint", "composite", "inpaint_only", "stitch", "uncrop"]
    INPUTS = (
        image("source", "The image as it was before."),
        image("result", "The decoded image, repainted under the mask."),
        mask("mask", "White where the result is taken. Gray blends."),
        number(
            "feather", 4.0, 0.0, 512.0,
            "Pixels from the border of the mask inwards over which the source fades out. Nothing outside changes.",
            step=0.5,
        ),
    )  # fmt: skip
    OUTPUTS = (Output("IMAGE", "image", "The source with the repainted part."),)

    def run(self, source: Tensor, result: Tensor, mask: Tensor, feather: float) -> tuple[Tensor]:
        """-> IMAGE (B, H, W, 3). Raises ShapeError for batches that do not match."""
        pixels = source[..., :3].expand(-1, -1, -1, 3)
        fitted, mask = fit_result(result, mask.reshape(-1, *mask.shape[-2:]), (source.shape[1], source.shape[2]))
        return (
            for_each(
                lambda before, after, where: paste_back(before, after, where, feather=feather),
                source=pixels,
                result=fitted,
                mask=mask,
            ),
        )


def fit_result(result: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """IMAGE (B, h, w, C) and MASK (M, h', w') as (B, H, W, 3) and (M, H, W) of the source's size (height, width).

    A result that lacks less than a latent cell was cropped by VAE Encode: it is put where it was, and the mask is 0
    around it. Any other size is resized.
    """
    mask = mask.float()
    if tuple(mask.shape[1:]) != size:
        mask = F.interpolate(mask[:, None], size=size, mode="bilinear")[:, 0]
    borders = encoding_borders(size, (result.shape[1], result.shape[2]))
    if not any(borders):
        return resize_batch(result, size).movedim(1, -1), mask
    top, bottom, left, right = borders
    border = (left, right, top, bottom)
    inside = F.pad(mask.new_ones(tuple(result.shape[1:3])), border)
    pixels = result[..., :3].expand(-1, -1, -1, 3).float()
    return F.pad(pixels, (0, 0, *border)), mask * inside


def crop_as_encoded(source: Tensor, size: tuple[int, int]) -> Tensor:
    """IMAGE (B, H, W, C) -> the part that VAE Encode keeps for this size, or the whole if it kept all of it."""
    height, width = source.shape[1:3]
    top, bottom, left, right = encoding_borders((height, width), size)
    return source[:, top : height - bottom, left : width - right]


def encoding_borders(whole: tuple[int, int], part: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixels that VAE Encode cut off at top, bottom, left and right; all 0 where the sizes do not differ by that."""
    lost = [before - after for before, after in zip(whole, part, strict=True)]
    if not all(0 <= gap < LATENT_CELL for gap in lost):
        return 0, 0, 0, 0
    top, left = (gap // 2 for gap in lost)
    return top, lost[0] - top, left, lost[1] - left


def for_each(function: Callable[..., np.ndarray], **batches: Tensor) -> Tensor:
    """Call a function with one picture of each batch at a time, and stack what it returns.

    A batch of one is used for all. Raises ShapeError where batches of several have different lengths.
    """
    count = max(len(batch) for batch in batches.values())
    if any(len(batch) not in (1, count) for batch in batches.values()):
        lengths = ", ".join(f"{name} {len(batch)}" for name, batch in batches.items())
        raise ShapeError(f"the batches have different lengths ({lengths}): give one for all, or one for each")
    arrays = [batch.detach().float().cpu().numpy() for batch in batches.values()]
    with core_errors():
        made = [function(*(array[i % len(array)] for array in arrays)) for i in range(count)]
    return torch.from_numpy(np.stack(made))
