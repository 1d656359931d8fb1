"""Give the nodes of a drawn workflow the room that they need in both modes of the editor.

Vue nodes are up to 70 pixels higher than classic ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from editor_sheet import Sheet

TITLE = 30
"""Pixels of a node's title, which ComfyUI draws above the position of the node."""
VUE_HEIGHTS = {
    "CNCore_ApplyControlNet": 330, "CNCore_BlockWeights": 320, "CNCore_ControlOptions": 260, "CNCore_ControlUnit": 310,
    "CNCore_DepthConvert": 276, "CNCore_ExampleImage": 164, "CNCore_LoadCheckpoint": 128, "CNCore_LoadControlNet": 88,
    "CNCore_MoreHints": 108, "CNCore_PoseRender": 364, "CNCore_Preprocess": 256, "EmptyImage": 156,
    "EmptyLatentImage": 120, "ImagePadForOutpaint": 192, "ImageToMask": 64, "PreviewImage": 272,
    "SetUnionControlNetType": 64,
}  # fmt: skip
"""Least height in pixels, without the title, that Vue nodes need (measured in frontend 1.58.1). Classic nodes need
less."""
GAP = 20
"""Pixels between nodes, between groups, and from the lowest node to the end of its group."""


def bottom_of(node: Mapping[str, Any]) -> int:
    """The y below a node."""
    return node["pos"][1] + node["size"][1]


def side_by_side(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two nodes share no column."""
    (ax, _), (bx, _) = a["pos"], b["pos"]
    return ax + a["size"][0] <= bx or bx + b["size"][0] <= ax


def make_room(sheet: Sheet) -> None:
    """Give every node the height it needs in both modes, and move down what would be covered.

    A group keeps its left and right sides. It ends below its lowest node.
    """
    for node in sheet.nodes:
        node["size"][1] = max(node["size"][1], VUE_HEIGHTS.get(node["type"], 0))
    frames = [group["bounding"] for group in sheet.groups]
    members = [[node for node in sheet.nodes if _inside(node, frame)] for frame in frames]
    loose = [node for node in sheet.nodes if not any(_inside(node, frame) for frame in frames)]
    _move_down(loose)
    done: list[int] = []
    for index in sorted(range(len(frames)), key=lambda i: frames[i][1]):
        x, y, width, _ = frames[index]
        above = [frames[i] for i in done if frames[i][0] < x + width and x < frames[i][0] + frames[i][2]]
        top = max([y, *(frame[1] + frame[3] + GAP for frame in above)])
        for node in members[index]:
            node["pos"][1] += top - y
        _move_down(members[index])
        lowest = max(bottom_of(node) for node in members[index])
        frames[index][1], frames[index][3] = top, lowest + GAP - top
        done.append(index)


def _inside(node: Mapping[str, Any], frame: list[int]) -> bool:
    (x, y), (left, top, width, height) = node["pos"], frame
    return left <= x < left + width and top <= y < top + height


def _move_down(nodes: list[dict[str, Any]]) -> None:
    """Move nodes down until each one begins below those that stand above it in its column."""
    placed: list[dict[str, Any]] = []
    for node in sorted(nodes, key=lambda node: node["pos"][1]):
        above = [other for other in placed if not side_by_side(node, other)]
        node["pos"][1] = max([node["pos"][1], *(bottom_of(other) + GAP + TITLE for other in above)])
        placed.append(node)
