"""Loaders and switches of OneDiff, a pack that compiles models. Here they run without it, and say so.

Its own acceleration changes rounding only, so the picture is the one of the plain loader. What skips or quantizes work
(its DeepCache, its quantized checkpoints) is not among them: that is another picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..fields import Field, choice, control_net, model, optional, vae
from ..node import Node
from .loaders import CheckpointLoaderSimple, ControlNetLoader
from .pack_values import CATEGORY
from .values import Clip, ControlNetHandle, Model, Vae

VAE_SPEEDUP = optional(choice("vae_speedup", ["disable", "enable"]))
ANY_WIDGET = Field("static_mode", "*", optional=True, widget_type="STRING")
"""The widget of the nodes that compile a linked model. Releases differ in its name and type."""


def report(host: Any, node: str, name: str) -> None:
    """Say that a node of OneDiff does nothing else here. node: its id in the workflow."""
    host.on_note(f"node {node} ({name}) ran without OneDiff: the same picture but for rounding, in more time")


class PlainCheckpointNode(CheckpointLoaderSimple):
    """Loads a checkpoint as CheckpointLoaderSimple does, without compiling it."""

    CATEGORY = CATEGORY
    INPUTS = (*CheckpointLoaderSimple.INPUTS, *VAE_SPEEDUP)
    HIDDEN = ("unique_id",)

    def run(
        self, ckpt_name: str, vae_speedup: str = "disable", unique_id: str = ""
    ) -> tuple[Model, Clip | None, Vae | None]:
        """-> MODEL, CLIP, VAE."""
        report(self.host, unique_id, "OneDiffCheckpointLoaderSimple")
        return super().run(ckpt_name)


class PlainControlNetNode(ControlNetLoader):
    """Loads a ControlNet as ControlNetLoader does, without compiling it."""

    CATEGORY = CATEGORY
    HIDDEN = ("unique_id",)

    def run(self, control_net_name: str, model: Model | None = None, unique_id: str = "") -> tuple[ControlNetHandle]:
        """-> CONTROL_NET."""
        report(self.host, unique_id, "OneDiffControlNetLoader")
        return super().run(control_net_name, model)


class PassedOnNode(Node):
    """Passes its input on, without compiling it."""

    CATEGORY = CATEGORY
    HIDDEN = ("unique_id",)

    def run(self, unique_id: str = "", **given: Any) -> tuple[Any]:
        """-> the input."""
        name = type(self).INPUTS[0].name
        report(self.host, unique_id, f"speed-up of the {name}")
        return (given[name],)


def _passed_on(entry: Field) -> type[PassedOnNode]:
    """The class for one type of value."""
    attributes = {"INPUTS": (entry, ANY_WIDGET), "RETURN_TYPES": (entry.type,), "__doc__": PassedOnNode.__doc__}
    return type(f"PassedOn{entry.type}Node", (PassedOnNode,), attributes)


PACK_SPEED: Mapping[str, type] = {
    "OneDiffCheckpointLoaderSimple": PlainCheckpointNode,
    "OneDiffControlNetLoader": PlainControlNetNode,
    "ModelSpeedup": _passed_on(model("model")),
    "ControlNetSpeedup": _passed_on(control_net("control_net")),
    "VaeSpeedup": _passed_on(vae("vae")),
}
"""By the IDs of OneDiff."""
