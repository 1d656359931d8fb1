"""Graphs: order, validation, execution, values set from outside."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from comfyui_controlnet_core.controlnet_core.errors import (
    CoreError,
    Interrupted,
    MissingFileError,
    OutOfMemory,
    PathError,
    WorkflowError,
)
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.preprocessors.catalog import ENTRIES
from comfyui_controlnet_core.workflows.contract import types_fit
from comfyui_controlnet_core.workflows.equivalents import equivalents
from comfyui_controlnet_core.workflows.execution import Cache, NodeEvent, execute
from comfyui_controlnet_core.workflows.graph import Graph, Link, Node
from comfyui_controlnet_core.workflows.overrides import apply_settings, parse_seeds, with_seed
from graphs import check, validate


class Number:
    calls = 0
    RETURN_TYPES = ("NUMBER",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"value": ("INT", {"default": 1, "min": 0, "max": 100})},
            "optional": {"scale": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0})},
        }

    def run(self, value: int, scale: float = 1.0) -> tuple[float]:
        type(self).calls += 1
        return (value * scale,)


class Add:
    RETURN_TYPES = ("NUMBER", "STRING")
    RETURN_NAMES = ("sum", "words")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"a": ("NUMBER",), "b": ("NUMBER,INT",)}, "hidden": {"me": "UNIQUE_ID"}}

    def run(self, a: float, b: float, me: str) -> tuple[float, str]:
        return (a + b, f"{me}: {a} + {b}")


class Show:
    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"value": ("*",)},
            "optional": {"mode": (["plain", "fancy"],), "model": (["a.safetensors", "sub/b.safetensors"],)},
            "hidden": {"prompt": "PROMPT", "extra": "EXTRA_PNGINFO"},
        }

    def run(self, value: Any, prompt: Any, extra: Any, mode: str = "plain", model: str = "") -> dict[str, Any]:
        return {"ui": {"shown": [value], "prompt": [prompt], "extra": [extra]}}


class Sampler:
    RETURN_TYPES = ("NUMBER",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seed": ("INT", {"default": 0}), "loud": ("BOOLEAN", {"default": False})}}

    def run(self, seed: int, loud: bool) -> tuple[int]:
        return (seed,)


CLASSES: dict[str, type] = {"Number": Number, "Add": Add, "Show": Show, "Sampler": Sampler}


def graph(**nodes: Any) -> Graph:
    """graph(n1=("Number", {"value": 2})): ids are the names without their letter."""
    return Graph({key[1:]: Node(key[1:], kind, inputs) for key, (kind, inputs) in nodes.items()})


def chain(value: Any = 2) -> Graph:
    return graph(
        n1=("Number", {"value": value}),
        n2=("Number", {"value": 3, "scale": 2.0}),
        n3=("Add", {"a": Link("1", 0), "b": Link("2", 0)}),
        n4=("Show", {"value": Link("3", 0)}),
    )


def messages(g: Graph) -> list[str]:
    return [problem.message for problem in check(g, CLASSES)[1]]


# ---- order ------------------------------------------------------------------------------------------


def test_order_puts_sources_first_and_leaves_out_what_nobody_needs() -> None:
    g = chain()
    loose = Graph({**g.nodes, "9": Node("9", "Number", {"value": 1})})
    assert loose.order(["4"]) == ("1", "2", "3", "4")


def test_order_of_a_very_long_chain_needs_no_recursion() -> None:
    nodes = {"0": Node("0", "Number", {"value": 1})}
    nodes |= {str(i): Node(str(i), "Add", {"a": Link(str(i - 1), 0)}) for i in range(1, 4000)}
    assert len(Graph(nodes).order(["3999"])) == 4000


def test_cycle_is_named() -> None:
    g = graph(
        n1=("Add", {"a": Link("2", 0), "b": Link("2", 0)}),
        n2=("Add", {"a": Link("1", 0), "b": Link("1", 0)}),
        n3=("Show", {"value": Link("1", 0)}),
    )
    assert "cycle: node 1 (Add) <- node 2 (Add) <- node 1 (Add)" in messages(g)[0]


# ---- validation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted", "fits"),
    [
        ("IMAGE", "IMAGE", True),
        ("IMAGE", "MASK,IMAGE", True),
        ("A, B", "B,C", True),
        ("IMAGE", "MASK", False),
        ("IMAGE", "*", True),
        ("*", "MASK", True),
        (["x", "y"], "COMBO", True),
    ],
)
def test_types_fit_as_unions(given: Any, wanted: str, fits: bool) -> None:
    assert types_fit(given, wanted) is fits


@pytest.mark.parametrize(
    ("g", "parts"),
    [
        (graph(n1=("Shwo", {})), ["node 1 (Shwo)", "not known", "did you mean Show?"]),
        (graph(n1=("Show", {})), ["node 1 (Show), input value", "missing", "link it to a * output"]),
        (graph(n1=("Show", {"value": Link("7", 0)})), ["node 7", "not there"]),
        (graph(n1=("Number", {"value": 1})), ["no output node", "add SaveImage"]),
        (Graph({}), ["no nodes"]),
        (chain(101), ["node 1 (Number), input value", "is 101", "the most is 100"]),
        (chain(-1), ["is -1", "the least is 0"]),
        (chain("many"), ["takes a whole number, got 'many'"]),
        (chain(10**4000), ["is 1000", "...", "the most is 100"]),
        (chain("9" * 6000), ["takes a whole number, got '999"]),
        (
            graph(n1=("Number", {"value": 1, "scale": 10**4000}), n2=("Show", {"value": Link("1", 0)})),
            ["takes a number, got 1000"],
        ),
        (chain(None), ["takes a whole number, got None"]),
        (chain([1, 2]), ["takes a whole number, got [1, 2]"]),
        (chain(math.nan), ["nan", "no usable number"]),
        (chain(math.inf), ["inf", "no usable number"]),
    ],
)
def test_problems_name_node_input_and_remedy(g: Graph, parts: list[str]) -> None:
    text = messages(g)[0]
    for part in parts:
        assert part in text


def test_messages_are_short_whatever_came() -> None:
    for value in (10**4000, "9" * 6000, {"a": ["b" * 9000]}):
        for g in (chain(value), graph(n1=("Show", {"value": 1, "mode": value, "model": value}))):
            assert all(len(message) < 300 for message in messages(g))
    with pytest.raises(WorkflowError) as caught:
        apply_settings(chain(), CLASSES, ["1.value=" + "9" * 6000])
    assert len(str(caught.value)) < 300


def test_wrong_type_slot_and_literal_in_place_of_a_link() -> None:
    g = graph(
        n1=("Number", {"value": 1}),
        n2=("Add", {"a": Link("1", 3), "b": 5}),
        n3=("Add", {"a": Link("2", 1), "b": Link("1", 0)}),
        n4=("Show", {"value": Link("3", 0), "mode": "fency", "model": "c.safetensors"}),
        n5=("Show", {"value": 1, "model": "../../etc/passwd"}),
        n6=("Show", {"value": Link("2", 0)}),
    )
    text = "\n".join(messages(g))
    assert "takes output 3 of node 1 (Number), which has 1" in text
    assert "node 3 (Add), input a: takes NUMBER, node 2 (Add) gives STRING" in text
    assert "did you mean 'fancy'" in text
    assert "there is no file 'c.safetensors'" in text
    assert "leaves its folder" in text
    assert "input b: takes a NUMBER,INT from another node, got 5" in text


def test_the_gravest_kind_of_problem_decides_the_error() -> None:
    missing = graph(n1=("Show", {"value": 1, "model": "c.safetensors"}))
    with pytest.raises(MissingFileError) as caught:
        validate(missing, CLASSES)
    assert caught.value.exit_code == 3
    both = graph(n1=("Show", {"value": 1, "model": "c.safetensors"}), n2=("Show", {}))
    with pytest.raises(WorkflowError, match="1 more"):
        validate(both, CLASSES)
    out = graph(n1=("Show", {"value": 1, "model": "../c.safetensors"}), n2=("Show", {}))
    with pytest.raises(PathError):
        validate(out, CLASSES)


def test_a_recommended_file_is_named_with_its_folder() -> None:
    advice = ({"name": "c.safetensors", "directory": "controlnet", "url": "https://example.org/c"},)
    g = Graph({"1": Node("1", "Show", {"value": 1, "model": "c.safetensors"}, models=advice)})
    assert "put it into models/controlnet (the workflow names https://example.org/c)" in messages(g)[0]


def test_values_are_brought_to_their_type_as_the_host_does() -> None:
    g = graph(
        n1=("Number", {"value": "20", "scale": 1}),
        n2=("Show", {"value": Link("1", 0), "model": "sub\\b.safetensors", "not_declared": 5}),
    )
    done = validate(g, CLASSES)
    assert done.nodes["1"].inputs == {"value": 20, "scale": 1.0}
    assert isinstance(done.nodes["1"].inputs["scale"], float)
    assert done.nodes["2"].inputs["model"] == "sub/b.safetensors"


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("../a", "leaves the output folder"),
        ("a\0", "contains the character NUL"),
        ("a/\udcff", "half a character"),
        ("x" * 240, "has a part of 258 bytes, the limit is 255"),
        ("sub/" + "x" * 300 + "/a", "has a part of 300 bytes"),
    ],
)
def test_names_that_no_file_can_have_are_found_before_anything_runs(prefix: str, said: str) -> None:
    class Save(Show):
        INPUT_TYPES = classmethod(lambda cls: {"required": {"filename_prefix": ("STRING", {})}})

    classes = {**CLASSES, "Save": Save}
    (problem,) = check(graph(n1=("Save", {"filename_prefix": prefix})), classes)[1]
    assert said in problem.message
    assert problem.error is PathError
    assert len(problem.message) < 200
    assert not check(graph(n1=("Save", {"filename_prefix": "%" + "x" * 300 + "%/\u00e9"})), classes)[1]


def test_an_input_whose_source_is_gone_says_why() -> None:
    node = Node("1", "Show", {}, absent={"value": "node 7 (Canny), which it is linked to, is muted"})
    assert "node 7 (Canny), which it is linked to, is muted" in messages(Graph({"1": node}))[0]


def test_other_packs_preprocessors_name_ours() -> None:
    class Preprocess(Number):
        pass

    g = graph(n1=("CannyEdgePreprocessor", {}))
    text = check(g, {**CLASSES, "CNCore_Preprocess": Preprocess})[1][0].message
    assert "CNCore_Preprocess for canny hints does its work" in text
    assert "CNCore" not in check(g, CLASSES)[1][0].message


CONTROLNET_AUX = """
AIO_Preprocessor AnimalPosePreprocessor AnimeFace_SemSegPreprocessor AnimeLineArtPreprocessor AnyLineArtPreprocessor_aux
BAE-NormalMapPreprocessor BinaryPreprocessor CannyEdgePreprocessor ColorPreprocessor ControlNetAuxSimpleAddText
ControlNetPreprocessorSelector DSINE-NormalMapPreprocessor DWPreprocessor DensePosePreprocessor
DepthAnythingPreprocessor DepthAnythingV2Preprocessor DiffusionEdge_Preprocessor ExecuteAllControlNetPreprocessors
FacialPartColoringFromPoseKps FakeScribblePreprocessor HEDPreprocessor HintImageEnchance ImageGenResolutionFromImage
ImageGenResolutionFromLatent ImageIntensityDetector ImageLuminanceDetector InpaintPreprocessor
LeReS-DepthMapPreprocessor
LineArtPreprocessor LineartStandardPreprocessor M-LSDPreprocessor Manga2Anime_LineArt_Preprocessor MaskOptFlow
MediaPipe-FaceMeshPreprocessor MeshGraphormer+ImpactDetector-DepthMapPreprocessor MeshGraphormer-DepthMapPreprocessor
Metric3D-DepthMapPreprocessor Metric3D-NormalMapPreprocessor Metric_DepthAnythingV2Preprocessor
MiDaS-DepthMapPreprocessor MiDaS-NormalMapPreprocessor OneFormer-ADE20K-SemSegPreprocessor
OneFormer-COCO-SemSegPreprocessor OpenposePreprocessor PiDiNetPreprocessor PixelPerfectResolution PyraCannyPreprocessor
RenderAnimalKps RenderPeopleKps SAMPreprocessor SavePoseKpsAsJsonFile ScribblePreprocessor Scribble_PiDiNet_Preprocessor
Scribble_XDoG_Preprocessor SemSegPreprocessor ShufflePreprocessor TEEDPreprocessor TTPlanet_TileGF_Preprocessor
TTPlanet_TileSimple_Preprocessor TilePreprocessor UniFormer-SemSegPreprocessor Unimatch_OptFlowPreprocessor
UpperBodyTrackingFromPoseKps Zoe-DepthMapPreprocessor Zoe_DepthAnythingPreprocessor
"""
"""All nodes of Fannovel16/comfyui_controlnet_aux."""


def test_every_node_of_the_usual_preprocessor_pack_is_answered_truly(tmp_path: Path) -> None:
    classes = build_nodes(StandaloneHost(tmp_path, tmp_path, device="cpu"))
    made = {entry.condition for entry in ENTRIES}
    table = equivalents()
    settings = {row.setting for row in table.values() if row.ours == "CNCore_Preprocess"}
    assert settings <= {f"for {condition} hints" for condition in made} | {"", "one for each hint"}
    for name in CONTROLNET_AUX.split():
        if name in classes:  # it runs under its own id
            assert table[name].ours
            continue
        (problem,) = check(graph(n1=(name, {})), classes)[1]
        ours, setting, without = table[name]
        if without:
            assert not ours and f"nothing here makes {without}" in problem.message
        else:
            assert ours in classes and f"{ours}{' ' if setting else ''}{setting} does its work" in problem.message


def test_a_class_checks_its_own_inputs() -> None:
    class Picky(Show):
        @classmethod
        def VALIDATE_INPUTS(cls, mode: str) -> bool | str:
            if mode == "evil":
                raise PathError("mode leads out")
            return True if mode == "any" else "mode must be any"

    classes = {**CLASSES, "Picky": Picky}
    assert check(graph(n1=("Picky", {"value": 1, "mode": "any"})), classes)[1] == []
    (problem,) = check(graph(n1=("Picky", {"value": 1, "mode": "other"})), classes)[1]
    assert problem.message == "node 1 (Picky), input mode: mode must be any"
    with pytest.raises(PathError, match="mode leads out"):
        validate(graph(n1=("Picky", {"value": 1, "mode": "evil"})), classes)


def test_a_class_that_breaks_the_contract_is_named() -> None:
    class Broken:
        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            raise KeyError("gone")

    with pytest.raises(CoreError, match="node class Broken does not describe its inputs"):
        check(graph(n1=("Broken", {})), {"Broken": Broken})


# ---- execution ----------------------------------------------------------------------------------------


def test_execute_gives_values_prompt_and_workflow() -> None:
    g = validate(Graph(chain().nodes, workflow={"nodes": []}), CLASSES)
    result = execute(g, CLASSES)
    assert result.ui("shown") == [8.0]
    assert result.nodes["3"].outputs == ([8.0], ["3: 2.0 + 6.0"])
    assert result.ui("prompt")[0]["3"]["inputs"] == {"a": ["1", 0], "b": ["2", 0]}
    assert result.ui("extra") == [{"workflow": {"nodes": []}}]
    assert result.executed == ("1", "2", "3", "4")


def test_unchanged_nodes_are_not_run_again() -> None:
    cache = Cache()
    first = validate(chain(), CLASSES)
    execute(first, CLASSES, cache=cache)
    again = execute(first, CLASSES, cache=cache)
    assert again.executed == ()
    assert again.ui("shown") == [8.0]
    changed = execute(validate(chain(5), CLASSES), CLASSES, cache=cache)
    assert changed.executed == ("1", "3", "4")
    assert len(cache.results) == 4


def test_is_changed_with_nan_always_runs_again_and_so_do_those_behind() -> None:
    class Clock(Number):
        @classmethod
        def IS_CHANGED(cls, **values: Any) -> float:
            return float("nan")

    classes = {**CLASSES, "Clock": Clock}
    g = graph(n1=("Clock", {"value": 1}), n2=("Number", {"value": 1}), n3=("Show", {"value": Link("1", 0)}))
    cache = Cache()
    execute(g, classes, cache=cache)
    assert execute(g, classes, cache=cache).executed == ("1", "3")


def test_events_come_in_order_and_cancelling_stops_between_nodes() -> None:
    events: list[NodeEvent] = []
    g = validate(chain(), CLASSES)
    execute(g, CLASSES, on_node=events.append)
    assert [(e.state, e.node.id) for e in events[:4]] == [
        ("start", "1"),
        ("done", "1"),
        ("start", "2"),
        ("done", "2"),
    ]
    assert events[-1].total == 4
    with pytest.raises(Interrupted, match="stopped before node 3"):
        seen: list[str] = []
        execute(g, CLASSES, on_node=lambda e: seen.append(e.node.id), cancelled=lambda: "2" in seen)


def test_lists_map_over_a_node_and_are_taken_whole_when_it_asks() -> None:
    class Many:
        RETURN_TYPES = ("NUMBER",)
        OUTPUT_IS_LIST = (True,)
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {}}

        def run(self) -> tuple[list[int]]:
            return ([1, 2, 3],)

    class Total:
        RETURN_TYPES = ("NUMBER",)
        INPUT_IS_LIST = True
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"values": ("NUMBER",)}}

        def run(self, values: list[float]) -> tuple[float]:
            return (sum(values),)

    g = graph(
        n1=("Many", {}),
        n2=("Number", {"value": 10}),
        n3=("Add", {"a": Link("1", 0), "b": Link("2", 0)}),
        n4=("Total", {"values": Link("3", 0)}),
        n5=("Show", {"value": Link("4", 0)}),
    )
    assert execute(g, {**CLASSES, "Many": Many, "Total": Total}).ui("shown") == [36.0]


@pytest.mark.parametrize(
    ("raised", "error", "text"),
    [
        (ValueError("odd"), CoreError, "node 1 (Bad) failed: ValueError: odd"),
        (UnboundLocalError("x"), CoreError, "UnboundLocalError"),
        (MissingFileError("no such net", "a/b"), MissingFileError, "node 1 (Bad): no such net"),
        (RuntimeError("CUDA out of memory. Tried"), OutOfMemory, "out of memory"),
        (MemoryError(), OutOfMemory, "node 1 (Bad)"),
        (OSError(28, "No space left on device"), CoreError, "No space left on device"),
    ],
)
def test_errors_of_nodes_name_the_node_and_keep_their_kind(
    raised: Exception, error: type[CoreError], text: str
) -> None:
    class Bad(Show):
        def run(self, **values: Any) -> dict[str, Any]:
            raise raised

    with pytest.raises(error) as caught:
        execute(graph(n1=("Bad", {"value": 1})), {"Bad": Bad})
    assert text in str(caught.value)


def test_after_an_error_finished_nodes_stay_in_the_cache() -> None:
    class Bad(Add):
        def run(self, a: float, b: float, me: str) -> tuple[float, str]:
            raise ValueError("odd")

    cache = Cache()
    with pytest.raises(CoreError):
        execute(chain(), {**CLASSES, "Add": Bad}, cache=cache)
    assert execute(chain(), CLASSES, cache=cache).executed == ("3", "4")


# ---- values from outside --------------------------------------------------------------------------------


def test_set_finds_nodes_by_id_title_and_class_and_parses_by_type() -> None:
    nodes = {
        "3": Node("3", "Sampler", {"seed": 1, "loud": False}),
        "4": Node("4", "Number", {"value": 1}, title="How many"),
        "5": Node("5", "Number", {"value": 1}, title="How wide"),
    }
    done = apply_settings(
        Graph(nodes), CLASSES, ["3.seed=7", "how wide.scale=0.5", "Sampler.loud=yes", "How many.value=9"]
    )
    assert done.nodes["3"].inputs == {"seed": 7, "loud": True}
    assert done.nodes["5"].inputs == {"value": 1, "scale": 0.5}
    assert done.nodes["4"].inputs == {"value": 9}
    assert nodes["3"].inputs["seed"] == 1


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("3", "expected NODE.INPUT=VALUE"),
        ("x.value=1", 'no node "x"'),
        ("Nubmer.value=1", 'did you mean "Number"?'),
        ("Number.value=1", "write its id"),
        ("1.size=1", "has no input size: it has value, scale"),
        ("1.value=abc", "takes a whole number, got 'abc'"),
        ("3.a=1", "takes a from node 1 (Number): set it there"),
    ],
)
def test_set_says_what_it_could_not_do(setting: str, text: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        apply_settings(chain(), CLASSES, [setting])
    assert text in str(caught.value)


def test_a_changed_value_is_written_into_the_editors_form_or_that_form_is_dropped() -> None:
    workflow = {"nodes": [{"widgets_values": [1, "fixed"]}]}
    node = Node("1", "Sampler", {"seed": 1, "loud": False}, places={"seed": ("nodes", 0, "widgets_values", 0)})
    g = Graph({"1": node}, workflow)
    changed = with_seed(g, CLASSES, 5)
    assert changed.workflow == {"nodes": [{"widgets_values": [5, "fixed"]}]}
    assert workflow == {"nodes": [{"widgets_values": [1, "fixed"]}]}
    assert apply_settings(g, CLASSES, ["1.loud=true"]).workflow is None


def test_seeds() -> None:
    assert parse_seeds("1..3") == (1, 2, 3)
    assert parse_seeds("7") == (7,)
    assert parse_seeds("1, 4..5") == (1, 4, 5)
    assert parse_seeds("5,1..3,1,5") == (5, 1, 2, 3)  # a seed twice is the same picture twice
    for wrong in ("", "a", "5..1", "-1", "1...3", "1..99999999"):
        with pytest.raises(WorkflowError, match="--seeds"):
            parse_seeds(wrong)
    with pytest.raises(WorkflowError, match="no node of this workflow has a seed"):
        with_seed(chain(), CLASSES, 1)
