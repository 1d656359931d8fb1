"""Workflows of a few faults each: what people send, rather than what random damage makes of a file."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

from . import corpus

CLASSES = (
    "workflow>group",
    "workflow/group",
    "KSamplr",
    "CannyEdgePreprocessor",
    "Reroute",
    "SetNode",
    "Note",
    "PrimitiveNode",
    "ACN_AdvancedControlNetApply",
    "DWPreprocessor",
    "LineArtPreprocessor",
    "ControlNetApplyAdvanced",
    "ImageScale",
    "IPAdapter",
    "UltimateSDUpscale",
    "CR Apply Multi-ControlNet",
    "EmptyLatentImage",
    "Unknown",
)
VALUES = (
    "20",
    "20.7",
    20.7,
    "x",
    None,
    True,
    "true",
    "yes",
    [],
    ["1", 0],
    ["1", 9],
    ["9", 0],
    ["3", 0],
    {},
    float("nan"),
    "nan",
    -1,
    2**70,
    "",
    "../x",
    "~/x",
    "/x",
    "a\0b",
    "\ud800",
    "x" * 400,
    "embedding:nope cat",
    "embedding:../x",
    "%date:yyyy%",
    "%1.width%",
    {"__value__": [1, 2]},
    ["a", "b"],
    "Canny (cv2)",
    "nearest-exact",
    "a.png [output]",
    "demo_canny.safetensors",
    "demo_base",
    "{a|{b|c}} \\{d\\} /* e */ // f",
    "1e999",
)
PREFIXES = ("a", "../a", "sub/a", "%date:yyyy-MM-dd%/a", "~/a", "a:b", "", "a\n", "CON")


@st.composite
def faulty_api(draw: Any) -> dict[str, Any]:
    """A sound workflow in the API form with one or two inputs, classes or links that are wrong."""
    graph = copy.deepcopy(draw(st.sampled_from(corpus.API)))
    for _ in range(draw(st.integers(0, 3))):
        node = graph[draw(st.sampled_from(sorted(graph)))]
        inputs = node["inputs"]
        names = sorted(inputs) or ["x"]
        match draw(st.integers(0, 9)):
            case 0:
                node["class_type"] = draw(st.sampled_from(CLASSES))
            case 1:
                inputs.pop(draw(st.sampled_from(names)), None)
            case 2:
                inputs["unknown"] = draw(st.sampled_from(VALUES))
            case 3 | 4:  # a link to any node, often in a circle
                inputs[draw(st.sampled_from(names))] = [draw(st.sampled_from(sorted(graph))), draw(st.integers(-1, 3))]
            case 5:
                inputs["filename_prefix"] = draw(st.sampled_from(PREFIXES))
            case _:
                inputs[draw(st.sampled_from(names))] = draw(st.sampled_from(VALUES))
    if draw(st.integers(0, 9)) == 0:
        graph = {f"{key}{number}": node for key, node in graph.items() for number in range(draw(st.integers(1, 900)))}
    return graph


def small(graph: Any) -> Any:
    """The same workflow with small pictures, so that a run takes little time and memory."""
    for node in graph.values() if isinstance(graph, dict) else ():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if isinstance(inputs, dict):
            limits = {"width": 32, "height": 32, "batch_size": 2, "scale_by": 2.0, "megapixels": 0.1, "amount": 2}
            inputs.update({n: most for n, most in limits.items() if isinstance(inputs.get(n), (int, float, str))})
    return graph


def _slot(name: str, kind: str, link: int | None, *, widget: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link, **({"widget": {"name": name}} if widget else {})}


def _node(number: Any, kind: str, inputs: list[Any], outputs: list[Any], values: Any, **more: Any) -> dict[str, Any]:
    slots = [{"name": name, "type": name, "links": links} for name, links in outputs]
    return {"id": number, "type": kind, "inputs": inputs, "outputs": slots, "widgets_values": values, "mode": 0, **more}


def _link(number: int, origin: int, target: int, slot: int = 0, at: int = 0, kind: str = "IMAGE") -> dict[str, Any]:
    return {
        "id": number,
        "origin_id": origin,
        "origin_slot": slot,
        "target_id": target,
        "target_slot": at,
        "type": kind,
    }


@st.composite
def faulty_drawing(draw: Any) -> dict[str, Any]:
    """A drawing of a subgraph with widgets, nodes of the editor, and links of which some lead nowhere."""
    modes = st.sampled_from((0, 0, 0, 2, 4))
    middle = draw(
        st.sampled_from(
            (
                "ImageInvert",
                "ImageScaleBy",
                "Reroute",
                "GetNode",
                "PrimitiveNode",
                "sub",
                "CLIPTextEncode",
                "EmptyLatentImage",
            )
        )
    )
    names = draw(st.sampled_from((("a", "a"), ("a", "b"))))
    saved = draw(
        st.sampled_from(
            (
                [48],
                [48, "fixed", 3],
                {"width": 16, "seed": 4},
                [None, 2],
                [],
                None,
                [48, 1, 2, "randomize", 5],
                [True, "x", 7],
            )
        )
    )
    proxies = draw(
        st.sampled_from(
            (
                None,
                [["-1", "width"]],
                [["1", "color"]],
                '[["1", "color"], ["-1", "width"]]',
                "[",
                [["2", "1: seed"]],
                [["9", "x"]],
                3,
            )
        )
    )
    links = [
        _link(1, draw(st.sampled_from((1, 1, 1, 9))), 2),
        _link(2, 2, 3, draw(st.sampled_from((0, 0, 1)))),
        _link(3, 4, 2, at=1, kind="INT"),
        _link(4, 3, 6),
        _link(5, 7, 6, at=1),
    ]
    inner_links = [
        _link(1, -10, 1, draw(st.sampled_from((0, 0, 5))), kind="INT"),
        _link(2, 1, 2),
        _link(3, 2, -20),
        _link(4, -10, 2, 1, 1, "IMAGE"),
    ]
    sub = {
        "id": "sub",
        "name": "Sub",
        "version": 1,
        "inputNode": {"id": -10},
        "outputNode": {"id": -20},
        "inputs": [
            {"name": "width", "type": "INT", "linkIds": [1]},
            {"name": "image", "type": "IMAGE", "linkIds": [4]},
        ],
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "linkIds": [3]}],
        "nodes": [
            _node(1, "EmptyImage", [_slot("width", "INT", 1, widget=True)], [("IMAGE", [2])], [32, 32, 1, 0]),
            _node(
                2,
                draw(st.sampled_from(("ImageInvert", "ImageBatch", "sub", "KSampler"))),
                [_slot("image", "IMAGE", 2), _slot("image2", "IMAGE", 4)],
                [("IMAGE", [3])],
                [5, "fixed"],
            ),
        ],
        "links": inner_links[: draw(st.integers(1, 4))],
    }
    properties: dict[str, Any] = {} if proxies is None else {"proxyWidgets": proxies}
    advice = [{"name": "nope.safetensors", "url": "https://example.org/x", "directory": "checkpoints"}]
    nodes = [
        _node(
            1,
            "EmptyImage",
            [],
            [("IMAGE", [1])],
            draw(st.sampled_from(([16, 16, 1, 0], {"width": 16}, [16, "x"], None))),
            widgets_values_named={"width": 24, "height": 24},
        ),
        _node(
            2,
            "sub",
            [
                _slot("width", "INT", 3, widget=True),
                _slot("image", draw(st.sampled_from(("IMAGE", "*", 0, ["IMAGE", "MASK"]))), 1),
            ],
            [("IMAGE", [2])],
            saved,
            properties=properties,
            mode=draw(modes),
        ),
        _node(
            3,
            middle,
            [_slot("image", draw(st.sampled_from(("IMAGE", "MASK", "*"))), 2)],
            [("IMAGE", [4])],
            draw(st.sampled_from((["a"], [], ["b", "c"], ["{a|b|{c|d}}"]))),
            mode=draw(modes),
        ),
        _node(
            4,
            draw(st.sampled_from(("PrimitiveNode", "EmptyImage"))),
            [],
            [("INT", [3])],
            draw(st.sampled_from(([40, "fixed"], [], None))),
        ),
        _node(5, "SetNode", [_slot("IMAGE", "IMAGE", draw(st.sampled_from((1, 77, None))))], [("*", [])], [names[0]]),
        _node(
            6,
            draw(st.sampled_from(("PreviewImage", "SaveImage", "ImageBatch"))),
            [_slot("images", "IMAGE", 4), _slot("image2", "IMAGE", 5)],
            [],
            ["a"],
            title=draw(st.sampled_from(("", "Save"))),
        ),
        _node(7, "GetNode", [], [("IMAGE", [5])], [names[1]], mode=draw(modes)),
        _node(8, "CheckpointLoaderSimple", [], [("MODEL", [])], ["nope.safetensors"], properties={"models": advice}),
        _node(9, "PreviewImage", [_slot("images", "IMAGE", 5)], [], []),
    ]
    texts = ["{a|{b|c}} \\{d\\} /* e */ // f"], ["cat"], {"text": "{a}"}
    nodes.append(
        _node(10, "CLIPTextEncode", [_slot("clip", "CLIP", None)], [("CONDITIONING", [])], draw(st.sampled_from(texts)))
    )
    nodes.append(
        _node(
            11,
            "KSampler",
            [_slot("model", "MODEL", None)],
            [("LATENT", [])],
            draw(st.sampled_from(([1, "fixed", 20], [1, True, 20, 8.0, "euler", "normal", 1.0], [1]))),
        )
    )
    nodes = [node for node in nodes if draw(st.integers(0, 9))]
    return {"version": 0.4, "nodes": nodes, "links": links, "definitions": {"subgraphs": [sub]}}


@st.composite
def odd_texts(draw: Any) -> bytes:
    """Files that are no workflow, or one that is too large for its form."""
    node = {"class_type": "EmptyImage", "inputs": {}}
    many = {str(number): node for number in range(5001)}
    wide = {"nodes": [_node(1, "x", [_slot("a", "*", None)] * 3000, [], [])], "links": [], "version": 0.4}
    reroutes = [_node(n, "Reroute", [_slot("", "*", n - 1)], [("*", [n])], []) for n in range(2, 2000)]
    ends = [*reroutes, _node(2000, "PreviewImage", [_slot("images", "IMAGE", 1999)], [], [])]
    chain = {"version": 1, "nodes": ends, "links": [_link(n, n, n + 1) for n in range(1, 2000)]}
    trees: tuple[Any, ...] = (
        many,
        wide,
        chain,
        {"1": {"class_type": "X", "inputs": {"a": 10**4000}}},
        {"last_node_id": 0},
    )
    texts = (b"{}", b"[]", b"null", b'{"prompt": null}', b'{"a": ' + b"9" * 6000 + b"}", b" " * 16_000_001, b"")
    return draw(st.one_of(st.sampled_from(trees).map(lambda tree: json.dumps(tree).encode()), st.sampled_from(texts)))
