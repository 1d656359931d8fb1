"""Small nodes of other packs on pictures, masks and latents: sizes, resizing, blur, comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...controlnet_core.errors import ShapeError
from ..fields import choice, image, integer, mask, number, optional, text
from ..node import Node
from ..values import Latent
from .latents import SAMPLES
from .masks import as_masks
from .pack_values import CATEGORY, ComparedImagesNode
from .resize import CROPS, resize
from .room import require_room

RESAMPLING: Mapping[str, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
}  # fmt: skip
SUPERSAMPLING = 8
"""How many times larger the picture between is, in which WAS Node Suite resizes."""
MAX_CELLS = 8192
WHOLE = 8
"""Sides of latents of Quality of Life Suit are multiples of this."""
O_METHODS = ("nearest-exact", "bilinear", "area")


class ImageSizeNode(Node):
    """The size of an image in pixels."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("INT", "INT")
    RETURN_NAMES = ("width", "height")
    INPUTS = (image("image"),)

    def run(self, image: Tensor) -> tuple[int, int]:
        """-> width, height."""
        return image.shape[2], image.shape[1]


class ResampledImageNode(Node):
    """Resizes images by a factor, or to a width and height that are raised to multiples of 8. With supersample, they
    are first enlarged to eight times the new size."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE",)
    INPUTS = (
        image("image"), choice("mode", ["rescale", "resize"]), choice("supersample", ["true", "false"]),
        choice("resampling", list(RESAMPLING)), number("rescale_factor", 2.0, 0.01, 16.0),
        integer("resize_width", 1024, 1, 48000), integer("resize_height", 1536, 1, 48000),
    )  # fmt: skip

    def run(
        self, image: Tensor, mode: str, supersample: str, resampling: str, rescale_factor: float, resize_width: int,
        resize_height: int,
    ) -> tuple[Tensor]:  # fmt: skip
        """-> IMAGE of whole bytes. Raises ShapeError for a side of 0 pixels, and OutOfMemory."""
        rows, columns = image.shape[1:3]
        if mode == "rescale":
            width, height = int(columns * rescale_factor), int(rows * rescale_factor)
        else:
            width, height = (-(-side // 8) * 8 for side in (resize_width, resize_height))
        if not width or not height:
            raise ShapeError(f"the new size is {width}x{height}: both sides must be at least 1")
        steps = [(width, height)]
        if supersample == "true":
            steps.insert(0, (width * SUPERSAMPLING, height * SUPERSAMPLING))
        # Pillow keeps four bytes for each pixel, as many as one number of float32.
        require_room((steps[0][1], steps[0][0]))
        require_room((len(image), height, width, image.shape[3]))
        return (torch.stack([_resample(frame, steps, RESAMPLING[resampling]) for frame in image]),)


def _resample(frame: Tensor, sizes: list[tuple[int, int]], method: Image.Resampling) -> Tensor:
    """(h, w, C) -> (H, W, C), through pictures of these sizes. Values are cut to bytes, not rounded, as there."""
    picture = Image.fromarray(np.clip(255.0 * frame.cpu().numpy(), 0, 255).astype(np.uint8))
    for size in sizes:
        picture = picture.resize(size, method)
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255.0)


class ScaledLatentNode(Node):
    """Resizes latents by a factor. align: the centres of the corners keep their places."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("LATENT",)
    INPUTS = (
        SAMPLES, choice("mode", ["area", "bicubic", "bilinear", "nearest"]), number("factor", 2.0, 0.1, 8.0),
        choice("align", ["true", "false"]),
    )  # fmt: skip

    def run(self, samples: Latent, mode: str, factor: float, align: str) -> tuple[Latent]:
        """-> LATENT."""
        cells = samples["samples"]
        height, width = (round(side * factor) for side in cells.shape[-2:])
        require_room((*cells.shape[:2], height, width))
        # Only these two methods can be aligned; torch refuses the argument for the others.
        aligned = {"align_corners": align == "true"} if mode in ("bicubic", "bilinear") else {}
        return ({**samples, "samples": F.interpolate(cells, (height, width), mode=mode, **aligned)},)


class StretchedLatentNode(Node):
    """Resizes latents by a factor for the width and one for the height, to the nearest multiples of 64 pixels."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("LATENT",)
    INPUTS = (
        SAMPLES, choice("upscale_method", O_METHODS), number("WidthFactor", 1.25, 0.0, 10.0),
        number("HeightFactor", 1.25, 0.0, 10.0), choice("crop", CROPS),
    )  # fmt: skip

    def run(
        self, samples: Latent, upscale_method: str, WidthFactor: float, HeightFactor: float, crop: str
    ) -> tuple[Latent]:
        """-> LATENT."""
        return (_stretch(samples, upscale_method, WidthFactor, HeightFactor, crop),)


class EnlargedLatentNode(Node):
    """Resizes latents by a factor, as the node with two factors does."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("LATENT",)
    INPUTS = (SAMPLES, choice("upscale_method", O_METHODS), number("factor", 1.25, 0.0, 10.0), choice("crop", CROPS))

    def run(self, samples: Latent, upscale_method: str, factor: float, crop: str) -> tuple[Latent]:
        """-> LATENT."""
        return (_stretch(samples, upscale_method, factor, factor, crop),)


def _stretch(samples: Latent, method: str, across: float, down: float, crop: str) -> Latent:
    cells = samples["samples"]
    height, width = (min(int(side * by), MAX_CELLS) for side, by in zip(cells.shape[-2:], (down, across), strict=True))
    # The upper multiple where both are equally near.
    width, height = ((side + WHOLE // 2) // WHOLE * WHOLE for side in (width, height))
    return {**samples, "samples": resize(cells, width, height, method, crop)}


class BlurredMaskNode(Node):
    """Blurs a mask with a Gaussian of an odd number of pixels."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("MASK",)
    INPUTS = (mask("mask"), integer("amount", 6, 0, 256), *optional(choice("device", ["auto", "cpu", "gpu"])))

    def run(self, mask: Tensor, amount: int, device: str = "auto") -> tuple[Tensor]:
        """-> MASK. Raises ShapeError for a mask that is not larger than half the Gaussian."""
        half = amount // 2
        if not half:
            return (mask,)
        masks = as_masks(mask)
        if min(masks.shape[-2:]) <= half:
            raise ShapeError(f"a mask of {masks.shape[-1]}x{masks.shape[-2]} cannot be blurred over {amount} pixels")
        # The deviation that OpenCV and torchvision take for a Gaussian of this width.
        deviation = 0.3 * (half - 1) + 0.8
        line = torch.exp(-0.5 * (torch.arange(-half, half + 1.0) / deviation) ** 2).to(masks)
        line /= line.sum()
        padded = F.pad(masks[:, None], (half,) * 4, mode="reflect")
        return (F.conv2d(F.conv2d(padded, line[None, None, :, None]), line[None, None, None])[:, 0],)


class ShownPairNode(ComparedImagesNode):
    """Shows two images, as `ComparedImagesNode`."""

    INPUTS = optional(image("image1"), image("image2"), text("state"))

    def run(self, prompt: Any = None, extra_pnginfo: Any = None, **images: Any) -> dict[str, Any]:
        """-> the written files, for the editor."""
        images.pop("state", None)  # what the editor shows
        return super().run(prompt, extra_pnginfo, **images)


PACK_PICTURES: Mapping[str, type] = {
    "Get Image Size": ImageSizeNode,
    "ImageGenResolutionFromImage": ImageSizeNode,
    "Image Resize": ResampledImageNode,
    "Latent Upscale by Factor (WAS)": ScaledLatentNode,
    "LatentUpscaleFactor _O": StretchedLatentNode,
    "LatentUpscaleFactorSimple _O": EnlargedLatentNode,
    "MaskBlur+": BlurredMaskNode,
    "PixaromaCompare": ShownPairNode,
}
"""By the IDs of Masquerade, comfyui_controlnet_aux, WAS Node Suite, Quality of Life Suit, essentials and Pixaroma."""
