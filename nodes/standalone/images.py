"""ComfyUI's nodes on images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fields import Field, choice, image, integer, number, side
from ..node import Node
from .canny import canny
from .resize import CROPS, IMAGE_METHODS, resize
from .room import require_room

IMAGE = image("image")
METHOD = choice("upscale_method", IMAGE_METHODS)


def resize_image(image: Tensor, width: int, height: int, method: str, crop: str = "disabled") -> Tensor:
    """IMAGE (B, h, w, C) -> (B, height, width, C)."""
    return resize(image.movedim(-1, 1), width, height, method, crop).movedim(1, -1)


class ImageNode(Node):
    """Base of the nodes that return an IMAGE."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)


class ImageScale(ImageNode):
    """Resizes images to a width and height; 0 keeps the aspect ratio."""

    CATEGORY = "image/upscaling"
    INPUTS = (IMAGE, METHOD, side("width", 512, step=1), side("height", 512, step=1), choice("crop", CROPS))

    def run(self, image: Tensor, upscale_method: str, width: int, height: int, crop: str) -> tuple[Tensor]:
        """-> IMAGE."""
        if width == 0 and height == 0:
            return (image,)
        rows, columns = image.shape[1:3]
        new_width = width or max(1, round(columns * height / rows))
        new_height = height or max(1, round(rows * width / columns))
        return (resize_image(image, new_width, new_height, upscale_method, crop),)


class ImageScaleBy(ImageNode):
    """Resizes images by a factor."""

    CATEGORY = "image/upscaling"
    INPUTS = (IMAGE, METHOD, number("scale_by", 1.0, 0.01, 8.0))

    def run(self, image: Tensor, upscale_method: str, scale_by: float) -> tuple[Tensor]:
        """-> IMAGE."""
        rows, columns = image.shape[1:3]
        return (resize_image(image, round(columns * scale_by), round(rows * scale_by), upscale_method),)


class ImageScaleToTotalPixels(ImageNode):
    """Resizes images to a number of pixels, in megapixels of 1024 x 1024."""

    CATEGORY = "image/upscaling"
    INPUTS = (IMAGE, METHOD, number("megapixels", 1.0, 0.01, 16.0))

    def run(self, image: Tensor, upscale_method: str, megapixels: float) -> tuple[Tensor]:
        """-> IMAGE."""
        rows, columns = image.shape[1:3]
        # ComfyUI rounds the number of pixels down before it computes the scale.
        scale = math.sqrt(int(megapixels * 1024 * 1024) / (columns * rows))
        return (resize_image(image, round(columns * scale), round(rows * scale), upscale_method),)


class ImageInvert(ImageNode):
    """Inverts the colours of images."""

    INPUTS = (IMAGE,)

    def run(self, image: Tensor) -> tuple[Tensor]:
        """-> IMAGE."""
        return (1.0 - image,)


class ImageBatch(ImageNode):
    """Joins two batches of images. The second is resized to the size of the first."""

    INPUTS = (image("image1"), image("image2"))

    def run(self, image1: Tensor, image2: Tensor) -> tuple[Tensor]:
        """-> IMAGE."""
        if image1.shape[1:3] != image2.shape[1:3]:
            # Bilinear and cropped at the centre, whatever the sizes, as in ComfyUI.
            image2 = resize_image(image2, image1.shape[2], image1.shape[1], "bilinear", "center")
        require_room((len(image1) + len(image2), *image1.shape[1:]))
        return (torch.cat((image1, image2)),)


class ImageCrop(ImageNode):
    """Cuts a rectangle out of images."""

    CATEGORY = "image/transform"
    INPUTS = (
        IMAGE, side("width", 512, 1, step=1), side("height", 512, 1, step=1), side("x", 0, step=1), side("y", 0, step=1)
    )  # fmt: skip

    def run(self, image: Tensor, width: int, height: int, x: int, y: int) -> tuple[Tensor]:
        """-> IMAGE of at least one pixel."""
        x, y = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
        return (image[:, y : y + height, x : x + width],)


class RepeatImageBatch(ImageNode):
    """Repeats a batch of images."""

    CATEGORY = "image/batch"
    INPUTS = (IMAGE, integer("amount", 1, 1, 4096))

    def run(self, image: Tensor, amount: int) -> tuple[Tensor]:
        """-> IMAGE."""
        require_room((len(image) * amount, *image.shape[1:]))
        return (image.repeat(amount, 1, 1, 1),)


class ImageFromBatch(ImageNode):
    """Takes some images of a batch."""

    CATEGORY = "image/batch"
    INPUTS = (IMAGE, integer("batch_index", 0, 0, 4095), integer("length", 1, 1, 4096))

    def run(self, image: Tensor, batch_index: int, length: int) -> tuple[Tensor]:
        """-> IMAGE."""
        first = min(len(image) - 1, batch_index)
        return (image[first : first + length].clone(),)


class GetImageSize(Node):
    """Returns the size of an image, and the number of images in the batch."""

    CATEGORY = "image"
    RETURN_TYPES = ("INT", "INT", "INT")
    RETURN_NAMES = ("width", "height", "batch_size")
    INPUTS = (IMAGE,)

    def run(self, image: Tensor) -> tuple[int, int, int]:
        """-> INT, INT, INT."""
        return image.shape[2], image.shape[1], len(image)


class EmptyImage(ImageNode):
    """Makes images of one colour, given as 0xRRGGBB."""

    INPUTS = (
        side("width", 512, 1, step=1),
        side("height", 512, 1, step=1),
        integer("batch_size", 1, 1, 4096),
        integer("color", 0, 0, 0xFFFFFF, step=1, display_mode="color"),
    )

    def run(self, width: int, height: int, batch_size: int = 1, color: int = 0) -> tuple[Tensor]:
        """-> IMAGE."""
        require_room((batch_size, height, width, 3))
        rgb = torch.tensor([(color >> shift & 0xFF) / 0xFF for shift in (16, 8, 0)])
        return (rgb.expand(batch_size, height, width, 3).clone(),)


def threshold(name: str, default: float) -> Field:
    """A gradient of the gray image, as a fraction of the largest."""
    return number(name, default, 0.01, 0.99)


class Canny(ImageNode):
    """Finds the edges of images, white on black."""

    CATEGORY = "image/preprocessors"
    INPUTS = (IMAGE, threshold("low_threshold", 0.4), threshold("high_threshold", 0.8))

    def run(self, image: Tensor, low_threshold: float, high_threshold: float) -> tuple[Tensor]:
        """-> IMAGE (B, H, W, 3) of 0 and 1."""
        edges = canny(image.movedim(-1, 1), low_threshold, high_threshold)
        return (edges.expand(-1, 3, -1, -1).movedim(1, -1).contiguous(),)


class ImagePadForOutpaint(Node):
    """Adds a gray border to be painted, and a mask of it. Feathering blends the mask into the image."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")
    INPUTS = (
        IMAGE, side("left", 0), side("top", 0), side("right", 0), side("bottom", 0), side("feathering", 40, step=1)
    )  # fmt: skip

    def run(
        self, image: Tensor, left: int, top: int, right: int, bottom: int, feathering: int
    ) -> tuple[Tensor, Tensor]:
        """-> IMAGE, MASK (1, H, W): 1 in the border, falling with the square of the distance from it."""
        rows, columns = image.shape[1:3]
        sides = (left, right, top, bottom)
        require_room((len(image), rows + top + bottom, columns + left + right, image.shape[-1]))
        padded = F.pad(image.movedim(-1, 1), sides, value=0.5).movedim(1, -1)
        inner = torch.zeros(rows, columns)
        # ComfyUI does not feather images that are smaller than the feathering on both sides.
        if 0 < 2 * feathering < min(rows, columns):
            depth = _distance_to_border(rows, columns, sides)
            inner = ((feathering - depth) / feathering).clamp(min=0.0).square()
        return padded, F.pad(inner, sides, value=1.0)[None]


def _distance_to_border(rows: int, columns: int, sides: tuple[int, int, int, int]) -> Tensor:
    """Distance in pixels to the nearest side that got a border (left, right, top, bottom)."""
    y, x = torch.arange(float(rows))[:, None], torch.arange(float(columns))[None, :]
    far = float(max(rows, columns))
    distances = (x, columns - x, y, rows - y)
    found = [d.expand(rows, columns) for d, side in zip(distances, sides, strict=True) if side]
    return torch.stack(found).amin(dim=0) if found else torch.full((rows, columns), far)
