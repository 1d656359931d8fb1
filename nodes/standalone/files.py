"""Native nodes that read and write pictures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...controlnet_core.picture_files import PICTURE_ENDINGS
from ..folders import list_files
from ..host import Node
from ..pictures import annotated_file, read_mask, read_picture, save_pictures


class _InputPicture(Node):
    """Base of the nodes that read a picture of the input folder."""

    @classmethod
    def names(cls) -> list[str]:
        """Pictures of the input folder, those in subfolders too."""
        return list(list_files([cls.host.input_dir], PICTURE_ENDINGS))

    @classmethod
    def path(cls, image: str) -> Path:
        """The file of a name. Raises PathError or MissingFileError."""
        return annotated_file(image, cls.host)

    @classmethod
    def IS_CHANGED(cls, image: str, **others: Any) -> str:
        """A digest of the file: a picture that was painted over is read again."""
        return hashlib.sha256(cls.path(image).read_bytes()).hexdigest()

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool:
        """Raises PathError or MissingFileError."""
        cls.path(image)
        return True


class LoadImage(_InputPicture):
    """A picture and its transparency."""

    CATEGORY = "image"
    DESCRIPTION = "Reads a picture of the input folder; what is transparent in it becomes the mask."
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": (cls.names(), {"image_upload": True})}}

    def run(self, image: str) -> tuple[Tensor, Tensor]:
        """-> IMAGE (frames, H, W, 3), MASK (frames, H, W) or (frames, 64, 64) where nothing is transparent."""
        return read_picture(self.path(image), self.host.on_note)


class LoadImageMask(_InputPicture):
    """One channel of a picture."""

    CATEGORY = "mask"
    DESCRIPTION = "Reads one channel of a picture of the input folder as a mask."
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        channels = ["alpha", "red", "green", "blue"]
        return {"required": {"image": (cls.names(), {"image_upload": True}), "channel": (channels,)}}

    def run(self, image: str, channel: str) -> tuple[Tensor]:
        """-> MASK (1, H, W)."""
        return (read_mask(self.path(image), channel),)


class SaveImage(Node):
    """Pictures into the output folder."""

    CATEGORY = "image"
    DESCRIPTION = "Saves pictures as PNG in the output folder, with the workflow inside."
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = (
            "How file names begin; folders with /, and %date:yyyy-MM-dd%, %width%, %height% or "
            "%NodeTitle.input% stand for their values."
        )
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "tooltip": tip}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def run(
        self, images: Tensor, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        """-> what was saved, for the editor. Raises PathError for a prefix that leaves the output folder."""
        saved = save_pictures(self.host.output_dir, filename_prefix, images, prompt, extra_pnginfo)
        return {"ui": {"images": [{**entry, "type": "output"} for entry in saved]}}


class PreviewImage(Node):
    """Pictures to look at; without the editor they lie in output/temp."""

    CATEGORY = "image"
    DESCRIPTION = "Shows pictures; without the editor they are written into the folder temp of the output folder."
    OUTPUT_NODE = True
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"images": ("IMAGE",)},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def run(self, images: Tensor, prompt: Any = None, extra_pnginfo: Any = None) -> dict[str, Any]:
        """-> what was written, for the editor."""
        saved = save_pictures(self.host.temp_dir, "preview", images, prompt, extra_pnginfo)
        return {"ui": {"images": [{**entry, "type": "temp"} for entry in saved]}, "result": (images,)}


class MaskToImage(Node):
    """A mask, to look at."""

    CATEGORY = "mask"
    DESCRIPTION = "Shows a mask as a gray picture."
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def run(self, mask: Tensor) -> tuple[Tensor]:
        """-> IMAGE."""
        return (mask.reshape(-1, *mask.shape[-2:], 1).expand(-1, -1, -1, 3).contiguous(),)


class ImageToMask(Node):
    """A channel of a picture, as a mask."""

    CATEGORY = "mask"
    DESCRIPTION = "Takes one channel of a picture as a mask."
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "channel": (["red", "green", "blue", "alpha"],)}}

    def run(self, image: Tensor, channel: str) -> tuple[Tensor]:
        """-> MASK; an absent alpha channel is white."""
        index = ("red", "green", "blue", "alpha").index(channel)
        return (image[..., index] if index < image.shape[-1] else torch.ones(image.shape[:-1]),)


class InvertMask(Node):
    """Outside for inside."""

    CATEGORY = "mask"
    DESCRIPTION = "Turns a mask inside out."
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def run(self, mask: Tensor) -> tuple[Tensor]:
        """-> MASK."""
        return (1.0 - mask,)


NODES: dict[str, type] = {
    "LoadImage": LoadImage,
    "LoadImageMask": LoadImageMask,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
    "MaskToImage": MaskToImage,
    "ImageToMask": ImageToMask,
    "InvertMask": InvertMask,
}
