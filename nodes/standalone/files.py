"""ComfyUI's nodes that read and write image files, and those on masks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...controlnet_core.picture_files import PICTURE_ENDINGS
from ..fields import choice, image, mask, text
from ..folders import list_files
from ..node import Node
from ..pictures import annotated_file, read_mask, read_picture, save_pictures, show_images

PICTURE = choice("image", lambda host: list_files([host.input_dir], PICTURE_ENDINGS), image_upload=True)


class InputPictureNode(Node):
    """Base of the nodes that read an image of the input folder."""

    @classmethod
    def path(cls, image: str) -> Path:
        """The file of a name. Raises PathError or MissingFileError."""
        return annotated_file(image, cls.host)

    @classmethod
    def IS_CHANGED(cls, image: str, **others: Any) -> str:
        """A digest of the file, so that an image that was edited is read again."""
        # By content, since an editor may save an image twice within the resolution of file times.
        return hashlib.sha256(cls.path(image).read_bytes()).hexdigest()

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool:
        """Raises PathError or MissingFileError."""
        cls.path(image)
        return True


class LoadImage(InputPictureNode):
    """Reads an image of the input folder. Its transparent part becomes the mask."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")
    INPUTS = (PICTURE,)

    def run(self, image: str) -> tuple[Tensor, Tensor]:
        """-> IMAGE (frames, H, W, 3), MASK (frames, H, W) or (frames, 64, 64) where nothing is transparent."""
        return read_picture(self.path(image), self.host.on_note)


class LoadImageMask(InputPictureNode):
    """Reads one channel of an image of the input folder as a mask."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    INPUTS = (PICTURE, choice("channel", ["alpha", "red", "green", "blue"]))

    def run(self, image: str, channel: str) -> tuple[Tensor]:
        """-> MASK (1, H, W)."""
        return (read_mask(self.path(image), channel),)


class SaveImage(Node):
    """Saves images as PNG in the output folder, with the workflow inside."""

    CATEGORY = "image"
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    INPUTS = (
        image("images"),
        text(
            "filename_prefix",
            "Start of the file names. May contain folders with /, and %date:yyyy-MM-dd%, %width%, %height% or "
            "%NodeTitle.input%, which are replaced by their values.",
            "ComfyUI",
        ),
    )
    HIDDEN = ("prompt", "extra_pnginfo")

    def run(
        self, images: Tensor, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        """-> the saved files, for the editor. Raises PathError for a prefix that leaves the output folder."""
        saved = save_pictures(self.host.output_dir, filename_prefix, images, prompt, extra_pnginfo)
        return {"ui": {"images": [{**entry, "type": "output"} for entry in saved]}}


class PreviewImage(Node):
    """Shows images. Without ComfyUI they are written into the folder temp in the output folder."""

    CATEGORY = "image"
    OUTPUT_NODE = True
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    INPUTS = (image("images"),)
    HIDDEN = ("prompt", "extra_pnginfo")

    def run(self, images: Tensor, prompt: Any = None, extra_pnginfo: Any = None) -> dict[str, Any]:
        """-> the written files, for the editor."""
        return {
            "ui": show_images(self.host, images, "preview", prompt=prompt, extra=extra_pnginfo),
            "result": (images,),
        }


class MaskToImage(Node):
    """Converts a mask to a gray image."""

    CATEGORY = "mask"
    RETURN_TYPES = ("IMAGE",)
    INPUTS = (mask("mask"),)

    def run(self, mask: Tensor) -> tuple[Tensor]:
        """-> IMAGE."""
        return (mask.reshape(-1, *mask.shape[-2:], 1).expand(-1, -1, -1, 3).contiguous(),)


class MaskNode(Node):
    """Base of the nodes that return a MASK."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)


class ImageToMask(MaskNode):
    """Converts one channel of an image to a mask."""

    INPUTS = (image("image"), choice("channel", ["red", "green", "blue", "alpha"]))

    def run(self, image: Tensor, channel: str) -> tuple[Tensor]:
        """-> MASK; white for the alpha channel of an image that has none."""
        index = ("red", "green", "blue", "alpha").index(channel)
        return (image[..., index] if index < image.shape[-1] else torch.ones(image.shape[:-1]),)


class InvertMask(MaskNode):
    """Inverts a mask."""

    INPUTS = (mask("mask"),)

    def run(self, mask: Tensor) -> tuple[Tensor]:
        """-> MASK."""
        return (1.0 - mask,)
