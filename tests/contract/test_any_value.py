"""Any value in any input of any node: a workflow is refused with a message or runs, and never fails otherwise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import CoreError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows.contract import InputSpec, read_spec
from comfyui_controlnet_core.workflows.execution import execute
from comfyui_controlnet_core.workflows.graph import Graph, Link, Node
from few import few_of
from graphs import check

NUMBERS = (-1, 0, True, 1e308, -1e308, math.nan, math.inf, 10**4000)
TEXTS = ("", "x" * 5000, "../x", "\0", "\ud800", "\u00b2", "9" * 5000, "nan", "1_000", "\u0661", "[", "{}", "a=b")
OTHERS = (None, [], {}, [1, 2], {"a": None})
FIELDS = (
    "1,2,x", "1e999", "0:1, 0.5:nan", "low=\u00b2", "(" * 99, "#zzz", "%", '{"people": 1}',
    '[{"canvas_width": 1e9, "canvas_height": 1e9, "people": []}]',
)  # fmt: skip
"""Further texts for fields with a syntax of their own."""


class Sink:
    """An output node, so that the node before it is run."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*",)}}

    def run(self, value: Any) -> dict[str, Any]:
        return {}


class Pixels:
    """An IMAGE and a MASK of 32 x 32."""

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
        return image, image[..., 0]


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, type]:
    folder = tmp_path_factory.mktemp("home")
    host = StandaloneHost(folder / "input", folder / "output", device="cpu")
    Path(host.input_dir).mkdir()
    return {**build_nodes(host), "Sink": Sink, "Pixels": Pixels}


def values_of(cls: type) -> dict[str, Any]:
    """Every input that has a plain value, at its default."""
    inputs = read_spec("", cls).inputs.values()
    return {item.name: item.default for item in inputs if item.is_widget and item.default is not None}


def before_a_sink(name: str, values: dict[str, Any]) -> Graph:
    pixels, node = Node("p", "Pixels", {}), Node("1", name, values)
    return Graph({"p": pixels, "1": node, "2": Node("2", "Sink", {"value": Link("1", 0)})})


@pytest.mark.parametrize("turn", few_of(range(4), 0))
def test_validation_answers_for_any_value_of_an_input(classes: dict[str, type], turn: int) -> None:
    """Each time a quarter of the values for each input, all of them over the inputs of a few nodes."""
    values, count = (*NUMBERS, *TEXTS, *OTHERS), turn
    for name, cls in classes.items():
        defaults = values_of(cls)
        for item in read_spec(name, cls).inputs.values():
            count += 1
            for value in values[count % 4 :: 4]:
                _, problems = check(before_a_sink(name, {**defaults, item.name: value}), classes)
                for problem in problems:
                    assert "its check failed" not in problem.message, (item.name, value)
                    assert len(problem.message) < 1000, (name, item.name, value)


def linked(item: InputSpec) -> Link:
    return Link("p", 0 if item.type == "IMAGE" else 1)


def test_fields_with_a_syntax_refuse_bad_text_with_a_message(classes: dict[str, type]) -> None:
    """Nodes that read only images and texts are really run, where validation accepts the value."""
    ran = set()
    for name, cls in classes.items():
        inputs = read_spec(name, cls).inputs.values()
        needed = [item for item in inputs if item.required and not item.is_widget]
        fields = [item for item in inputs if item.type == "STRING" and item.name != "filename_prefix"]
        if name == "Sink" or any(item.type not in ("IMAGE", "MASK") for item in needed) or "Train" in name:
            continue
        for field in fields:
            ran.add(name)
            given = {**values_of(cls), **{item.name: linked(item) for item in needed}}
            for text in (*TEXTS, *FIELDS):
                graph, problems = check(before_a_sink(name, {**given, field.name: text}), classes)
                if problems:
                    continue
                try:
                    execute(graph, classes)
                except CoreError as error:
                    assert type(error) is not CoreError, (name, field.name, text, error)
    assert {"CNCore_PoseRender", "CNCore_Preprocess", "CNCore_BlockWeights", "CNCore_StrengthSchedule"} <= ran
