"""The node that puts labelled images into one grid."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..controlnet_core.errors import ValueRangeError
from .fields import Output, image, integer, optional, text
from .node import Node

OTHERS = ("images_2", "images_3", "images_4", "images_5", "images_6")
GAP = 4
"""Pixels between two images."""


class CompareGrid(Node):
    """Puts images side by side into one image, each with a label: a hint beside its result, or one strength beside
    another. Each image of a batch gets its own place; images of other sizes are resized to the first one's.
    """

    DISPLAY_NAME = "Compare Grid"
    CATEGORY = "ControlNet Core/look"
    SEARCH_ALIASES = ["xy plot", "contact sheet", "montage"]
    INPUTS = (
        image("images", "The first images."),
        integer("columns", 0, 0, 64, "Number of images in a row; 0 makes the grid about square."),
        text("labels", "One line for each image; may be empty.", multiline=True),
        *optional(*(image(name, "More images.") for name in OTHERS)),
    )
    OUTPUTS = (Output("IMAGE", "grid", "The grid, as one image."),)

    def run(self, images: Tensor, columns: int, labels: str, **others: Tensor | None) -> tuple[Tensor]:
        """-> IMAGE (1, H, W, 3)."""
        batches = [images, *(others[name] for name in OTHERS if others.get(name) is not None)]
        pictures = [picture for batch in batches for picture in resize_batch(batch, (images.shape[1], images.shape[2]))]
        words = labels.strip("\n").split("\n") if labels.strip() else []
        if len(words) > len(pictures):
            raise ValueRangeError(f"{len(words)} labels for {len(pictures)} images: remove some of the labels")
        # As many columns as rows, or one more.
        columns = columns or math.ceil(math.sqrt(len(pictures)))
        height = label_height(images.shape[1]) if words else 0
        words += [""] * (len(pictures) - len(words))
        cells = [label_cell(picture, text, height) for picture, text in zip(pictures, words, strict=True)]
        return (join_cells(cells, min(columns, len(cells)))[None],)


def resize_batch(batch: Tensor, size: tuple[int, int]) -> Tensor:
    """IMAGE (B, H, W, C) -> (B, 3, h, w) of this size (height, width)."""
    x = batch[..., :3].float().movedim(-1, 1)
    # Other packs also send images with one channel.
    x = x.expand(-1, 3, -1, -1)
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True).clamp(0.0, 1.0)


def label_height(height: int) -> int:
    """Height in pixels of the label below an image of this height."""
    return max(14, height // 14)


def label_cell(picture: Tensor, text: str, height: int) -> Tensor:
    """An image (3, h, w) -> (h + height, w, 3), with its label in a strip below it."""
    from PIL import Image, ImageDraw, ImageFont

    pixels = picture.movedim(0, -1).cpu()
    if not height:
        return pixels
    strip = Image.new("RGB", (picture.shape[2], height), "white")
    font = ImageFont.load_default(size=height - 4)
    ImageDraw.Draw(strip).text((strip.width / 2, height / 2), text, "black", font, anchor="mm")
    return torch.cat([pixels, torch.from_numpy(np.asarray(strip).astype(np.float32) / 255.0)])


def join_cells(cells: list[Tensor], columns: int) -> Tensor:
    """Cells (h, w, 3) of one size -> one image (H, W, 3), with white between them."""
    # White below and to the right of each cell, and white cells at the end of the last row.
    padded = F.pad(torch.stack(cells), (0, 0, 0, GAP, 0, GAP, 0, -len(cells) % columns), value=1.0)
    return rearrange(padded, "(rows columns) h w c -> (rows h) (columns w) c", columns=columns)[:-GAP, :-GAP]
