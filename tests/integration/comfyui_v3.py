"""Our nodes in the V3 schema beside the V1 classes that they are made from; held to in `test_v3.py`."""

from __future__ import annotations

import json
from typing import Any

import torch
from comfyui_host import CFG, NEGATIVE, PROMPT, SEED, STEPS, start_picture


def described(cls: Any) -> dict[str, Any]:
    """A V1 class in the form in which the server describes a V3 one."""
    groups = cls.INPUT_TYPES()
    inputs = {group: {name: entry_of(entry) for name, entry in groups.get(group, {}).items()} for group in GROUPS}
    return {
        "input": inputs, "hidden": sorted(groups.get("hidden", {})), "output": [*cls.RETURN_TYPES],
        "output_name": [*cls.RETURN_NAMES], "output_tooltips": [*cls.OUTPUT_TOOLTIPS], "category": cls.CATEGORY,
        "description": cls.DESCRIPTION, "display_name": cls.DISPLAY_NAME,
        "search_aliases": getattr(cls, "SEARCH_ALIASES", None), "output_node": getattr(cls, "OUTPUT_NODE", False),
    }  # fmt: skip


GROUPS = ("required", "optional")
ADDED = {"STRING": {"multiline": False}, "COMBO": {"multiselect": False}}
"""Defaults that the V3 schema writes out."""


def entry_of(entry: Any) -> list[Any]:
    """An input of a V1 class as V3 writes it."""
    kind, options = entry[0], entry[1] if len(entry) > 1 else {}
    if not isinstance(kind, str):
        kind, options = "COMBO", {**options, "options": kind}
    return [kind, {**ADDED.get(kind, {}), **options}]


def picture(session: Any, classes: dict[str, Any]) -> torch.Tensor:
    """A picture by these classes: a hint, a ControlNet and a run with a report, with hidden inputs on the way."""

    def node(name: str, **inputs: Any) -> Any:
        cls = classes[f"CNCore_{name}"]
        made = getattr(cls(), cls.FUNCTION)(**inputs)
        return made.args if hasattr(made, "args") else made["result"] if isinstance(made, dict) else made

    model, clip, vae = node("LoadCheckpoint", checkpoint="demo (built in)")
    model = node("Accelerate", model=model, weights="shared")[0]
    positive, negative = node("EncodePrompt", clip=clip, prompt=PROMPT, negative_prompt=NEGATIVE)
    (net,) = node("LoadControlNet", control_net="demo canny (built in)")
    hint = node("Canny", image=start_picture(), resolution=0)[0]
    unit = {"control_net": net, "image": hint, "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    halves = node("ApplyControlNet", positive=positive, negative=negative, mode="balanced", **unit)
    (latent,) = session.node("EmptyLatentImage", width=64, height=64, batch_size=1)
    settings = {"seed": SEED, "steps": STEPS, "cfg": CFG, "sampler": "euler", "scheduler": "normal", "denoise": 1.0}
    result = node("ControlReport", model=model, positive=halves[0], negative=halves[1], latent=latent, **settings)
    return session.node("VAEDecode", samples=result[0], vae=vae)[0]


def v3_schema(session: Any) -> None:
    """Descriptions and pictures of both; what checks before a run say."""
    ours = {name: cls for name, cls in session.nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("CNCore_")}
    facts: dict[str, Any] = {"is v3": all(hasattr(cls, "define_schema") for cls in ours.values())}
    v1 = {name: cls.v1 for name, cls in ours.items()}
    differences = {}
    for name, cls in v1.items():
        expected, info = described(cls), json.loads(json.dumps(ours[name].GET_NODE_INFO_V1()))
        inputs = {group: info["input"].get(group, {}) for group in GROUPS}
        found = {**info, "input": inputs, "hidden": sorted(info["input"].get("hidden", {}))}
        if expected["output_node"]:  # such a node gets the workflow and its settings from V3
            expected["hidden"] = sorted({*expected["hidden"], "prompt", "extra_pnginfo"})
        if "search_aliases" not in info:
            del expected["search_aliases"]
        expected = json.loads(json.dumps(expected))
        differences |= {f"{name}.{key}": [found[key], value] for key, value in expected.items() if found[key] != value}
    facts["differences"] = differences
    facts["same picture"] = torch.equal(picture(session, ours), picture(session, v1))
    checks = {"kind": "canny", "settings": "no such thing=1"}
    facts["check"] = [
        ours["CNCore_Preprocess"].validate_inputs(**checks),
        v1["CNCore_Preprocess"].VALIDATE_INPUTS(**checks),
    ]
    session.facts["v3"] = facts
