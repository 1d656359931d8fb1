"""Enlarges images: Lanczos as ComfyUI's nodes do it, and networks that spandrel describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..controlnet_core.errors import OutOfMemory
from .tiles import run_in_tiles

TILE, OVERLAP, MIN_TILE = 512, 32, 128
"""Sides of a tile and of the overlap of two tiles in pixels, and the least tile to try where memory is short."""


def lanczos(x: Tensor, width: int, height: int) -> Tensor:
    """(B, C, h, w) -> (B, C, height, width) with Pillow."""
    from PIL import Image

    pictures = []
    for picture in x:
        # ComfyUI goes through 8 bit here, which rounds the colours.
        pixels = np.clip(255.0 * picture.movedim(0, -1).cpu().numpy(), 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        resized = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), np.float32) / 255.0
        pictures.append(torch.from_numpy(resized.reshape(height, width, -1)).movedim(-1, 0))
    return torch.stack(pictures).to(x)


def enlarge(network: Any, image: Tensor, device: torch.device, on_tile: Callable[[], None]) -> Tensor:
    """IMAGE (B, h, w, C) -> (B, scale * h, scale * w, 3) by an UPSCALE_MODEL, in tiles.

    Where memory is short, the tiles are halved down to a side of `MIN_TILE`. on_tile: called before each tile. The
    network is on the device while it runs. Raises OutOfMemory.
    """
    placed = network.to(device)

    def run(part: Tensor) -> Tensor:
        on_tile()
        return placed(part.to(device)).float()

    tile, pixels = TILE, image[..., :3].movedim(-1, 1)
    try:
        with torch.inference_mode():
            while True:
                try:
                    made = run_in_tiles(pixels, run, (tile, tile), OVERLAP, placed.scale, 3)
                    return made.movedim(1, -1).clamp(0.0, 1.0)
                except torch.OutOfMemoryError as error:
                    tile //= 2
                    if tile < MIN_TILE:
                        raise OutOfMemory("the device has no memory left to enlarge the image") from error
    finally:
        network.to("cpu")
