"""Pictures side by side, each with its label."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..controlnet_core.errors import ValueRangeError
from .host import Node

OTHERS = ("images_2", "images_3", "images_4", "images_5", "images_6")
GAP = 4


class CompareGrid(Node):
    """One picture of many."""

    DISPLAY_NAME = "Compare Grid"
    CATEGORY = "ControlNet Core/look"
    DESCRIPTION = (
        "Puts pictures side by side into one, each with a label: hint beside result, one strength beside another. "
        "Batches are taken apart; pictures of other sizes are scaled to the first one's."
    )
    SEARCH_ALIASES = ["xy plot", "contact sheet", "montage"]
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("grid",)
    OUTPUT_TOOLTIPS = ("One picture.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        labels = {"default": "", "multiline": True, "tooltip": "A line for each picture; may be empty."}
        columns = {"default": 0, "min": 0, "max": 64, "tooltip": "Pictures in a row; 0 makes the grid about square."}
        more = ("IMAGE", {"tooltip": "Further pictures."})
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The first pictures."}),
                "columns": ("INT", columns),
                "labels": ("STRING", labels),
            },
            "optional": dict.fromkeys(OTHERS, more),
        }

    def run(self, images: Tensor, columns: int, labels: str, **others: Tensor | None) -> tuple[Tensor]:
        """-> IMAGE (1, H, W, 3)."""
        batches = [images, *(others[name] for name in OTHERS if others.get(name) is not None)]
        pictures = [picture for batch in batches for picture in fitted(batch, (images.shape[1], images.shape[2]))]
        words = labels.strip("\n").split("\n") if labels.strip() else []
        if len(words) > len(pictures):
            raise ValueRangeError(f"there are {len(words)} labels for {len(pictures)} pictures: take some away")
        columns = columns or math.ceil(math.sqrt(len(pictures)))
        height = label_height(images.shape[1]) if words else 0
        words += [""] * (len(pictures) - len(words))
        cells = [cell(picture, text, height) for picture, text in zip(pictures, words, strict=True)]
        return (arranged(cells, min(columns, len(cells)))[None],)


def fitted(batch: Any, size: tuple[int, int]) -> Tensor:
    """IMAGE (B, H, W, C) -> (B, 3, h, w) of this size."""
    x = batch[..., :3].float().movedim(-1, 1)
    x = x.expand(-1, 3, -1, -1)
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True).clamp(0.0, 1.0)


def label_height(height: int) -> int:
    """Pixels of the line of text below a picture."""
    return max(14, height // 14)


def cell(picture: Tensor, text: str, height: int) -> Tensor:
    """(3, h, w) with its label below -> (h + height, w, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    pixels = picture.movedim(0, -1).cpu()
    if not height:
        return pixels
    strip = Image.new("RGB", (picture.shape[2], height), "white")
    font = ImageFont.load_default(size=height - 4)
    ImageDraw.Draw(strip).text((strip.width / 2, height / 2), text, "black", font, anchor="mm")
    return torch.cat([pixels, torch.from_numpy(np.asarray(strip).astype(np.float32) / 255.0)])


def arranged(cells: list[Tensor], columns: int) -> Tensor:
    """Cells (h, w, 3) of one size in rows, white between them -> (H, W, 3)."""
    height, width, _ = cells[0].shape
    rows = math.ceil(len(cells) / columns)
    grid = torch.ones(rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    for number, pixels in enumerate(cells):
        top, left = (number // columns) * (height + GAP), (number % columns) * (width + GAP)
        grid[top : top + height, left : left + width] = pixels
    return grid
