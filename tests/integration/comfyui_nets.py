"""Scenario of the nodes that make and move nets, and of ControlNet Unions, inside the real host; run by
`comfyui_host.py`, held to by `test_comfyui.py`.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

BASE, CANNY = "demo (built in)", "demo canny (built in)"
SIDE = 64
TYPES = ("depth", "openpose")
FILE = {"dtype": "fp32", "filename_prefix": "controlnet/net"}
TRAINING = {
    "checkpoint": BASE, "captions": "a red sphere", "steps": 3, "batch": 2, "learning_rate": 1e-2, "quick": True,
    "only_middle": False, "seed": 0, **FILE,
}  # fmt: skip
MOVE = {"control_net_name": CANNY, "source": BASE, "target": BASE, "strength": 1.0, **FILE}
OPTIONS = {
    "hint_fit": "crop", "positive_factor": 1.0, "negative_factor": 1.0, "per_picture": "", "average_over_picture": False
}  # fmt: skip


def examples() -> dict[str, torch.Tensor]:
    """Pictures and hints, IMAGE (3, SIDE, SIDE, 3)."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(3, SIDE, SIDE, 3, generator=generator) for name in ("pictures", "hints")}


def union_units(node: Any) -> dict[str, dict[str, Any]]:
    """What a unit of a union may say, made by our nodes, which are the same in every home."""
    (net,) = node("CNCore_LoadControlNet", control_net="union.safetensors")
    first, second = TYPES
    told = {"options": node("CNCore_ControlOptions", hint_type=first, **OPTIONS)[0]}
    (more,) = node("CNCore_MoreHints", image=examples()["hints"][:1], hint_type=second)
    units = {"silent": {}, "told": told, "two hints": {**told, "more_hints": more}}
    return {name: {"control_net": net, **unit} for name, unit in units.items()}


def set_type(net: Any, name: str) -> Any:
    """The host's own node that tells a union the kind of its hint."""
    node: Any = importlib.import_module("comfy_extras.nodes_controlnet").SetUnionControlNetType
    return (node.execute(net, name) if hasattr(node, "execute") else node().set_controlnet_type(net, name))[0]


def nets_of_nodes(session: Any) -> None:
    """Train, save, move; a picture with each net; unions told by our nodes and by the host's."""
    paths = importlib.import_module("folder_paths")
    before = paths.get_output_directory()
    paths.set_output_directory(str(session.pack.parents[1] / "output"))
    try:
        trained, report, _ = session.node("CNCore_TrainControlNet", **TRAINING, **examples())
        lora, lora_report, _ = session.node("CNCore_TrainControlNet", **TRAINING, **examples(), rank=4)
        moved, moved_file = session.node("CNCore_TransferControlNet", **MOVE)
        saved = session.node("CNCore_SaveControlNet", control_net=trained, layout="diffusers", **FILE)["result"][0]
    finally:
        paths.set_output_directory(before)
    lora_file = lora_report.rpartition("saved as ")[2]
    files = {"trained": report.rpartition("saved as ")[2], "lora": lora_file, "moved": moved_file, "saved": saved}
    session.facts["nets"] = {name: str(path) for name, path in files.items()}
    units = {"none": None, "canny": {}, "trained": {"control_net": trained}, "moved": {"control_net": moved}}
    units["lora"] = {"control_net": lora}
    units |= union_units(session.node)
    units["told by the host"] = {"control_net": set_type(units["silent"]["control_net"], TYPES[0])}
    for name, unit in units.items():
        conditioning = session.prompts if unit is None else session.controlled(**unit)
        session.tensors[f"net.{name}"] = session.picture(session.ksampler(conditioning))
    # The same file by ComfyUI's own loader and apply node.
    native = importlib.import_module("comfy.controlnet").load_controlnet(lora_file)
    session.tensors["net.lora, native"] = session.picture(session.ksampler(session.natively_controlled(native)))
