"""Draw the subgraph blueprints that ComfyUI offers in its node list: writes subgraphs/*.json.

    python docs/draw_subgraphs.py

A blueprint is a workflow of one node that holds others. Run it after the inputs of a node changed.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from editor_sheet import Placed, Sheet
from workflow_parts import HINT, PAINT

FOLDER = Path(__file__).resolve().parent.parent / "subgraphs"
INPUT, OUTPUT = -10, -20
"""IDs of the two ends of a subgraph."""
ROW = 20


@dataclass(frozen=True)
class End:
    """An input or output of a subgraph: its name outside, and where it leads inside."""

    name: str
    node: Placed
    inner: str


def controlled_image(classes: dict[str, type]) -> dict[str, Any]:
    """Hint, apply and sample as one node."""
    sheet = Sheet(classes)
    hint = sheet.node("CNCore_Preprocess", (0, 0, 320, 256), color=HINT)
    apply = sheet.node("CNCore_ApplyControlNet", (380, 0, 320, 330), color=HINT)
    sample = sheet.node("CNCore_Sample", (760, 0, 320, 300), color=PAINT)
    sheet.link(hint, "hint", apply, "image")
    sheet.link(apply, "positive", sample, "positive")
    sheet.link(apply, "negative", sample, "negative")
    inputs = (
        End("model", sample, "model"), End("positive", apply, "positive"), End("negative", apply, "negative"),
        End("control_net", apply, "control_net"), End("image", hint, "image"), End("latent", sample, "latent"),
        End("kind", hint, "kind"), End("resolution", hint, "resolution"), End("strength", apply, "strength"),
        End("start_percent", apply, "start_percent"), End("end_percent", apply, "end_percent"),
        End("steps", sample, "steps"), End("cfg", sample, "cfg"), End("seed", sample, "seed"),
    )  # fmt: skip
    outputs = (End("latent", sample, "latent"), End("hint", hint, "hint"))
    about = "Makes a hint from an image, applies a ControlNet with it, and samples."
    return blueprint("Image to Controlled Latent", about, sheet, inputs, outputs)


def blueprint(
    name: str, description: str, sheet: Sheet, inputs: Sequence[End], outputs: Sequence[End]
) -> dict[str, Any]:
    """A workflow of one node that holds what is on the sheet."""
    links = [dict(zip(LINK, link, strict=True)) for link in sheet.links]
    number = len(links)
    ends: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    for slot, end in enumerate(inputs):
        number += 1
        target, index = socket(sheet, end)
        target["link"] = number
        links.append(dict(zip(LINK, (number, INPUT, slot, end.node.id, index, target["type"]), strict=True)))
        ends["inputs"].append(entry(name, end.name, "in", slot, target["type"], number, -200))
    for slot, end in enumerate(outputs):
        number += 1
        index = end.node.spec.output_names.index(end.inner)
        output = sheet.nodes[end.node.id - 1]["outputs"][index]
        output["links"].append(number)
        links.append(dict(zip(LINK, (number, end.node.id, index, OUTPUT, slot, output["type"]), strict=True)))
        ends["outputs"].append(entry(name, end.name, "out", slot, output["type"], number, 1180))
    graph = {
        "id": identity(name),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": len(sheet.nodes), "lastLinkId": number, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": INPUT, "bounding": [-220, 0, 140, 40 + ROW * len(inputs)]},
        "outputNode": {"id": OUTPUT, "bounding": [1160, 0, 120, 40 + ROW * len(outputs)]},
        **ends,
        "widgets": [],
        "nodes": sheet.nodes,
        "groups": [],
        "links": links,
        "extra": {},
        "category": "ControlNet Core",
        "description": description,
    }
    return {
        "revision": 0,
        "last_node_id": 1 + len(sheet.nodes),
        "last_link_id": 0,
        "nodes": [outside(name, graph, inputs, 1 + len(sheet.nodes))],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [graph]},
        "extra": {},
    }


LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def outside(name: str, graph: dict[str, Any], inputs: Sequence[End], number: int) -> dict[str, Any]:
    """The node that stands for the subgraph, with the fields of the inner nodes on it."""
    fields = [end for end in inputs if end.node.spec.inputs[end.inner].is_widget]
    sockets = [
        {"name": end["name"], "type": end["type"], "link": None}
        | ({"widget": {"name": end["name"]}} if any(f.name == end["name"] for f in fields) else {})
        for end in graph["inputs"]
    ]
    return {
        "id": number,
        "type": graph["id"],
        "title": name,
        "pos": [0, 0],
        "size": [340, 460],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sockets,
        "outputs": [{"name": end["name"], "type": end["type"], "links": []} for end in graph["outputs"]],
        "properties": {"proxyWidgets": [["-1", end.name] for end in fields]},
        "widgets_values": [end.node.spec.inputs[end.inner].default for end in fields],
    }


def socket(sheet: Sheet, end: End) -> tuple[dict[str, Any], int]:
    """The socket of an inner node and its index; a field gets one."""
    sockets = sheet.nodes[end.node.id - 1]["inputs"]
    for index, item in enumerate(sockets):
        if item["name"] == end.inner:
            return item, index
    spec = end.node.spec.inputs[end.inner]
    kind = spec.type if isinstance(spec.type, str) else "COMBO"
    sockets.append({"name": end.inner, "type": kind, "widget": {"name": end.inner}, "link": None})
    return sockets[-1], len(sockets) - 1


def entry(graph: str, name: str, side: str, slot: int, kind: str, link: int, x: int) -> dict[str, Any]:
    """One end of a subgraph in the editor's form."""
    return {
        "id": identity(f"{graph}/{side}/{name}"),
        "name": name,
        "type": kind,
        "linkIds": [link],
        "pos": [x, 20 + ROW * slot],
    }


def identity(name: str) -> str:
    """An ID that is the same each time."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"controlnet-core/{name}"))


def main() -> None:
    """Draw all blueprints."""
    FOLDER.mkdir(exist_ok=True)
    classes = build_nodes(StandaloneHost(device="cpu"))
    for drawn in (controlled_image(classes),):
        name = drawn["nodes"][0]["title"]
        (FOLDER / f"{name}.json").write_text(json.dumps(drawn, indent=1) + "\n", encoding="utf-8")
        print(f"subgraphs/{name}.json")


if __name__ == "__main__":
    main()
