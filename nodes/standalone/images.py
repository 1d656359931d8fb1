"""Native nodes on pictures."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..host import Node
from .canny import canny
from .resize import CROPS, IMAGE_METHODS, resize

MAX_SIDE = 16384


def resize_image(image: Tensor, width: int, height: int, method: str, crop: str = "disabled") -> Tensor:
    """IMAGE (B, h, w, C) -> (B, height, width, C)."""
    return resize(image.movedim(-1, 1), width, height, method, crop).movedim(1, -1)


class ImageScale(Node):
    """To a size."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = "Resizes pictures to a width and height; 0 keeps the aspect."
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = ("INT", {"default": 512, "min": 0, "max": MAX_SIDE, "step": 1})
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(IMAGE_METHODS),),
                "width": side,
                "height": side,
                "crop": (list(CROPS),),
            }
        }

    def run(self, image: Tensor, upscale_method: str, width: int, height: int, crop: str) -> tuple[Tensor]:
        """-> IMAGE."""
        if width == 0 and height == 0:
            return (image,)
        rows, columns = image.shape[1:3]
        width, height = (
            width or max(1, round(columns * height / rows)),
            height or max(1, round(rows * width / columns)),
        )
        return (resize_image(image, width, height, upscale_method, crop),)


class ImageScaleBy(Node):
    """By a factor."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = "Resizes pictures by a factor."
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(IMAGE_METHODS),),
                "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
            }
        }

    def run(self, image: Tensor, upscale_method: str, scale_by: float) -> tuple[Tensor]:
        """-> IMAGE."""
        rows, columns = image.shape[1:3]
        return (resize_image(image, round(columns * scale_by), round(rows * scale_by), upscale_method),)


class ImageScaleToTotalPixels(Node):
    """To a number of pixels."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = "Resizes pictures to a number of pixels, in megapixels of 1024 x 1024."
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(IMAGE_METHODS),),
                "megapixels": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 16.0, "step": 0.01}),
            }
        }

    def run(self, image: Tensor, upscale_method: str, megapixels: float) -> tuple[Tensor]:
        """-> IMAGE."""
        rows, columns = image.shape[1:3]
        scale = math.sqrt(int(megapixels * 1024 * 1024) / (columns * rows))
        return (resize_image(image, round(columns * scale), round(rows * scale), upscale_method),)


class ImageInvert(Node):
    """Black for white."""

    CATEGORY = "image"
    DESCRIPTION = "Turns white into black and black into white."
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}}

    def run(self, image: Tensor) -> tuple[Tensor]:
        """-> IMAGE."""
        return (1.0 - image,)


class ImageBatch(Node):
    """Two batches in one."""

    CATEGORY = "image"
    DESCRIPTION = "Joins two batches; the second is brought to the size of the first."
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    def run(self, image1: Tensor, image2: Tensor) -> tuple[Tensor]:
        """-> IMAGE."""
        if image1.shape[1:3] != image2.shape[1:3]:
            image2 = resize_image(image2, image1.shape[2], image1.shape[1], "bilinear", "center")
        return (torch.cat((image1, image2)),)


class EmptyImage(Node):
    """One colour."""

    CATEGORY = "image"
    DESCRIPTION = "Pictures of one colour, given as 0xRRGGBB."
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = ("INT", {"default": 512, "min": 1, "max": MAX_SIDE, "step": 1})
        colour = ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"})
        batch = ("INT", {"default": 1, "min": 1, "max": 4096})
        return {"required": {"width": side, "height": side, "batch_size": batch, "color": colour}}

    def run(self, width: int, height: int, batch_size: int = 1, color: int = 0) -> tuple[Tensor]:
        """-> IMAGE."""
        rgb = torch.tensor([(color >> shift & 0xFF) / 0xFF for shift in (16, 8, 0)])
        return (rgb.expand(batch_size, height, width, 3).clone(),)


class Canny(Node):
    """Edges."""

    CATEGORY = "image/preprocessors"
    DESCRIPTION = "Edges of pictures, white on black."
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        part = {"min": 0.01, "max": 0.99, "step": 0.01}
        return {
            "required": {
                "image": ("IMAGE",),
                "low_threshold": ("FLOAT", {"default": 0.4, **part}),
                "high_threshold": ("FLOAT", {"default": 0.8, **part}),
            }
        }

    def run(self, image: Tensor, low_threshold: float, high_threshold: float) -> tuple[Tensor]:
        """-> IMAGE (B, H, W, 3) of 0 and 1."""
        edges = canny(image.movedim(-1, 1), low_threshold, high_threshold)
        return (edges.expand(-1, 3, -1, -1).movedim(1, -1).contiguous(),)


class ImagePadForOutpaint(Node):
    """More picture around the picture."""

    CATEGORY = "image"
    DESCRIPTION = "Adds a gray border to paint into, and the mask of it; feathering blends the mask inwards."
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        border = ("INT", {"default": 0, "min": 0, "max": MAX_SIDE, "step": 8})
        return {
            "required": {
                "image": ("IMAGE",),
                "left": border,
                "top": border,
                "right": border,
                "bottom": border,
                "feathering": ("INT", {"default": 40, "min": 0, "max": MAX_SIDE, "step": 1}),
            }
        }

    def run(
        self, image: Tensor, left: int, top: int, right: int, bottom: int, feathering: int
    ) -> tuple[Tensor, Tensor]:
        """-> IMAGE, MASK (1, H, W) of 1 outside, falling with the square of the depth inside."""
        rows, columns = image.shape[1:3]
        sides = (left, right, top, bottom)
        padded = F.pad(image.movedim(-1, 1), sides, value=0.5).movedim(1, -1)
        inner = torch.zeros(rows, columns)
        if 0 < 2 * feathering < min(rows, columns):
            depth = _depth_from_borders(rows, columns, sides)
            inner = ((feathering - depth) / feathering).clamp(min=0.0).square()
        return padded, F.pad(inner, sides, value=1.0)[None]


def _depth_from_borders(rows: int, columns: int, sides: tuple[int, int, int, int]) -> Tensor:
    """Distance in pixels to the nearest side that was extended (left, right, top, bottom)."""
    y, x = torch.arange(float(rows))[:, None], torch.arange(float(columns))[None, :]
    far = float(max(rows, columns))
    distances = (x, columns - x, y, rows - y)
    found = [d.expand(rows, columns) for d, side in zip(distances, sides, strict=True) if side]
    return torch.stack(found).amin(dim=0) if found else torch.full((rows, columns), far)


NODES: dict[str, type] = {
    "ImageScale": ImageScale,
    "ImageScaleBy": ImageScaleBy,
    "ImageScaleToTotalPixels": ImageScaleToTotalPixels,
    "ImageInvert": ImageInvert,
    "ImageBatch": ImageBatch,
    "EmptyImage": EmptyImage,
    "ImagePadForOutpaint": ImagePadForOutpaint,
    "Canny": Canny,
}
