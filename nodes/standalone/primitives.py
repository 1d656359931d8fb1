"""ComfyUI's nodes that hold one value."""

from __future__ import annotations

import sys
from typing import Any

from ..fields import integer, number, switch, text
from ..node import Node


class PrimitiveInt(Node):
    """An integer."""

    CATEGORY = "utils/primitive"
    COMPUTES_VALUES = True
    RETURN_TYPES = ("INT",)
    # ComfyUI's limits: JavaScript cannot represent larger integers anyway.
    INPUTS = (integer("value", 0, -sys.maxsize, sys.maxsize, control_after_generate=True),)

    def run(self, value: Any) -> tuple[Any]:
        """-> the value."""
        return (value,)


class PrimitiveFloat(PrimitiveInt):
    """A number."""

    RETURN_TYPES = ("FLOAT",)
    INPUTS = (number("value", 0.0, -sys.maxsize, sys.maxsize, step=None),)


class PrimitiveBoolean(PrimitiveInt):
    """True or false."""

    RETURN_TYPES = ("BOOLEAN",)
    INPUTS = (switch("value", False),)


class PrimitiveString(PrimitiveInt):
    """A line of text."""

    RETURN_TYPES = ("STRING",)
    INPUTS = (text("value", multiline=False),)


class PrimitiveStringMultiline(PrimitiveInt):
    """A text of several lines."""

    RETURN_TYPES = ("STRING",)
    INPUTS = (text("value", multiline=True),)
