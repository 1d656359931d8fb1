"""The node that enlarges an image and adds detail to it tile by tile."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .fields import Output, image, integer, number, optional, share, side, socket, vae
from .node import Node
from .sample import GUIDED_MODEL, SETTINGS
from .values import Conditioning, SamplerInputs


class TiledUpscale(Node):
    """Enlarges an image, and lets the model add detail to it tile by tile, so that any size fits into memory. Each
    tile sees its part of the hints and masks of the ControlNets. With a tile ControlNet, whose hint is the same image,
    each tile keeps what the image shows there.
    """

    DISPLAY_NAME = "Tiled Upscale"
    CATEGORY = "ControlNet Core/sample"
    SEARCH_ALIASES = ["ultimate sd upscale", "tile controlnet", "hires fix", "super resolution", "tiled diffusion"]
    INPUTS = (
        *GUIDED_MODEL,
        vae("vae", "Encodes and decodes the tiles."),
        image("image", "The image to enlarge."),
        number("scale_by", 2.0, 0.1, 16.0, "How many times larger. Ignored if width or height is set.", step=0.1),
        side("width", 0, step=1, tooltip="Width of the result in pixels. 0: by scale_by, or by height."),
        side("height", 0, step=1, tooltip="Height of the result in pixels. 0: by scale_by, or by width."),
        integer(
            "tile_size", 512, 64, 4096,
            "Side of a tile in pixels: the size that the model was trained for, 512 for Stable Diffusion 1.5, 1024 for "
            "SDXL.", step=8,
        ),
        integer("overlap", 64, 0, 2048, "Pixels over which neighbouring tiles are faded into each other.", step=8),
        *SETTINGS,
        share(
            "denoise", 0.35,
            "How much of the image is made new. 0.2 sharpens, 0.5 invents detail. Above 0.5 a tile may show things "
            "that do not belong there, unless a tile ControlNet prevents it.",
        ),
        *optional(
            socket(
                "UPSCALE_MODEL", "upscale_model",
                "Enlarges the image first, such as ESRGAN; the result is then brought to the size. Without it the "
                "image is resized by Lanczos.",
            )
        ),
    )  # fmt: skip
    OUTPUTS = (Output("IMAGE", "image", "The enlarged image."),)

    def run(
        self, model: Any, positive: Conditioning, negative: Conditioning, vae: Any, image: Tensor, scale_by: float,
        width: int, height: int, tile_size: int, overlap: int, upscale_model: Any = None, **settings: Any,
    ) -> tuple[Tensor]:  # fmt: skip
        """-> IMAGE (B, H, W, 3). Raises ValueRangeError for a size or an overlap that is not possible."""
        from ..controlnet_core.sample import SampleSettings
        from .tile_sampling import enlarge_to, sample_tiles, target_size

        size = target_size((image.shape[1], image.shape[2]), scale_by, width, height)
        large = enlarge_to(self.host, image[..., :3], size, upscale_model)
        inputs = SamplerInputs(model, positive, negative, {}, SampleSettings(**settings))
        return (sample_tiles(self.host, inputs, vae, large, tile_size, overlap),)
