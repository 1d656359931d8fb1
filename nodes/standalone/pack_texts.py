"""Small nodes of other packs that join, change and choose texts, and that choose or bundle other values."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

from ...controlnet_core.errors import ValueRangeError
from ..fields import Field, choice, integer, optional, seed, socket, text
from ..node import Node
from .pack_values import CATEGORY, SDXL_SIZES, TextNode

MAX_REPLACEMENTS = 10_000
"""Replacements in one text. A text that holds its own replacement would never end."""
CONTEXT_TYPE = "RGTHREE_CONTEXT"
CONTEXT: tuple[Field, ...] = optional(
    socket("MODEL", "model"), socket("CLIP", "clip"), socket("VAE", "vae"), socket("CONDITIONING", "positive"),
    socket("CONDITIONING", "negative"), socket("LATENT", "latent"), socket("IMAGE", "images"),
    integer("seed", 0, 0, 2**64 - 1, force_input=True),
)  # fmt: skip
"""What a context of rgthree-comfy bundles, in the order of its outputs."""
RATIOS: Mapping[tuple[int, int], str] = {
    (1024, 1024): "1:1", (1152, 896): "4:3", (1216, 832): "3:2", (1344, 768): "16:9", (1536, 640): "21:9",
    (896, 1152): "3:4", (832, 1216): "2:3", (768, 1344): "9:16", (640, 1536): "9:21",
}  # fmt: skip
"""Ratios of width to height, as that pack writes them."""


def _describe(width: int, height: int) -> str:
    shape = "square" if width == height else "landscape" if width > height else "portrait"
    return f"{shape} - {width}x{height} ({RATIOS[width, height]})"


NAMED_SIZES: Mapping[str, tuple[int, int]] = {_describe(*size): size for size in sorted(RATIOS, key=SDXL_SIZES.index)}


class ValueNode(Node):
    """Base of the nodes whose outputs follow at once from their inputs."""

    CATEGORY = CATEGORY
    COMPUTES_VALUES = True
    RETURN_TYPES = ("STRING",)


class JoinedTextsNode(ValueNode):
    r"""Joins up to four texts. Empty ones are left out; a delimiter of \n begins a new line."""

    INPUTS = (
        text("delimiter", default=", "), choice("clean_whitespace", ["true", "false"]),
        *optional(text("text_a"), text("text_b"), text("text_c"), text("text_d")),
    )  # fmt: skip

    def run(self, delimiter: str, clean_whitespace: str, **texts: str) -> tuple[str]:
        """-> the joined text."""
        given = [texts[name] for name in sorted(texts)]
        if clean_whitespace == "true":
            given = [one.strip() for one in given]
        return (("\n" if delimiter == "\\n" else delimiter).join(one for one in given if one),)


class RandomLineNode(ValueNode):
    """Chooses a line of a text by a seed."""

    INPUTS = (text("text", force_input=True), seed())

    def run(self, text: str, seed: int) -> tuple[str]:
        """-> the line: the one that Python's generator chooses for this seed, as in that pack."""
        return (random.Random(seed).choice(text.split("\n")),)


class ReplacedTextNode(ValueNode):
    """Replaces a text in another one, again and again until it is no longer there."""

    RETURN_TYPES = ("STRING", "NUMBER", "FLOAT", "INT")
    INPUTS = (text("text", force_input=True), text("find", force_input=True), text("replace", force_input=True))

    def run(self, text: str, find: str, replace: str) -> tuple[str, int, float, int]:
        """-> the text, and three times the number of replacements. Raises ValueRangeError if there is no end."""
        count = 0
        while find in text:
            if count == MAX_REPLACEMENTS:
                raise ValueRangeError(f"replacing {find!r} by {replace!r} does not end: the new text holds the old one")
            text, count = text.replace(find, replace, 1), count + 1
        return text, count, float(count), count


class PrintedTextNode(Node):
    """Prints a text under a label, and passes it on."""

    # Not a node that a check computes: it would print then, too.
    CATEGORY = CATEGORY
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    INPUTS = (text("text", force_input=True), text("label", default="Text Output"))

    def run(self, text: str, label: str) -> tuple[str]:
        """-> the text."""
        self.host.on_note(f"{label.strip() or 'Text to Console'}: {text}")
        return (text,)


class SpacedTextNode(TextNode):
    """A text of several lines. That pack puts a space behind it."""

    def run(self, text: str) -> tuple[str]:
        """-> the text and a space."""
        return (f"{text} ",)


class NamedSizeNode(ValueNode):
    """A size that is usual with SDXL."""

    RETURN_TYPES = ("INT", "INT")
    RETURN_NAMES = ("width", "height")
    INPUTS = (choice("resolution", list(NAMED_SIZES)),)

    def run(self, resolution: str) -> tuple[int, int]:
        """-> width, height."""
        return NAMED_SIZES[resolution]


class ChosenInputNode(Node):
    """Passes on the first or the second of two inputs."""

    CATEGORY = CATEGORY
    STEM: ClassVar[str]

    def run(self, Input: int, **given: Any) -> tuple[Any, str]:
        """-> the value, and a text of help. Raises ValueRangeError if nothing is linked to the chosen input."""
        name = f"{self.STEM}{Input}"
        if given.get(name) is None:
            raise ValueRangeError(f"input {name} is chosen, and nothing is linked to it: link it, or choose the other")
        return given[name], self.DESCRIPTION


def _chosen(kind: str, stem: str) -> type[ChosenInputNode]:
    """The class for one type of value. stem: the name of its inputs, without their number."""
    inputs = (integer("Input", 1, 1, 2), *optional(socket(kind, f"{stem}1"), socket(kind, f"{stem}2")))
    attributes = {"STEM": stem, "INPUTS": inputs, "RETURN_TYPES": (kind, "STRING"), "__doc__": ChosenInputNode.__doc__}
    return type(f"Chosen{kind.title()}Node", (ChosenInputNode,), attributes)


class ContextNode(Node):
    """Bundles what a sampling needs. What is linked replaces what the given bundle has."""

    CATEGORY = CATEGORY
    RETURN_TYPES = (CONTEXT_TYPE, *(field.type for field in CONTEXT))
    RETURN_NAMES = ("CONTEXT", *(field.name for field in CONTEXT))
    INPUTS = (*optional(socket(CONTEXT_TYPE, "base_ctx")), *CONTEXT)

    def run(self, base_ctx: Mapping[str, Any] | None = None, **given: Any) -> tuple[Any, ...]:
        """-> the bundle, and each of its values, None for those that it does not have."""
        return unpack({**(base_ctx or {}), **{name: value for name, value in given.items() if value is not None}})


class ContextSwitchNode(Node):
    """Passes on the first bundle that holds anything."""

    CATEGORY = CATEGORY
    RETURN_TYPES, RETURN_NAMES = ContextNode.RETURN_TYPES, ContextNode.RETURN_NAMES
    INPUTS = optional(*(socket(CONTEXT_TYPE, f"ctx_{number:02}") for number in range(1, 13)))

    def run(self, **given: Mapping[str, Any] | None) -> tuple[Any, ...]:
        """-> as `ContextNode`."""
        return unpack(next((bundle for _, bundle in sorted(given.items()) if bundle), {}))


def unpack(bundle: Mapping[str, Any]) -> tuple[Any, ...]:
    """The outputs of a node that gives a bundle."""
    return bundle, *(bundle.get(field.name) for field in CONTEXT)


PACK_TEXTS: Mapping[str, type] = {
    "Text Concatenate": JoinedTextsNode,
    "Text Random Line": RandomLineNode,
    "Text Find and Replace Input": ReplacedTextNode,
    "Text to Console": PrintedTextNode,
    "Text _O": SpacedTextNode,
    "SDXL Resolutions (JPS)": NamedSizeNode,
    "CR Image Input Switch": _chosen("IMAGE", "image"),
    "CR Latent Input Switch": _chosen("LATENT", "latent"),
    "CR Conditioning Input Switch": _chosen("CONDITIONING", "conditioning"),
    "Context (rgthree)": ContextNode,
    "Context Switch (rgthree)": ContextSwitchNode,
}
"""By the IDs of WAS Node Suite, Quality of Life Suit, JPS, Comfyroll Studio and rgthree-comfy."""
