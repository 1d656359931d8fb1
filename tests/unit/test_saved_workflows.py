"""Workflows as people saved them: what the editor does when it loads a file and queues it, case by case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows import cli
from comfyui_controlnet_core.workflows.execution import execute
from comfyui_controlnet_core.workflows.graph import Link
from comfyui_controlnet_core.workflows.validation import check_outputs
from drawn_workflows import EMPTY, node, preview, read, saved
from graphs import check
from PIL import Image


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, type]:
    folder = tmp_path_factory.mktemp("home")
    (folder / "input").mkdir()
    Image.new("RGB", (8, 8), (255, 128, 0)).save(folder / "input" / "pic.png")
    return build_nodes(StandaloneHost(folder / "input", folder / "output", device="cpu"))


# ---- widgets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "channel"),
    [(["pic.png", "red", "image"], "red"), (["pic.png", "green"], "green"), (["pic.png"], "alpha")],
)
def test_the_upload_button_comes_after_all_required_widgets(
    classes: dict[str, type], values: list[str], channel: str
) -> None:
    """The button's value "image" must not become the channel; files written by programs often leave it out."""
    graph = read(saved([node(1, "LoadImageMask", (), values)], []), classes)
    assert graph.nodes["1"].inputs == {"image": "pic.png", "channel": channel}


@pytest.mark.parametrize("option", ["image_upload", "animated_image_upload", "video_upload", "audio_upload"])
def test_an_upload_button_comes_before_the_optional_widgets(option: str) -> None:
    class Load:
        RETURN_TYPES = ()

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            required = {"seed": ("INT", {}), "file": (["a"], {option: True}), "size": ("INT", {})}
            return {"required": required, "optional": {"note": ("STRING", {})}}

    graph = read(saved([node(1, "Load", (), [5, "fixed", "a", 7, "upload", "hello"])], []), {"Load": Load})
    assert graph.nodes["1"].inputs == {"seed": 5, "file": "a", "size": 7, "note": "hello"}


# ---- names of earlier versions ------------------------------------------------------------------------


def test_node_types_of_earlier_versions_get_their_names_of_today(classes: dict[str, type]) -> None:
    average = node(9, "ConditioningAverage ", (), [0.5])
    graph = read(saved([EMPTY, average, preview()], [[1, 1, 0, 3, 0, "IMAGE"]]), classes)
    assert graph.nodes["9"].class_type == "ConditioningAverage"
    assert check(graph, classes)[1] == []


def test_the_loader_of_t2i_adapters_is_the_loader_of_control_nets(classes: dict[str, type]) -> None:
    drawn = read(saved([node(1, "T2IAdapterLoader", (), ["depth.pth"])], []), classes)
    api = read({"1": {"class_type": "T2IAdapterLoader", "inputs": {"t2i_adapter_name": "depth.pth"}}}, classes)
    for graph in (drawn, api):
        assert graph.nodes["1"].class_type == "ControlNetLoader"
        assert graph.nodes["1"].inputs == {"control_net_name": "depth.pth"}


def test_samplers_had_a_prefix(classes: dict[str, type]) -> None:
    values = [5, "fixed", 20, 8.0, "sample_dpmpp_2m", "karras", 1.0]
    graph = read(saved([node(1, "KSampler", (), values)], []), classes)
    assert graph.nodes["1"].inputs["sampler_name"] == "dpmpp_2m"
    api = read({"1": {"class_type": "KSamplerAdvanced", "inputs": {"sampler_name": "sample_euler"}}}, classes)
    assert api.nodes["1"].inputs["sampler_name"] == "euler"


# ---- nodes that only exist in the editor ----------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 2, 4])
@pytest.mark.parametrize("kind", ["Reroute", "Reroute (rgthree)"])
def test_a_reroute_passes_its_link_on_in_every_mode(classes: dict[str, type], kind: str, mode: int) -> None:
    reroute = node(2, kind, [("", "*", 1)], mode=mode, outputs=[{"type": "IMAGE"}])
    graph = read(saved([EMPTY, reroute, preview(3, 2)], [[1, 1, 0, 2, 0, "*"], [2, 2, 0, 3, 0, "IMAGE"]]), classes)
    assert graph.nodes["3"].inputs["images"] == Link("1", 0)
    assert list(graph.nodes) == ["1", "3"]


def test_a_primitive_behind_reroutes_gives_its_value_even_if_muted(classes: dict[str, type]) -> None:
    """The editor copies the value into the widget, and the widget of a prompt removes comments and alternatives."""
    nodes = [
        node(1, "PrimitiveNode", (), ["{red|blue} ball // note"], mode=2, outputs=[{"type": "STRING"}]),
        node(2, "Reroute", [("", "*", 1)], outputs=[{"type": "STRING"}]),
        node(3, "Reroute", [("", "*", 2)], mode=2, outputs=[{"type": "STRING"}]),
        node(4, "CLIPTextEncode", [("clip", "CLIP", None), ("text", "STRING", 3)], ["old"]),
    ]
    links = [[1, 1, 0, 2, 0, "*"], [2, 2, 0, 3, 0, "*"], [3, 3, 0, 4, 1, "STRING"]]
    assert read(saved(nodes, links), classes).nodes["4"].inputs["text"] == "red ball "


def test_set_and_get_nodes_are_one_link(classes: dict[str, type]) -> None:
    nodes = [
        EMPTY,
        node(2, "SetNode", [("IMAGE", "IMAGE", 1)], ["picture"]),
        node(5, "GetNode", (), ["picture"], outputs=[{"type": "IMAGE"}]),
        node(6, "GetNode", (), ["nothing"], outputs=[{"type": "IMAGE"}]),
        preview(3, 2),
        preview(4, 3),
    ]
    links = [[1, 1, 0, 2, 0, "IMAGE"], [2, 5, 0, 3, 0, "IMAGE"], [3, 6, 0, 4, 0, "IMAGE"]]
    graph = read(saved(nodes, links), classes)
    assert graph.nodes["3"].inputs["images"] == Link("1", 0)
    assert "no Set node has this name" in check(graph, classes)[1][0].message


@pytest.mark.parametrize(("mode", "passes"), [(0, True), (2, True), (4, False)])
def test_a_bypassed_get_node_has_nothing_to_pass_on(classes: dict[str, type], mode: int, passes: bool) -> None:
    """Pictures of frontend 1.49.6 show it: their prompts lack the link."""
    get = {**node(5, "GetNode", (), ["picture"], outputs=[{"type": "IMAGE"}]), "mode": mode}
    nodes = [EMPTY, node(2, "SetNode", [("IMAGE", "IMAGE", 1)], ["picture"]), get, preview(3, 2)]
    graph = read(saved(nodes, [[1, 1, 0, 2, 0, "IMAGE"], [2, 5, 0, 3, 0, "IMAGE"]]), classes)
    assert graph.nodes["3"].inputs.get("images") == (Link("1", 0) if passes else None)
    assert passes or "is bypassed" in graph.nodes["3"].absent["images"]


def test_decorations_of_the_canvas_are_dropped(classes: dict[str, type]) -> None:
    names = ("Bookmark (rgthree)", "Label (rgthree)", "Fast Groups Muter (rgthree)", "Note", "MarkdownNote")
    decorations = [{"id": 20 + index, "type": name} for index, name in enumerate(names)]
    graph = read(saved([EMPTY, preview(), *decorations], [[1, 1, 0, 3, 0, "IMAGE"]]), classes)
    assert list(graph.nodes) == ["1", "3"]


# ---- subgraphs and ids ----------------------------------------------------------------------------------


def test_a_subgraph_input_may_have_an_empty_name(classes: dict[str, type]) -> None:
    """Two inputs without names are told apart by their places."""
    inner = [node(1, "ImageBatch", [("image1", "IMAGE", 1), ("image2", "IMAGE", 2)])]
    links = [(1, -10, 0, 1, 0, "IMAGE"), (2, -10, 1, 1, 1, "IMAGE"), (3, 1, 0, -20, 0, "IMAGE")]
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    definition = {
        "id": "abc",
        "inputs": [{"name": "", "type": "*"}, {"name": "", "type": "*"}],
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "linkIds": [3]}],
        "nodes": inner,
        "links": [dict(zip(keys, link, strict=True)) for link in links],
    }
    nodes = [EMPTY, {**EMPTY, "id": 2}, node(5, "abc", [("", "*", 1), ("", "*", 2)]), preview(3, 3)]
    outer = [[1, 1, 0, 5, 0, "*"], [2, 2, 0, 5, 1, "*"], [3, 5, 0, 3, 0, "IMAGE"]]
    graph = read(saved(nodes, outer, definitions={"subgraphs": [definition]}), classes)
    assert graph.nodes["5:1"].inputs == {"image1": Link("1", 0), "image2": Link("2", 0)}
    assert graph.nodes["3"].inputs["images"] == Link("5:1", 0)


def test_a_second_node_with_the_same_id_gets_a_new_one(classes: dict[str, type]) -> None:
    """As in the editor: links by the id belong to the first node, and the new id continues the editor's counter."""
    nodes = [EMPTY, {**EMPTY, "widgets_values": [32, 32, 1, 0]}, preview()]
    graph = read(saved(nodes, [[1, 1, 0, 3, 0, "IMAGE"]], last_node_id=7), classes)
    assert list(graph.nodes) == ["1", "8", "3"]
    assert (graph.nodes["1"].inputs["width"], graph.nodes["8"].inputs["width"]) == (64, 32)
    assert graph.nodes["3"].inputs["images"] == Link("1", 0)


# ---- the API form ---------------------------------------------------------------------------------------

API = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


@pytest.mark.parametrize("value", [["", ""], [], [1, 2, 3], [512, 768], [["1", 0]], ["1", None]])
def test_a_list_that_is_no_link_is_a_value(classes: dict[str, type], value: Any) -> None:
    """Of an input that the class does not declare it is ignored; where another value belongs it is a problem."""
    api = json.loads(json.dumps(API))
    api["2"]["inputs"]["compare_view"] = value
    graph = read(api, classes)
    assert graph.nodes["2"].inputs["compare_view"] == value
    assert check(graph, classes)[1] == []
    assert execute(check(graph, classes)[0], classes).nodes["2"].outputs[0][0].shape == (1, 64, 64, 3)
    api["1"]["inputs"]["width"] = value
    assert "takes a whole number" in check(read(api, classes), classes)[1][0].message


def test_a_link_into_an_input_that_is_not_declared_needs_no_node(classes: dict[str, type]) -> None:
    api = {**API, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0], "old": ["9", 0]}}}
    api["9"] = {"class_type": "LoadImage", "inputs": {"image": "gone.png"}}
    checked = check_outputs(read(api, classes), classes)
    assert (checked.problems, checked.outputs) == ([], ("2",))


DRAWN = saved([EMPTY, preview()], [[1, 1, 0, 3, 0, "IMAGE"]])


@pytest.mark.parametrize(
    ("wrapped", "ids"),
    [
        ({"workflow": DRAWN, "output": API}, ["1", "2"]),
        ({"prompt": API, "client_id": "x"}, ["1", "2"]),
        ({"output": API}, ["1", "2"]),
        ({"workflow": DRAWN}, ["1", "3"]),
    ],
)
def test_wrapped_workflows_are_unwrapped(classes: dict[str, type], wrapped: Any, ids: list[str]) -> None:
    graph = read(wrapped, classes)
    assert list(graph.nodes) == ids
    assert graph.workflow == wrapped.get("workflow")


def test_preview_image_has_an_output(classes: dict[str, type]) -> None:
    api = {**API, "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}}
    graph, problems = check(read(api, classes), classes)
    assert problems == []
    assert execute(graph, classes).nodes["3"].outputs[0][0].shape == (1, 64, 64, 3)


# ---- output nodes with problems -------------------------------------------------------------------------

HALF = {
    **API,
    "3": {"class_type": "LoadImage", "inputs": {"image": "gone.png"}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
}


def test_outputs_that_do_not_validate_are_found(classes: dict[str, type]) -> None:
    checked = check_outputs(read(HALF, classes), classes)
    assert checked.outputs == ("2",)
    assert ["node 3" in problem.message for problem in checked.problems] == [True]
    unknown = {**API, "5": {"class_type": "Painter", "inputs": {}}}
    assert check_outputs(read(unknown, classes), classes).outputs == (), "as in ComfyUI every class must be known"


@pytest.mark.parametrize(
    ("workflow", "options", "code", "pictures"),
    [(HALF, (), 0, 1), (HALF, ("--strict",), 3, 0), ({key: HALF[key] for key in "34"}, (), 3, 0), (API, (), 0, 1)],
)
def test_run_skips_outputs_with_problems_and_validate_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workflow: Any, options: Any, code: int, pictures: int
) -> None:
    (tmp_path / "w.json").write_text(json.dumps(workflow))
    words = [str(tmp_path / "w.json"), "--output", str(tmp_path / "out"), *options]
    assert cli.main(["validate", *words]) == code
    told = capsys.readouterr().err
    assert cli.main(["run", *words, "--quiet"]) == code
    err = capsys.readouterr().err
    assert len(list(tmp_path.glob("out/temp/*.png"))) == pictures
    missing = "node 3 (LoadImage)"
    assert (missing in told) == (missing in err) == (workflow is not API)
    if workflow is HALF and code == 0:
        assert err.startswith("warning: ")
        assert told.startswith("warning: ")


# ---- what `run` would refuse, before anything is loaded ---------------------------------------------------


def test_a_missing_embedding_is_found_by_validation(tmp_path: Path) -> None:
    (tmp_path / "embeddings" / "sub").mkdir(parents=True)
    (tmp_path / "embeddings" / "sub" / "good.pt").write_bytes(b"")
    own = build_nodes(StandaloneHost(tmp_path, tmp_path, [tmp_path], device="cpu"))

    def problems(text: str) -> list[str]:
        encode = {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["0", 1]}}
        sample = {"class_type": "CNCore_Sample", "inputs": {"positive": ["1", 0]}}
        loader = {"class_type": "CNCore_LoadCheckpoint", "inputs": {}}
        save = {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}}
        found = check(read({"0": loader, "1": encode, "2": sample, "3": save}, own), own)[1]
        return [problem.message for problem in found if problem.node == "1"]

    assert problems("a ball, embedding:good, (embedding:good.pt:1.2)") == []
    (message,) = problems("a ball, (embedding:bad:1.2), embedding:good")
    assert "input text: there is no embeddings file 'bad'" in message
    assert "without a name" in problems("embedding: good")[0]


@pytest.mark.parametrize(
    ("kind", "inputs", "said"),
    [
        ("ModelSamplingDiscrete", {"sampling": "x0"}, "sampling 'x0' is not supported"),
        ("ModelSamplingContinuousEDM", {"sampling": "cosmos_rflow"}, "sampling 'cosmos_rflow' is not supported"),
        ("CLIPLoader", {"type": "flux2"}, "text encoders of type 'flux2'"),
        ("CLIPLoader", {"type": "wan"}, "text encoders of type 'wan'"),
        ("DualCLIPLoader", {"type": "flux"}, "text encoders of type 'flux'"),
    ],
)
def test_kinds_that_do_not_run_here_are_found_by_validation(
    tmp_path: Path, kind: str, inputs: dict[str, Any], said: str
) -> None:
    (tmp_path / "text_encoders").mkdir()
    (tmp_path / "text_encoders" / "a.safetensors").write_bytes(b"")
    own = build_nodes(StandaloneHost(tmp_path, tmp_path, [tmp_path], device="cpu"))
    node_inputs = {**inputs, "model": ["0", 0], "zsnr": False, "sigma_max": 1.0, "sigma_min": 0.1}
    node_inputs |= dict.fromkeys(("clip_name", "clip_name1", "clip_name2"), "a.safetensors")
    uses_model = kind.startswith("Model")
    api = {
        "0": {"class_type": "CNCore_LoadCheckpoint", "inputs": {"checkpoint": "demo (built in)"}},
        "1": {"class_type": kind, "inputs": node_inputs},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["0" if uses_model else "1", 1 - 1]}},
        "3": {"class_type": "CNCore_Sample", "inputs": {"model": ["1", 0], "positive": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
    }
    found = [problem for problem in check(read(api, own), own)[1] if problem.node == "1"]
    assert [said in problem.message for problem in found] == [True]
    assert found[0].error.exit_code == 3


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CLIPVisionLoader", None),
        ("KSamplr", "KSampler"),
        ("LoadImge", "LoadImage"),
        ("VAEDecoder", "VAEDecode"),
        ("VAEEncodeTiled", None),
        ("ConditioningZeroOuts", "ConditioningZeroOut"),
        ("GrowMask", None),
        ("UpscaleModelLoader", None),
        ("ImageUpscaleWithModel", None),
    ],
)
def test_only_a_slip_of_the_pen_gets_a_suggestion(classes: dict[str, type], name: str, meant: str | None) -> None:
    """CLIPVisionLoader is another node than CLIPLoader, and no misspelling of it."""
    (problem,) = check(read({"1": {"class_type": name, "inputs": {}}}, classes), classes)[1]
    assert ("did you mean" in problem.message) == (meant is not None)
    assert meant is None or f"did you mean {meant}?" in problem.message
