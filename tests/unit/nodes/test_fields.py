"""Fields and outputs of a node, and the V1 attributes that are generated from them."""

from __future__ import annotations

from typing import Any

from comfyui_controlnet_core.nodes.fields import (
    Output,
    choice,
    image,
    input_types,
    integer,
    number,
    optional,
    prompt,
    switch,
)
from comfyui_controlnet_core.nodes.node import Node, with_text


class Files:
    """A host with two files, and a third one later."""

    names = ("a", "b")

    def files(self, kind: str) -> tuple[str, ...]:
        return self.names if kind == "loras" else ()


def test_fields_become_the_groups_of_a_v1_node() -> None:
    fields = (image("image", "An image."), *optional(switch("on", False)), integer("n", 2, 0, 9, step=1))
    assert input_types(fields, ("unique_id",), None) == {
        "required": {
            "image": ("IMAGE", {"tooltip": "An image."}),
            "n": ("INT", {"default": 2, "min": 0, "max": 9, "step": 1}),
        },
        "optional": {"on": ("BOOLEAN", {"default": False})},
        "hidden": {"unique_id": "UNIQUE_ID"},
    }


def test_options_that_are_not_set_are_left_out_and_false_and_zero_are_kept() -> None:
    assert image("image").v1(None) == ("IMAGE",)
    level = number("x", 0.0, 0.0, 1.0, round=False, display_mode="slider", advanced=True, lazy=True)
    assert level.v1(None) == (
        "FLOAT",
        {
            "default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01, "round": False, "display": "slider",
            "advanced": True, "lazy": True,
        },
    )  # fmt: skip
    assert prompt("text").v1(None) == ("STRING", {"multiline": True, "dynamicPrompts": True})


def test_a_list_of_files_is_read_at_each_call() -> None:
    host = Files()
    field = choice("lora", lambda host: host.files("loras"), "A LoRA.", "b")
    assert field.v1(host) == (["a", "b"], {"default": "b", "tooltip": "A LoRA."})
    host.names = ("a", "b", "c")
    assert field.v1(host)[0] == ["a", "b", "c"]


class Two(Node):
    INPUTS = (image("image"),)
    OUTPUTS = (Output("IMAGE", "image", "An image."), Output("STRING", "text", "A text."))


class Three(Two):
    OUTPUTS = (*Two.OUTPUTS, Output("MASK", "mask", "A mask."))


class Inherited(Two):
    pass


def test_outputs_become_the_return_attributes_of_a_v1_node() -> None:
    cls: Any
    for cls, types in ((Two, ("IMAGE", "STRING")), (Three, ("IMAGE", "STRING", "MASK")), (Inherited, Two.RETURN_TYPES)):
        assert types == cls.RETURN_TYPES
        assert len(cls.RETURN_NAMES) == len(cls.OUTPUT_TOOLTIPS) == len(types)
        assert cls.INPUT_TYPES() == {"required": {"image": ("IMAGE",)}}
    assert Two.RETURN_NAMES == ("image", "text") and Three.OUTPUT_TOOLTIPS[2] == "A mask."


def test_a_result_with_text() -> None:
    assert with_text("done", 1, "x", images=[]) == {"ui": {"text": ["done"], "images": []}, "result": (1, "x")}


class Described(Two):
    """Joins two
    images.

    A note for developers.
    """


def test_the_first_paragraph_of_the_docstring_is_the_description() -> None:
    assert Described.DESCRIPTION == "Joins two images."
    assert Inherited.DESCRIPTION == Two.DESCRIPTION
