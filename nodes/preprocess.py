"""Hints from pictures: one node for all preprocessors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import preprocessors
from ..controlnet_core.errors import CoreError, MissingFileError, ValueRangeError
from .host import Node


class Preprocess(Node):
    """A picture in, a hint out."""

    DISPLAY_NAME = "Preprocess"
    CATEGORY = "ControlNet Core/preprocess"
    DESCRIPTION = (
        "Makes the hint that a ControlNet was trained to read from a picture: edges, lines, scribbles, maps. "
        "Choose the kind that belongs to your net."
    )
    SEARCH_ALIASES = ["canny", "aio preprocessor", "edges", "scribble", "lineart"]
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("hint",)
    OUTPUT_TOOLTIPS = ("The hint: link it to Apply ControlNet, or preview it.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The picture to follow."}),
                "kind": (
                    list(preprocessors.names()),
                    {"default": "canny", "tooltip": "What is looked for in the picture."},
                ),
                "resolution": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 8192,
                        "step": 8,
                        "tooltip": "Shortest side of the hint in pixels; 0 keeps the picture's own size. "
                        "Best is the size of the picture to be made.",
                    },
                ),
                "resize": (
                    ["shortest", "pixel_perfect"],
                    {
                        "default": "shortest",
                        "tooltip": "shortest: the shortest side becomes the resolution. pixel_perfect: as large as "
                        "a square picture of that side needs, so that one hint pixel is one picture pixel.",
                    },
                ),
            },
            "optional": {
                "settings": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Settings of the kind, such as low=50, high=150 for canny; empty means defaults.",
                    },
                ),
                "mask": ("MASK", {"tooltip": "The hint stays black where the mask is black."}),
            },
        }

    def run(
        self,
        image: Tensor,
        kind: str,
        resolution: int,
        resize: str,
        settings: str = "",
        mask: Tensor | None = None,
    ) -> tuple[Tensor]:
        """-> IMAGE (B, H, W, 3). Raises ValueRangeError for settings that the kind does not have."""
        options = read_settings(settings)
        try:
            entry = preprocessors.get(kind)
            hint = entry.process(
                image,
                library=self.host.library() if entry.weights else None,
                resolution=resolution,
                resize=resize,
                output="detect_size",
                mask=mask,
                progress=self.host.progress,
                **options,
            )
        except preprocessors.PreprocessorError as error:
            raise as_core_error(error) from error
        return (hint,)


def read_settings(text: str) -> dict[str, Any]:
    """ "low=50, high=150" -> {"low": 50, "high": 150}. Raises ValueRangeError."""
    settings: dict[str, Any] = {}
    for part in text.replace("\n", ",").split(","):
        name, equals, value = part.partition("=")
        if part.strip() and not equals:
            raise ValueRangeError(f"settings {part.strip()!r}: expected name=value, for instance low=50, high=150")
        if part.strip():
            settings[name.strip()] = _value(value.strip())
    return settings


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def as_core_error(error: preprocessors.PreprocessorError) -> CoreError:
    """The same message as an error of the engine, so that it ends in the same exit code."""
    kinds = {2: ValueRangeError, 3: MissingFileError}
    return kinds.get(error.exit_code, CoreError)(str(error))
