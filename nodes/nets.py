"""Nodes that write ControlNets to files: save, convert, transfer to another checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .builtin import base_names, base_path, net_names, net_path
from .fields import Field, Output, choice, control_net, number, text
from .folders import inside, publish, remove_leftovers, temporary_file
from .node import Node, with_text

if TYPE_CHECKING:
    from ..controlnet_core.checkpoints.save import LayoutName
    from ..controlnet_core.models.controlnet import ControlNet

CATEGORY = "ControlNet Core/train"
# The name that people know each layout by -> the name in `save_controlnet`.
LAYOUTS: dict[str, LayoutName] = {"cldm": "ldm", "diffusers": "diffusers", "core": "core"}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUT = choice(
    "layout",
    list(LAYOUTS),
    "The names of the weights in the file: those of the original release (cldm), of diffusers, or of this pack (core).",
    "cldm",
)
DTYPE = choice("dtype", list(DTYPES), "Precision of the file. ControlNets are usually shared as fp16.", "fp16")


def prefix_field(default: str) -> Field:
    """The input for the start of a file's name."""
    tooltip = "Start of the file name in the output folder. To use the file, move it to models/controlnet."
    return text("filename_prefix", tooltip, default)


def net_field(tooltip: str) -> Field:
    """The input for a ControlNet's file."""
    return choice("control_net_name", net_names, tooltip)


def write_numbered(folder: Path, prefix: str, write: Callable[[Path], object]) -> Path:
    """Write prefix_00001.safetensors in a folder, or the next number that is free, and return the file.

    write: writes the file under the name that it gets. Raises PathError for a prefix that leaves the folder.
    """
    # Links are not followed: a link in the output folder must not let a workflow write elsewhere.
    names = (inside(folder, f"{prefix}_{n:05d}.safetensors", follow_links=False) for n in itertools.count(1))
    first = next(names)
    remove_leftovers(first.parent)
    # The file gets its number when it is complete: two runs at the same time never get the same number, and a run
    # that is killed leaves no incomplete file with a valid name.
    temporary = temporary_file(first.parent)
    try:
        write(temporary)
        return publish(temporary, itertools.chain([first], names))
    finally:
        temporary.unlink(missing_ok=True)


def write_net(host: Any, net: ControlNet, prefix: str, layout: str, dtype: str, family: str, note: str) -> Path:
    """Save a ControlNet under a free name in the output folder, and return the file.

    note: stored in the file's metadata, to tell where it came from. Raises PathError or CheckpointError.
    """
    from ..controlnet_core.checkpoints.save import save_controlnet

    options: dict[str, Any] = {"family": family, "layout": LAYOUTS[layout], "dtype": DTYPES[dtype]}
    options["metadata"] = {"controlnet_core.made_by": note}
    return write_numbered(host.output_dir, prefix, lambda path: save_controlnet(path, net, **options))


class SaveControlNet(Node):
    """Saves a ControlNet that this pack loaded or trained as a file, in a layout of your choice."""

    DISPLAY_NAME = "Save ControlNet"
    CATEGORY = CATEGORY
    OUTPUT_NODE = True
    INPUTS = (control_net("control_net", "The ControlNet to save."), prefix_field("controlnet/net"), LAYOUT, DTYPE)
    OUTPUTS = (Output("STRING", "file", "The path of the file."),)

    def run(self, control_net: Any, filename_prefix: str, layout: str, dtype: str) -> dict[str, Any]:
        """-> the file's path."""
        net, family = self.host.plain_net(control_net)
        path = str(write_net(self.host, net, filename_prefix, layout, dtype, family, "Save ControlNet"))
        return with_text(path, path)


class ConvertControlNet(Node):
    """Converts a ControlNet file to another layout or precision: the layout of the original release, of diffusers, or
    of this pack.
    """

    DISPLAY_NAME = "Convert ControlNet"
    CATEGORY = CATEGORY
    OUTPUT_NODE = True
    INPUTS = (
        net_field("The file to convert. It is not changed."), LAYOUT, DTYPE, prefix_field("controlnet/converted")
    )  # fmt: skip
    OUTPUTS = (Output("STRING", "file", "The path of the new file."),)

    def run(self, control_net_name: str, layout: str, dtype: str, filename_prefix: str) -> dict[str, Any]:
        """-> the file's path. Raises CheckpointError for other kinds of control."""
        from ..controlnet_core.checkpoints.load import load_controlnet

        net, identity = load_controlnet(net_path(self.host, control_net_name))
        note = f"Convert ControlNet from {control_net_name}"
        path = write_net(self.host, net, filename_prefix, layout, dtype, identity.family, note)
        return with_text(f"{path}: converted from the layout {identity.layout} to {layout}", str(path))


class TransferControlNet(Node):
    """Adapts a ControlNet that was trained on one checkpoint to another checkpoint of the same family: adds the
    difference between the two checkpoints to the weights that the ControlNet shares with them.
    """

    DISPLAY_NAME = "Transfer ControlNet"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["difference", "add difference", "merge"]
    INPUTS = (
        net_field("The ControlNet. Its file is not changed."),
        choice("source", base_names, "The checkpoint that the ControlNet was trained on."),
        choice("target", base_names, "The checkpoint that the new ControlNet is for."),
        number("strength", 1.0, -2.0, 2.0, "How much of the difference is added; 1 adds all of it."),
        DTYPE,
        prefix_field("controlnet/transferred"),
    )
    OUTPUTS = (
        Output("CONTROL_NET", "control_net", "The new ControlNet, ready for use."),
        Output("STRING", "file", "The path of its file."),
    )

    def run(
        self, control_net_name: str, source: str, target: str, strength: float, dtype: str, filename_prefix: str
    ) -> tuple[Any, str]:
        """-> CONTROL_NET, the file's path. Raises UnfitError for ControlNets and checkpoints of different families."""
        from ..controlnet_core.checkpoints.detect import identify_file
        from ..controlnet_core.checkpoints.load import load_controlnet, load_unet
        from ..controlnet_core.training.transfer_controlnet import transfer_controlnet

        net, identity = load_controlnet(net_path(self.host, control_net_name))
        before, after = (load_unet(base_path(self.host, name)) for name in (source, target))
        moved = transfer_controlnet(net, before, after, strength)
        # Not every checkpoint file tells its family; then it is that of the ControlNet.
        family = identify_file(base_path(self.host, target)).family or identity.family
        note = f"Transfer ControlNet: {control_net_name} + {strength:g} x ({target} - {source})"
        path = write_net(self.host, moved, filename_prefix, "cldm", dtype, family, note)
        return self.host.load_controlnet(path), str(path)
