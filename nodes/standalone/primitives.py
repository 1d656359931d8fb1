"""Native nodes that hold one value."""

from __future__ import annotations

import sys
from typing import Any

from ..host import Node


class PrimitiveInt(Node):
    """A whole number."""

    CATEGORY = "utils/primitive"
    DESCRIPTION = "A whole number."
    RETURN_TYPES = ("INT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        options = {"default": 0, "min": -sys.maxsize, "max": sys.maxsize, "control_after_generate": True}
        return {"required": {"value": ("INT", options)}}

    def run(self, value: Any) -> tuple[Any]:
        """-> the value."""
        return (value,)


class PrimitiveFloat(PrimitiveInt):
    """A number."""

    DESCRIPTION = "A number."
    RETURN_TYPES = ("FLOAT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("FLOAT", {"default": 0.0, "min": -sys.maxsize, "max": sys.maxsize})}}


class PrimitiveBoolean(PrimitiveInt):
    """Yes or no."""

    DESCRIPTION = "Yes or no."
    RETURN_TYPES = ("BOOLEAN",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("BOOLEAN", {"default": False})}}


class PrimitiveString(PrimitiveInt):
    """A line of text."""

    DESCRIPTION = "A line of text."
    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("STRING", {"default": "", "multiline": False})}}


class PrimitiveStringMultiline(PrimitiveInt):
    """Text."""

    DESCRIPTION = "Text of any length."
    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("STRING", {"default": "", "multiline": True})}}


NODES: dict[str, type] = {
    "PrimitiveInt": PrimitiveInt,
    "PrimitiveFloat": PrimitiveFloat,
    "PrimitiveBoolean": PrimitiveBoolean,
    "PrimitiveString": PrimitiveString,
    "PrimitiveStringMultiline": PrimitiveStringMultiline,
}
