"""The tables that the Pose Editor in the browser shares with Python, as JavaScript; `make_node_docs.py` writes them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from comfyui_controlnet_core.preprocessors import limits
from comfyui_controlnet_core.preprocessors.pose import TEMPLATES, Strokes, template
from comfyui_controlnet_core.preprocessors.pose import skeleton as bones

HEAD = "// Written by docs/make_node_docs.py from preprocessors/pose/ and preprocessors/limits.py: change it there.\n"
LIMITS = {
    "side": limits.MAX_SIDE,
    "canvasPixels": limits.MAX_CANVAS_PIXELS,
    "filePixels": limits.MAX_FILE_PIXELS,
    "frames": limits.MAX_FRAMES,
    "people": limits.MAX_PEOPLE,
    "bytes": limits.MAX_JSON_BYTES,
    "coordinate": limits.MAX_COORDINATE,
}


def tables() -> dict[str, Any]:
    """Name -> value of each constant."""
    return {
        "BODY_NAMES": bones.BODY_NAMES,
        "BODY_LIMBS": bones.BODY_LIMBS,
        "BODY_COLOURS": bones.BODY_COLOURS,
        "LIMB_SHADE": bones.LIMB_SHADE,
        "HAND_BONES": bones.HAND_BONES,
        "BODY_25_TO_18": bones.BODY_25_TO_18,
        "STROKES": asdict(Strokes()),
        "LIMITS": LIMITS,
        "TEMPLATES": {name: template(name).body[:, :2].round(4).tolist() for name in TEMPLATES},
    }


def text() -> str:
    """The module `web/pose/tables.js`."""
    return HEAD + "".join(f"export const {name} = {json.dumps(value)};\n" for name, value in tables().items())
