"""Reading workflows: the editor's form, the API form, pictures, hostile files."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from comfyui_controlnet_core.controlnet_core.errors import MissingFileError, WorkflowError
from comfyui_controlnet_core.workflows import png
from comfyui_controlnet_core.workflows.formats import parse_document, to_graph
from comfyui_controlnet_core.workflows.graph import Graph, Link
from comfyui_controlnet_core.workflows.overrides import apply_settings
from comfyui_controlnet_core.workflows.widgets import dynamic_prompt
from editor_sheet import Sheet
from graphs import check, load_graph
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def node_class(required: dict[str, Any], outputs: tuple[str, ...], *, is_output: bool = False) -> type:
    return type(
        "Node",
        (),
        {
            "INPUT_TYPES": classmethod(lambda cls: {"required": required}),
            "RETURN_TYPES": outputs,
            "FUNCTION": "run",
            "OUTPUT_NODE": is_output,
        },
    )


CLASSES = {
    "Sampler": node_class(
        {
            "model": ("MODEL",),
            "seed": ("INT", {"default": 0}),
            "steps": ("INT", {"default": 20}),
            "name": (["euler", "heun"],),
            "latent": ("LATENT",),
        },
        ("LATENT",),
    ),
    "Loader": node_class({"file": (["a.safetensors", "b.safetensors"],)}, ("MODEL", "CLIP")),
    "Empty": node_class({"width": ("INT", {"default": 64}), "height": ("INT", {"default": 64})}, ("LATENT",)),
    "Text": node_class({"text": ("STRING", {"dynamicPrompts": True})}, ("COND",)),
    "LoadImage": node_class({"image": (["x.png"], {"image_upload": True})}, ("IMAGE", "MASK")),
    "Blur": node_class({"image": ("IMAGE",), "radius": ("INT", {"default": 3})}, ("IMAGE",)),
    "Save": node_class({"images": ("IMAGE",), "prefix": ("STRING", {"default": "out"})}, (), is_output=True),
}


def slot(name: str, kind: str, link: int | None = None, *, widget: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link} | ({"widget": {"name": name}} if widget else {})


def node(node_id: int, kind: str, inputs: Any = (), values: Any = (), **more: Any) -> dict[str, Any]:
    outputs = [{"name": t, "type": t, "links": []} for t in more.pop("outputs", ())]
    if not outputs and kind in CLASSES:
        outputs = [{"name": t, "type": t} for t in CLASSES[kind].RETURN_TYPES]
    saved = values if isinstance(values, dict) else list(values)
    base = {"id": node_id, "type": kind, "inputs": list(inputs), "outputs": outputs, "widgets_values": saved}
    return {"mode": 0, "properties": {}, **base, **more}


def drawing(nodes: list[Any], links: list[Any], **more: Any) -> dict[str, Any]:
    return {"nodes": nodes, "links": links, "version": 0.4, **more}


def read(data: Any) -> Graph:
    return to_graph(parse_document(json.dumps(data).encode(), "test.json"), CLASSES)


def inputs(graph: Graph, node_id: str) -> dict[str, Any]:
    return dict(graph.nodes[node_id].inputs)


def sampler_drawing(sampler_values: Any, **more: Any) -> dict[str, Any]:
    sampler = node(3, "Sampler", [slot("model", "MODEL", 1), slot("latent", "LATENT", 2)], sampler_values, **more)
    return drawing(
        [node(1, "Loader", (), ["a.safetensors"]), node(2, "Empty", (), [64, 32]), sampler],
        [[1, 1, 0, 3, 0, "MODEL"], [2, 2, 0, 3, 1, "LATENT"]],
    )


# ---- widgets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [7, "randomize", 5, "heun"],
        [7, "fixed", 5, "heun"],
        [7, 5, "heun"],
        [7, True, 5, "heun"],
        {"seed": 7, "steps": 5, "name": "heun", "videopreview": {}},
    ],
)
def test_widget_values_with_and_without_the_seeds_control(values: Any) -> None:
    graph = read(sampler_drawing(values))
    links = {"model": Link("1", 0), "latent": Link("2", 0)}
    assert inputs(graph, "3") == {"seed": 7, "steps": 5, "name": "heun", **links}


def test_missing_values_take_the_class_defaults_and_null_too() -> None:
    assert inputs(read(sampler_drawing([7, "fixed"])), "3")["steps"] == 20
    assert inputs(read(sampler_drawing([None, "fixed", None])), "3") == {
        "seed": 0,
        "steps": 20,
        "name": "euler",
        "model": Link("1", 0),
        "latent": Link("2", 0),
    }


def test_values_by_name_are_used_when_the_list_is_missing() -> None:
    data = sampler_drawing([])
    del data["nodes"][2]["widgets_values"]
    data["nodes"][2]["widgets_values_named"] = {"seed": 9, "steps": 2, "name": "heun"}
    assert inputs(read(data), "3")["seed"] == 9


def test_upload_button_behind_a_picture_is_no_value() -> None:
    graph = read(drawing([node(1, "LoadImage", (), ["x.png", "image"])], []))
    assert inputs(graph, "1") == {"image": "x.png"}


def test_format_1_with_links_as_objects_native_reroutes_and_floating_links() -> None:
    data = sampler_drawing([7, "fixed", 5, "heun"])
    data["links"] = [
        {
            "id": 1,
            "origin_id": 1,
            "origin_slot": 0,
            "target_id": 3,
            "target_slot": 0,
            "type": "MODEL",
            "parentId": 9,
        },
        {"id": 2, "origin_id": 2, "origin_slot": 0, "target_id": 3, "target_slot": 1, "type": "LATENT"},
    ]
    data |= {
        "version": 1,
        "reroutes": [{"id": 9, "pos": [1, 2], "linkIds": [1]}],
        "floatingLinks": [{"id": 5}],
    }
    assert inputs(read(data), "3")["model"] == Link("1", 0)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("a {red|blue} ball", "a red ball"),
        ("{a {b|c} d|e} f", "a b d f"),
        ("{x|{y|z}} w", "x w"),
        ("kept \\{as\\|is\\} (a\\))", "kept {as|is} (a\\))"),
        ("one // note\ntwo /* more\nlines */three", "one \ntwo three"),
        ("open {a|b", "open a"),
        ("/* never closed", "/* never closed"),
        ("} | {", "} | "),
    ],
)
def test_dynamic_prompts_take_the_first_alternative(text: str, result: str) -> None:
    assert dynamic_prompt(text) == result


# ---- nodes that only exist in the editor -------------------------------------------------------------------------


def image_chain(middle: list[dict[str, Any]], links: list[Any], last: int) -> Graph:
    """LoadImage 1 -> middle -> Save 9, whose link is number `last`."""
    nodes = [node(1, "LoadImage", (), ["x.png", "image"]), *middle]
    return read(drawing([*nodes, node(9, "Save", [slot("images", "IMAGE", last)], ["out"])], links))


def test_reroutes_notes_and_primitives_go_away() -> None:
    width = slot("width", "INT", 4, widget=True)
    graph = read(
        drawing(
            [
                node(1, "Empty", [width], [64, 32]),
                node(2, "PrimitiveNode", (), [96, "randomize"], outputs=["INT"]),
                node(3, "Reroute", [slot("", "*", 3)], (), outputs=["*"]),
                node(4, "Note", (), ["hello"]),
                node(5, "MarkdownNote", (), ["hello"]),
                node(
                    6,
                    "Sampler",
                    [slot("model", "MODEL", None), slot("latent", "LATENT", 6)],
                    [1, "fixed", 2, "heun"],
                ),
                node(7, "Reroute", [slot("", "*", 5)], (), outputs=["*"]),
            ],
            [
                [3, 2, 0, 3, 0, "INT"],
                [4, 3, 0, 1, 0, "INT"],
                [5, 1, 0, 7, 0, "LATENT"],
                [6, 7, 0, 6, 1, "LATENT"],
            ],
        )
    )
    assert list(graph.nodes) == ["1", "6"]
    assert inputs(graph, "1") == {"width": 96, "height": 32}
    assert graph.nodes["1"].places["width"] == ("nodes", 1, "widgets_values", 0)
    assert inputs(graph, "6")["latent"] == Link("1", 0)


def test_bypassed_nodes_pass_on_by_type() -> None:
    blur = node(2, "Blur", [slot("mask", "MASK", 8), slot("image", "IMAGE", 1)], [3], mode=4)
    graph = image_chain([blur], [[1, 1, 0, 2, 1, "IMAGE"], [8, 1, 1, 2, 0, "MASK"], [2, 2, 0, 9, 0, "IMAGE"]], 2)
    assert inputs(graph, "9")["images"] == Link("1", 0)
    assert "2" not in graph.nodes


@pytest.mark.parametrize(
    ("mode", "said"), [(2, 'node 2 "My blur" (Blur), which it is linked to, is muted'), (4, "no IMAGE input")]
)
def test_an_input_behind_a_muted_node_says_so(mode: int, said: str) -> None:
    blur = node(2, "Blur", [], [3], mode=mode, title="My blur")
    graph = image_chain([blur], [[2, 2, 0, 9, 0, "IMAGE"]], 2)
    assert said in check(graph, CLASSES)[1][0].message


def test_dangling_links_are_named() -> None:
    assert "link 2 is not in the file" in check(image_chain([], [], 2), CLASSES)[1][0].message
    graph = image_chain([], [[2, 77, 0, 9, 0, "IMAGE"]], 2)
    assert "the node 77 that it was linked to" in check(graph, CLASSES)[1][0].message


# ---- subgraphs --------------------------------------------------------------------------------------------


def subgraph(key: str, nodes: list[Any], links: list[Any], ins: list[Any], outs: list[Any]) -> dict[str, Any]:
    return {
        "id": key,
        "name": key.title(),
        "inputNode": {"id": -10},
        "outputNode": {"id": -20},
        "inputs": [{"id": n, "name": n, "type": t, "linkIds": i} for n, t, i in ins],
        "outputs": [{"id": n, "name": n, "type": t, "linkIds": i} for n, t, i in outs],
        "nodes": nodes,
        "links": [
            dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
            for link in links
        ],
    }


def soften() -> dict[str, Any]:
    """image, radius -> two Blurs; the first blur's radius is an input of the subgraph."""
    return subgraph(
        "soften",
        [
            node(1, "Blur", [slot("image", "IMAGE", 1), slot("radius", "INT", 2, widget=True)], [5]),
            node(2, "Blur", [slot("image", "IMAGE", 3)], [6]),
        ],
        [
            [1, -10, 0, 1, 0, "IMAGE"],
            [2, -10, 1, 1, 1, "INT"],
            [3, 1, 0, 2, 0, "IMAGE"],
            [4, 2, 0, -20, 0, "IMAGE"],
        ],
        [("image", "IMAGE", [1]), ("radius", "INT", [2])],
        [("IMAGE", "IMAGE", [4])],
    )


def with_instance(definitions: list[Any], values: Any = (), **more: Any) -> Graph:
    ins = [slot("image", "IMAGE", 1)]
    instance = node(50, definitions[0]["id"], more.pop("inputs", ins), values, outputs=["IMAGE"], **more)
    nodes = [
        node(1, "LoadImage", (), ["x.png", "image"]),
        instance,
        node(9, "Save", [slot("images", "IMAGE", 2)], ["out"]),
    ]
    links = [[1, 1, 0, 50, 0, "IMAGE"], [2, 50, 0, 9, 0, "IMAGE"]]
    return read(drawing(nodes, links, definitions={"subgraphs": definitions}))


def test_subgraph_is_flattened_with_the_ids_that_the_editor_gives() -> None:
    graph = with_instance([soften()])
    assert list(graph.nodes) == ["1", "50:1", "50:2", "9"]
    assert inputs(graph, "50:1") == {"image": Link("1", 0), "radius": 5}
    assert inputs(graph, "50:2") == {"image": Link("50:1", 0), "radius": 6}
    assert inputs(graph, "9")["images"] == Link("50:2", 0)


def test_a_field_of_the_instance_wins_over_the_one_inside() -> None:
    graph = with_instance([soften()], [31])
    assert inputs(graph, "50:1")["radius"] == 31
    changed = apply_settings(graph, CLASSES, ["50:1.radius=4", "50:2.radius=8"])
    assert changed.workflow is not None
    assert changed.workflow["nodes"][1]["widgets_values"] == [4]
    assert changed.workflow["definitions"]["subgraphs"][0]["nodes"][1]["widgets_values"] == [8]


@pytest.mark.parametrize(
    ("proxies", "values", "first", "second"),
    [
        ([["2", "radius"]], [11], 5, 11),
        ([["-1", "radius"], ["2", "2: radius"]], [10, 11], 10, 11),
        ([["2", "radius"], ["-1", "radius"]], [11, None], 5, 11),
        ('[["2", "radius"]]', [11], 5, 11),
        ([["2", "radius"]], [10, 11], 10, 11),
        ([["2", "$$canvas-image-preview"], ["2", "radius"]], [None, 12], 5, 12),
        ("{not json", [], 5, 6),
    ],
)
def test_proxy_widgets(proxies: Any, values: Any, first: int, second: int) -> None:
    graph = with_instance([soften()], values, properties={"proxyWidgets": proxies})
    assert inputs(graph, "50:1")["radius"] == first
    assert inputs(graph, "50:2")["radius"] == second


def test_nested_subgraphs_pass_links_and_fields_down() -> None:
    outer = subgraph(
        "outer",
        [node(7, "soften", [slot("image", "IMAGE", 1), slot("radius", "INT", 2)], [], outputs=["IMAGE"])],
        [[1, -10, 0, 7, 0, "IMAGE"], [2, -10, 1, 7, 1, "INT"], [3, 7, 0, -20, 0, "IMAGE"]],
        [("image", "IMAGE", [1]), ("size", "INT", [2])],
        [("IMAGE", "IMAGE", [3])],
    )
    graph = with_instance([outer, soften()], [40])
    assert inputs(graph, "50:7:1") == {"image": Link("1", 0), "radius": 40}
    assert inputs(graph, "9")["images"] == Link("50:7:2", 0)
    shown = with_instance([outer, soften()], [22], properties={"proxyWidgets": [["7", "radius"]]})
    assert inputs(shown, "50:7:1")["radius"] == 22


def test_a_subgraph_that_hands_its_input_on_and_one_that_is_bypassed_or_muted() -> None:
    through = subgraph("through", [], [[1, -10, 0, -20, 0, "IMAGE"]], [("image", "IMAGE", [1])], [("o", "IMAGE", [1])])
    assert inputs(with_instance([through]), "9")["images"] == Link("1", 0)
    bypassed = with_instance([soften()], mode=4)
    assert list(bypassed.nodes) == ["1", "9"]
    assert inputs(bypassed, "9")["images"] == Link("1", 0)
    assert "is muted" in check(with_instance([soften()], mode=2), CLASSES)[1][0].message


def test_subgraphs_that_contain_themselves_or_explode_end_in_one_error() -> None:
    itself = subgraph("loop", [node(1, "loop")], [], [], [])
    with pytest.raises(WorkflowError, match='subgraph "Loop" that contains itself'):
        with_instance([itself])
    bomb = [subgraph(f"s{i}", [node(n, f"s{i + 1}") for n in range(10)], [], [], []) for i in range(12)]
    with pytest.raises(WorkflowError, match="more than 5000 nodes"):
        with_instance([*bomb, subgraph("s12", [], [], [], [])])
    field = [
        subgraph(
            f"d{i}",
            [node(n, f"d{i + 1}", [slot("a", "INT", n)]) for n in (1, 2)],
            [[n, -10, 0, n, 0, "INT"] for n in (1, 2)],
            [("a", "INT", [1, 2])],
            [],
        )
        for i in range(40)
    ]
    with pytest.raises(WorkflowError):
        with_instance([*field, subgraph("d40", [], [], [("a", "INT", [])], [])])


def test_reroutes_in_a_circle() -> None:
    circle = [
        node(2, "Reroute", [slot("", "*", 3)], (), outputs=["*"]),
        node(3, "Reroute", [slot("", "*", 2)], (), outputs=["*"]),
    ]
    links = [[2, 2, 0, 3, 0, "*"], [3, 3, 0, 2, 0, "*"], [4, 2, 0, 9, 0, "IMAGE"]]
    with pytest.raises(WorkflowError, match="run in a circle"):
        image_chain(circle, links, 4)


# ---- the API form ---------------------------------------------------------------------------------------


API = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "is_changed": ["abc"]},
    "2": {"class_type": "Save", "inputs": {"images": ["1", 0], "prefix": "p"}, "_meta": {"title": "Keep"}},
}


def test_api_form_round_trip() -> None:
    graph = read(API)
    assert inputs(graph, "2") == {"images": Link("1", 0), "prefix": "p"}
    assert graph.nodes["2"].title == "Keep"
    assert read(graph.to_api()).nodes == {**graph.nodes, "1": read(graph.to_api()).nodes["1"]}
    assert read({"prompt": API, "client_id": "x"}).nodes == graph.nodes
    assert graph.workflow is None


def test_lists_as_values_are_wrapped() -> None:
    notes = {"_comment": "made by a program", "_info": {"author": "somebody"}}
    graph = read({**notes, "1": {"class_type": "Text", "inputs": {"text": {"__value__": [1, 2]}}}})
    assert list(graph.nodes) == ["1"]
    assert inputs(graph, "1") == {"text": [1, 2]}
    assert graph.to_api()["1"]["inputs"] == {"text": {"__value__": [1, 2]}}


# ---- pictures -------------------------------------------------------------------------------------------


def picture(**texts: str) -> bytes:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (10, 20, 30)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_a_picture_gives_the_prompt_and_keeps_the_editors_form(tmp_path: Path) -> None:
    drawn = drawing(
        [
            node(1, "LoadImage", (), ["x.png", "image"]),
            node(2, "Save", [slot("images", "IMAGE", 1)], ["old"]),
        ],
        [[1, 1, 0, 2, 0, "IMAGE"]],
    )
    file = tmp_path / "a.png"
    file.write_bytes(picture(prompt=json.dumps(API).replace('"abc"', "NaN"), workflow=json.dumps(drawn)))
    graph = load_graph(file, CLASSES)
    assert inputs(graph, "2")["prefix"] == "p"
    assert graph.workflow == drawn
    changed = apply_settings(graph, CLASSES, ["2.prefix=new"])
    assert changed.workflow is not None
    assert changed.workflow["nodes"][1]["widgets_values"] == ["new"]


def test_a_picture_with_only_one_of_the_two_forms() -> None:
    assert to_graph(parse_document(picture(prompt=json.dumps(API)), "a.png"), CLASSES).nodes == read(API).nodes
    drawn = sampler_drawing([7, "fixed", 5, "heun"])
    graph = to_graph(parse_document(picture(workflow=json.dumps(drawn)), "a.png"), CLASSES)
    assert inputs(graph, "3")["seed"] == 7


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_texts_of_all_three_kinds_are_read_before_and_behind_the_pixels() -> None:
    zipped = chunk(b"zTXt", b"zipped\0\0" + zlib.compress(b"x" * 1000))
    before = picture(prompt="plain", odd="snow ☃")
    data = before[:33] + zipped + before[33:]
    assert png.read_text(data) == {"prompt": "plain", "odd": "snow ☃", "zipped": "x" * 1000}
    behind = picture()[:-12] + chunk(b"tEXt", b"workflow\0{}") + picture()[-12:]
    assert png.read_text(behind) == {"workflow": "{}"}


# ---- hostile and broken files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"hello", "no valid JSON"),
        (b"\xff\xfe{\x00}\x00", "no UTF-8 text"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"[1]", "no workflow (a list)"),
        (b"3", "no workflow (a number)"),
        (b"null", "no workflow (null)"),
        (b"{}", "an object with nothing in it"),
        (b'{"a": {"b": 1}}', "an object with a"),
        (b"9" * 10_000, "a number of thousands of digits"),
        (b'{"nodes": []}', None),
        (b'{"nodes": [5]}', "nodes[0] is a number, expected an object"),
        (b'{"nodes": [{}]}', "id is nothing, expected a node id"),
        (b'{"nodes": [{"id": 1}]}', "type is nothing, expected a text"),
        (b'{"nodes": [{"id": NaN, "type": "A"}]}', "expected a node id"),
        (b'{"nodes": [{"id": 1, "type": "A", "inputs": 4}]}', "inputs is a number, expected a list"),
        (b'{"nodes": [{"id": 1, "type": "A", "inputs": [{"name": "a", "link": "x"}]}]}', "link is x"),
        (b'{"nodes": [{"id": 1, "type": "A", "inputs": [{"name": "a", "link": NaN}]}]}', "link is nan"),
        (b'{"nodes": [{"id": 1, "type": "A", "widgets_values": 3}]}', "widgets_values is a number"),
        (b'{"nodes": [], "links": [[1, 2]]}', "an entry of 2 values"),
        (b'{"nodes": [], "links": [{"id": Infinity}]}', "inf, expected a number"),
        (b'{"nodes": [], "definitions": 7}', "definitions is a number"),
        (b'{"nodes": [], "definitions": {"subgraphs": [{}]}}', "nodes is nothing"),
        (b'{"1": {"class_type": 4}}', "class_type is a number"),
        (b'{"1": {"class_type": "A", "inputs": []}}', "inputs is a list"),
        (b'{"1": {"class_type": "A", "inputs": {"x": %s}}}' % (b"9" * 6000), "a number of thousands of digits"),
        (b'{"1": {"class_type": "A"}, "2": 5}', "node 2 is a number"),
        (b"\x89PNG\r\n\x1a\n", "cut short"),
        (picture()[:60], "cut short"),
        (picture(), "a picture without a workflow"),
        (picture(prompt="{"), "text prompt is no valid JSON"),
        (picture(prompt="[1]"), "text prompt is a list"),
        (picture(workflow="null"), "holds no workflow"),
    ],
)
def test_broken_files_end_in_one_error_that_says_what_is_wrong(data: bytes, said: str | None) -> None:
    if said is None:
        assert not to_graph(parse_document(data, "f"), CLASSES).nodes
        return
    with pytest.raises(WorkflowError) as caught:
        to_graph(parse_document(data, "f"), CLASSES)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 100])
def test_texts_that_unpack_without_end_are_refused(count: int) -> None:
    """The limit counts for all texts of a file together: a hundred texts of 0.9 MB are as bad as one of 90 MB."""
    size = 5_000_000 if count == 1 else 900_000
    texts = [chunk(b"zTXt", b"prompt%d\0\0" % n + zlib.compress(b"[" * size)) for n in range(count)]
    data = picture()
    with pytest.raises(WorkflowError, match="is cut short or damaged"):
        png.read_text(data[:33] + b"".join(texts) + data[33:])


def test_a_picture_without_a_whole_header_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=r"cut.png is cut short or damaged \(its header is incomplete\)"):
        png.read_text(picture()[:12], "cut.png")


def test_json_that_takes_many_times_its_size_in_memory_is_refused(tmp_path: Path) -> None:
    """A list of empty objects takes 24 times its text."""
    (tmp_path / "a.json").write_bytes(b"[" + b"{}," * 6_000_000 + b"{}]")
    with pytest.raises(WorkflowError, match="has 18,000,004 bytes of JSON, expected at most 16,000,000"):
        load_graph(tmp_path / "a.json", CLASSES)
    with pytest.raises(WorkflowError, match=r"text prompt has .* bytes of JSON"):
        parse_document(picture(prompt="[" + "{}," * 6_000_000 + "{}]"), "a.png")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no file"):
        load_graph(tmp_path / "none.json", CLASSES)
    with pytest.raises(WorkflowError, match="is a folder"):
        load_graph(tmp_path, CLASSES)


# ---- the host's own templates -----------------------------------------------------------------------------


def templates() -> list[Path]:
    """The templates of the package comfyui-workflow-templates, or of the folder COMFYUI_TEMPLATES."""
    folder = os.environ.get("COMFYUI_TEMPLATES")
    if folder is None:
        found = importlib.util.find_spec("comfyui_workflow_templates")
        folder = str(Path(found.origin).parent / "templates") if found and found.origin else None
    return [] if folder is None else sorted(Path(folder).glob("*.json"))


@pytest.mark.skipif(not templates(), reason="needs comfyui-workflow-templates or COMFYUI_TEMPLATES")
def test_all_templates_of_the_host_are_read() -> None:
    read_names = []
    for file in templates():
        if not file.name.startswith("index."):
            graph = load_graph(file, CLASSES)
            assert graph.nodes
            json.dumps(graph.to_api())
            read_names.append(file.stem)
    assert {"controlnet_example", "mixing_controlnets"} <= set(read_names)


# ---- writing the editor's form ----------------------------------------------------------------------------


def test_a_drawn_sheet_reads_back_to_the_same_graph() -> None:
    sheet = Sheet(CLASSES)
    sheet.note("## Hello", (0, -200, 300, 100))
    loader = sheet.node("Loader", (0, 0, 300, 100), {"file": "b.safetensors"})
    empty = sheet.node("Empty", (0, 200, 300, 100), {"width": 96})
    sampler = sheet.node("Sampler", (400, 0, 300, 300), {"seed": 4, "steps": 6}, title="Draw")
    sheet.link(loader, "MODEL", sampler, "model")
    sheet.link(empty, "LATENT", sampler, "latent")
    sheet.group("All", (-20, -80, 760, 500))
    graph = read(json.loads(json.dumps(sheet.json())))
    assert list(graph.nodes) == ["2", "3", "4"]
    assert inputs(graph, "2") == {"file": "b.safetensors"}
    assert inputs(graph, "3") == {"width": 96, "height": 64}
    links = {"model": Link("2", 0), "latent": Link("3", 0)}
    assert inputs(graph, "4") == {"seed": 4, "steps": 6, "name": "euler", **links}
    assert graph.nodes["4"].title == "Draw"
    assert not any("output" in p.message and p.node for p in check(graph, CLASSES)[1])


def test_a_sheet_refuses_what_does_not_fit() -> None:
    sheet = Sheet(CLASSES)
    loader = sheet.node("Loader", (0, 0, 1, 1))
    sampler = sheet.node("Sampler", (0, 0, 1, 1))
    for wrong in (
        lambda: sheet.node("Painter", (0, 0, 1, 1)),
        lambda: sheet.node("Loader", (0, 0, 1, 1), {"size": 3}),
        lambda: sheet.link(loader, "VAE", sampler, "model"),
        lambda: sheet.link(loader, "CLIP", sampler, "model"),
        lambda: sheet.link(loader, "MODEL", sampler, "hint"),
    ):
        with pytest.raises(WorkflowError, match="correct the drawing"):
            wrong()
