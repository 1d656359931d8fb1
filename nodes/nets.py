"""Nodes that write ControlNets: save, convert, transfer to another base."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..controlnet_core.checkpoints.detect import identify_file
from ..controlnet_core.checkpoints.load import load_controlnet, load_unet
from ..controlnet_core.checkpoints.save import LayoutName, save_controlnet
from ..controlnet_core.models.controlnet import ControlNet
from . import builtin
from .folders import inside, publish, remove_leftovers, temporary_file
from .host import Node

CATEGORY = "ControlNet Core/train"
LAYOUTS: dict[str, LayoutName] = {"cldm": "ldm", "diffusers": "diffusers", "core": "core"}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUT = (
    list(LAYOUTS),
    {"default": "cldm", "tooltip": "Whose names the file has: the release's, diffusers', or this pack's own."},
)
DTYPE = (list(DTYPES), {"default": "fp16", "tooltip": "Precision of the file; fp16 is what is usually shared."})
PREFIX_TIP = "How the file's name begins, in the output folder; move the file to models/controlnet to use it."


def prefix_input(default: str) -> tuple[str, dict[str, Any]]:
    """The input for the beginning of a file's name."""
    return ("STRING", {"default": default, "tooltip": PREFIX_TIP})


def net_path(host: Any, name: str) -> Path:
    """The file of a net, built in or of the user."""
    return builtin.controlnets(host.assets_dir).get(name) or host.find("controlnet", name)


def base_path(host: Any, name: str) -> Path:
    """The file of a checkpoint, built in or of the user."""
    return builtin.checkpoints(host.assets_dir).get(name) or host.find("checkpoints", name)


def net_names(host: Any) -> list[str]:
    """What a list of nets offers."""
    return [*builtin.controlnets(host.assets_dir), *host.files("controlnet")]


def base_names(host: Any) -> list[str]:
    """What a list of checkpoints offers."""
    return [*builtin.checkpoints(host.assets_dir), *host.files("checkpoints")]


def write_numbered(folder: Path, prefix: str, write: Callable[[Path], object]) -> Path:
    """Write prefix_00001.safetensors in the output folder, or the next number that is free, and return the file.

    write: writes the file under the name that it is given. The file gets its number when it is complete, so that two
    runs at the same time never get the same one. Raises PathError for a prefix that leaves the folder.
    """
    names = (inside(folder, f"{prefix}_{n:05d}.safetensors", follow_links=False) for n in itertools.count(1))
    first = next(names)
    remove_leftovers(first.parent)
    temporary = temporary_file(first.parent)
    try:
        write(temporary)
        return publish(temporary, itertools.chain([first], names))
    finally:
        temporary.unlink(missing_ok=True)


def write_net(host: Any, net: ControlNet, prefix: str, layout: str, dtype: str, family: str, note: str) -> Path:
    """Save a net under a free name of the output folder; returns the file. Raises PathError or CheckpointError."""
    options: dict[str, Any] = {"family": family, "layout": LAYOUTS[layout], "dtype": DTYPES[dtype]}
    options["metadata"] = {"controlnet_core.made_by": note}
    return write_numbered(host.output_dir, prefix, lambda path: save_controlnet(path, net, **options))


class SaveControlNet(Node):
    """A net into a file."""

    DISPLAY_NAME = "Save ControlNet"
    CATEGORY = CATEGORY
    DESCRIPTION = "Writes a ControlNet that was loaded or made by this pack as a file, in the layout that you choose."
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("file",)
    OUTPUT_TOOLTIPS = ("Where the file is.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "control_net": ("CONTROL_NET", {"tooltip": "The net to write."}),
                "filename_prefix": prefix_input("controlnet/net"),
                "layout": LAYOUT,
                "dtype": DTYPE,
            }
        }

    def run(self, control_net: Any, filename_prefix: str, layout: str, dtype: str) -> dict[str, Any]:
        """-> the file's path."""
        net, family = self.host.plain_net(control_net)
        path = write_net(self.host, net, filename_prefix, layout, dtype, family, "Save ControlNet")
        return {"ui": {"text": [str(path)]}, "result": (str(path),)}


class ConvertControlNet(Node):
    """A net's file in another layout."""

    DISPLAY_NAME = "Convert ControlNet"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Writes a ControlNet file again in another layout or precision: the release's, diffusers', or this pack's own."
    )
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("file",)
    OUTPUT_TOOLTIPS = ("Where the new file is.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "control_net_name": (net_names(cls.host), {"tooltip": "The file to read; it stays as it is."}),
                "layout": LAYOUT,
                "dtype": DTYPE,
                "filename_prefix": prefix_input("controlnet/converted"),
            }
        }

    def run(self, control_net_name: str, layout: str, dtype: str, filename_prefix: str) -> dict[str, Any]:
        """-> the file's path. Raises CheckpointError for other kinds of control."""
        net, identity = load_controlnet(net_path(self.host, control_net_name))
        note = f"Convert ControlNet from {control_net_name}"
        path = write_net(self.host, net, filename_prefix, layout, dtype, identity.family, note)
        text = f"{path}: was {identity.layout} layout, is {layout}"
        return {"ui": {"text": [text]}, "result": (str(path),)}


class TransferControlNet(Node):
    """A net for another checkpoint of the same family."""

    DISPLAY_NAME = "Transfer ControlNet"
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes a ControlNet for a fine-tuned checkpoint out of one that was trained on another: the difference "
        "between both checkpoints is added to the weights that the net shares with them."
    )
    SEARCH_ALIASES = ["difference", "add difference", "merge"]
    RETURN_TYPES = ("CONTROL_NET", "STRING")
    RETURN_NAMES = ("control_net", "file")
    OUTPUT_TOOLTIPS = ("The new net, ready for use.", "Where its file is.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        bases = base_names(cls.host)
        strength = {"default": 1.0, "min": -2.0, "max": 2.0, "step": 0.01}
        return {
            "required": {
                "control_net_name": (net_names(cls.host), {"tooltip": "The net; its file stays as it is."}),
                "source": (bases, {"tooltip": "The checkpoint that the net was trained on."}),
                "target": (bases, {"tooltip": "The checkpoint that the new net is for."}),
                "strength": ("FLOAT", {**strength, "tooltip": "How much of the difference is added; 1 is all of it."}),
                "dtype": DTYPE,
                "filename_prefix": prefix_input("controlnet/transferred"),
            }
        }

    def run(
        self, control_net_name: str, source: str, target: str, strength: float, dtype: str, filename_prefix: str
    ) -> tuple[Any, str]:
        """-> CONTROL_NET, the file's path. Raises UnfitError for nets and checkpoints of different families."""
        from ..controlnet_core.training.transfer_controlnet import transfer_controlnet

        net, identity = load_controlnet(net_path(self.host, control_net_name))
        before, after = (load_unet(base_path(self.host, name)) for name in (source, target))
        moved = transfer_controlnet(net, before, after, strength)
        family = identify_file(base_path(self.host, target)).family or identity.family
        note = f"Transfer ControlNet: {control_net_name} + {strength:g} x ({target} - {source})"
        path = write_net(self.host, moved, filename_prefix, "cldm", dtype, family, note)
        return self.host.load_controlnet(path), str(path)
