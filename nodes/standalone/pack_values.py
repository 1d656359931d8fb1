"""Small nodes of other packs that hold or pass on values, and that many workflows have: texts, seeds, switches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...controlnet_core.errors import MissingFileError, ValueRangeError
from ..fields import clip, image, integer, optional, seed, socket, text
from ..folders import find_file
from ..node import Node
from ..pictures import show_images
from ..values import Conditioning

CATEGORY = "ControlNet Core/other packs"
TEXT_ENDINGS = frozenset({".txt", ".csv", ".md"})
MAX_TEXT = 2**20
"""Bytes of a text file."""
SDXL_SIZES = (
    (1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216), (1344, 768), (768, 1344), (1536, 640), (640, 1536)
)  # fmt: skip
"""Widths and heights that are usual with SDXL, a part of the sizes of its training (Podell et al. 2023, appendix I)."""


class TextNode(Node):
    """A text of several lines."""

    CATEGORY = CATEGORY
    COMPUTES_VALUES = True
    RETURN_TYPES = ("STRING",)
    INPUTS = (text("text", multiline=True),)

    def run(self, text: str) -> tuple[str]:
        """-> the text."""
        return (text,)


class TextsNode(Node):
    """Up to four lines of text."""

    CATEGORY = CATEGORY
    COMPUTES_VALUES = True
    RETURN_TYPES = ("STRING",) * 4
    INPUTS = (text("text"), *optional(text("text_b"), text("text_c"), text("text_d")))

    def run(self, text: str, text_b: str = "", text_c: str = "", text_d: str = "") -> tuple[str, str, str, str]:
        """-> the texts."""
        return text, text_b, text_c, text_d


class EncodedTextNode(Node):
    """Encodes a linked text with the text encoder."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("CONDITIONING",)
    INPUTS = (clip("clip"), text("text"))

    def run(self, clip: Any, text: str) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        return (self.host.encode_prompt(clip, text),)


class TextFileNode(Node):
    """Reads a text file of the input folder."""

    CATEGORY = CATEGORY
    COMPUTES_VALUES = True
    RETURN_TYPES = ("STRING", "DICT")
    INPUTS = (text("file_path"), text("dictionary_name", default="[filename]"))

    def run(self, file_path: str, dictionary_name: str = "") -> tuple[str, dict[str, list[str]]]:
        """-> the text, and its lines under a name. Raises PathError or MissingFileError."""
        path = find_file([self.host.input_dir], file_path, "text", TEXT_ENDINGS)
        if path.suffix.lower() not in TEXT_ENDINGS or path.stat().st_size > MAX_TEXT:
            raise MissingFileError(f"{path} is no text file of at most {MAX_TEXT >> 20} MB: name another one", path)
        # As that pack does: a prompt with one odd character is still useful.
        content = path.read_text("utf-8", errors="replace")
        name = path.stem if dictionary_name in ("", "[filename]") else dictionary_name
        return content, {name: content.splitlines()}


class SeedsNode(Node):
    """A seed as four types of numbers."""

    CATEGORY = CATEGORY
    COMPUTES_VALUES = True
    RETURN_TYPES = ("SEED", "NUMBER", "FLOAT", "INT")
    INPUTS = (seed(),)

    def run(self, seed: int) -> tuple[dict[str, int], float, float, int]:
        """-> the seed."""
        return {"seed": seed}, float(seed), float(seed), seed


class SentSeedNode(Node):
    """A seed, which the editor sends to all inputs for seeds."""

    CATEGORY = CATEGORY
    COMPUTES_VALUES = True
    RETURN_TYPES = ("INT",)
    INPUTS = (seed(),)

    def run(self, seed: int) -> tuple[int]:
        """-> the seed."""
        return (seed,)


class SeedNode(Node):
    """A seed."""

    CATEGORY = CATEGORY
    COMPUTES_VALUES = True
    RETURN_TYPES = ("INT",)
    # Negative ones are commands of that pack: random, one more, one less.
    INPUTS = (integer("seed", 0, -3, 2**53, control_after_generate=False),)

    def run(self, seed: int) -> tuple[int]:
        """-> the seed. Raises ValueRangeError for the numbers that stand for a random or the next seed."""
        if seed < 0:
            raise ValueRangeError(f"seed {seed} means a seed that the editor chooses: set one, or use --seeds")
        return (seed,)


class NearestSizeNode(Node):
    """The size that SDXL was trained on whose ratio of width to height is nearest to an image's."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("INT", "INT")
    RETURN_NAMES = ("width", "height")
    INPUTS = (image("image"),)

    def run(self, image: Tensor) -> tuple[int, int]:
        """-> width, height."""
        ratio = image.shape[2] / image.shape[1]
        # Wide and high sizes are not equally far from a ratio between them, so the distance is that of the ratios.
        return min(SDXL_SIZES, key=lambda size: abs(ratio - size[0] / size[1]))


class FirstValueNode(Node):
    """Passes on the first of its inputs that has a value."""

    CATEGORY = CATEGORY
    COMPUTES_VALUES = True
    RETURN_TYPES = ("*",)
    INPUTS = optional(*(socket("*", f"any_{number:02}") for number in range(1, 13)))

    def run(self, **given: Any) -> tuple[Any]:
        """-> the value, None without any."""
        return (next((given[name] for name in sorted(given) if given[name] is not None), None),)


class ComparedImagesNode(Node):
    """Shows two images. Without ComfyUI they are written into the folder temp in the output folder."""

    CATEGORY = CATEGORY
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    INPUTS = optional(image("image_a"), image("image_b"))
    HIDDEN = ("prompt", "extra_pnginfo")

    def run(self, prompt: Any = None, extra_pnginfo: Any = None, **images: Any) -> dict[str, Any]:
        """-> the written files, for the editor."""
        files: list[Any] = []
        for name in sorted(images):
            if images[name] is not None:
                files += show_images(self.host, images[name], name, prompt=prompt, extra=extra_pnginfo)["images"]
        return {"ui": {"images": files}}


class ShownTextNode(Node):
    """Shows a linked text, and passes it on."""

    CATEGORY = CATEGORY
    COMPUTES_VALUES = True
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)
    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """A text that is linked: the widget of the editor holds what was shown last."""
        return {"required": {"text": ("STRING", {"forceInput": True})}}

    def run(self, text: list[str]) -> dict[str, Any]:
        """-> the texts."""
        return {"ui": {"text": text}, "result": (text,)}


PACK_VALUES: Mapping[str, type] = {
    "Text Multiline": TextNode,
    "Text String": TextsNode,
    "Text to Conditioning": EncodedTextNode,
    "Load Text File": TextFileNode,
    "Seed": SeedsNode,
    "Seed Everywhere": SentSeedNode,
    "Seed (rgthree)": SeedNode,
    "CM_NearestSDXLResolution": NearestSizeNode,
    "Any Switch (rgthree)": FirstValueNode,
    "Image Comparer (rgthree)": ComparedImagesNode,
    "ImageCompare": ComparedImagesNode,
    "ShowText|pysssss": ShownTextNode,
}
"""By the IDs of WAS Node Suite, Use Everywhere, ComfyMath, rgthree-comfy, Custom-Scripts, and newer ComfyUI."""
