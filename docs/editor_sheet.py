"""Write the editor's form of a workflow: nodes at chosen places, links, notes and groups, as JSON of format 0.4.

`draw_workflows.py` draws the bundled workflows with it, so that they always fit the node classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from comfyui_controlnet_core.controlnet_core.errors import WorkflowError
from comfyui_controlnet_core.workflows.contract import InputSpec, NodeSpec, read_spec, types_fit
from comfyui_controlnet_core.workflows.widgets import has_control, upload_index

Box = tuple[int, int, int, int]
"""x, y, width, height on the canvas, in the editor's pixels; y grows downwards."""


@dataclass(frozen=True)
class Placed:
    """A node on the sheet."""

    id: int
    spec: NodeSpec


@dataclass
class Sheet:
    """A canvas that is being drawn. `json()` gives what the editor would save."""

    classes: Mapping[str, type]
    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)

    def node(
        self,
        class_type: str,
        box: Box,
        values: Mapping[str, Any] | None = None,
        *,
        title: str = "",
        color: tuple[str, str] | None = None,
    ) -> Placed:
        """Put a node down; fields not in `values` get their defaults.

        Raises WorkflowError for an unknown class or field.
        """
        if class_type not in self.classes:
            raise WorkflowError(f"there is no node class {class_type}: correct the drawing")
        spec = read_spec(class_type, self.classes[class_type])
        unknown = set(values or {}) - {name for name, item in spec.inputs.items() if item.is_widget}
        if unknown:
            raise WorkflowError(f"{class_type} has no fields {', '.join(sorted(unknown))}: correct the drawing")
        entry = self._entry(class_type, box, title, color)
        entry["inputs"] = [_socket(item) for item in spec.inputs.values() if not item.is_widget]
        entry["outputs"] = [
            {"name": name, "type": _type_name(kind), "links": []}
            for name, kind in zip(spec.output_names, spec.outputs, strict=True)
        ]
        entry["properties"] = {"Node name for S&R": class_type}
        entry["widgets_values"] = _saved_values(spec, values or {})
        return Placed(entry["id"], spec)

    def note(self, text: str, box: Box) -> None:
        """A Markdown note."""
        entry = self._entry("MarkdownNote", box, "", ("#432", "#653"))
        entry["widgets_values"] = [text]

    def group(self, title: str, box: Box, color: str = "#3f789e") -> None:
        """A titled frame behind the nodes."""
        number = len(self.groups) + 1
        frame = {
            "id": number,
            "title": title,
            "bounding": list(box),
            "color": color,
            "font_size": 24,
            "flags": {},
        }
        self.groups.append(frame)

    def link(self, source: Placed, output: str, target: Placed, name: str) -> None:
        """Join an output, by its name, to an input. Raises WorkflowError when they do not fit."""
        wanted = target.spec.inputs.get(name)
        if output not in source.spec.output_names or wanted is None:
            ends = f"{source.spec.class_type}.{output} to {target.spec.class_type}.{name}"
            raise WorkflowError(f"no link from {ends} is possible: correct the drawing")
        slot = source.spec.output_names.index(output)
        kind = _type_name(source.spec.outputs[slot])
        if not types_fit(kind, wanted.type):
            raise WorkflowError(f"{target.spec.class_type}.{name} takes {wanted.type}, not {kind}: correct the drawing")
        number = len(self.links) + 1
        entry = self.nodes[target.id - 1]
        index = next((i for i, item in enumerate(entry["inputs"]) if item["name"] == name), None)
        if index is None:  # a field turned into a socket
            entry["inputs"].append({**_socket(wanted), "widget": {"name": name}})
            index = len(entry["inputs"]) - 1
        entry["inputs"][index]["link"] = number
        self.nodes[source.id - 1]["outputs"][slot]["links"].append(number)
        self.links.append([number, source.id, slot, target.id, index, kind])

    def json(self) -> dict[str, Any]:
        """The workflow as the editor saves it."""
        return {
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": {"scale": 0.8, "offset": [0, 0]}},
            "version": 0.4,
        }

    def _entry(self, kind: str, box: Box, title: str, color: tuple[str, str] | None) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "id": len(self.nodes) + 1,
            "type": kind,
            **({"title": title} if title else {}),
            "pos": list(box[:2]),
            "size": list(box[2:]),
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [],
            **({"color": color[0], "bgcolor": color[1]} if color else {}),
        }
        self.nodes.append(entry)
        return entry


def _socket(item: InputSpec) -> dict[str, Any]:
    optional = {} if item.required else {"shape": 7}  # the editor draws optional inputs hollow
    return {"name": item.name, "type": item.type, **optional, "link": None}


def _type_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else "COMBO"


def _saved_values(spec: NodeSpec, values: Mapping[str, Any]) -> list[Any]:
    saved: list[Any] = []
    widgets = [item for item in spec.inputs.values() if item.is_widget]
    for index, item in enumerate(widgets):
        saved.append(values.get(item.name, item.default))
        if has_control(item):
            saved.append("fixed")
        if index == upload_index(widgets):
            saved.append("image")
    return saved
