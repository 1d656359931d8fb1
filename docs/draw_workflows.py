"""Draw the workflows that come with the package: writes workflows/*.json.

    python docs/draw_workflows.py

Run it after the inputs of a node changed. A workflow that was saved from ComfyUI may replace a drawn one; then remove
its function from `DRAWINGS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import workflow_controls as controls
import workflow_hints as hints
import workflow_prompts as prompts
import workflow_strength as strength
import workflow_tools as tools
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from editor_sheet import Sheet
from workflow_layout import make_room

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
DRAWINGS: Mapping[str, Callable[[Sheet], None]] = {
    function.__name__: function
    for function in (
        hints.canny_to_image,
        hints.scribble_to_image,
        controls.depth_and_pose,
        controls.union,
        controls.strength_and_window,
        controls.img2img_with_control,
        hints.canny_photo,
        hints.pose_from_json,
        hints.pose_editor,
        hints.depth_from_zpass,
        hints.contact_sheet,
        controls.masks_for_two_nets,
        controls.strength_schedules,
        controls.block_weights,
        controls.inpaint_with_control,
        controls.tile_upscale,
        controls.control_study,
        prompts.region_prompts,
        prompts.reference_look,
        prompts.prompt_edit,
        controls.inpaint_only,
        strength.auto_strength,
        tools.tiled_upscale,
        tools.control_sweep,
    )
}


def main() -> None:
    """Draw all workflows and write their files."""
    classes = build_nodes(StandaloneHost(device="cpu"))
    for name, draw in DRAWINGS.items():
        sheet = Sheet(classes)
        draw(sheet)
        make_room(sheet)
        text = json.dumps(sheet.json(), indent=1, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"workflows/{name}.json: {len(sheet.nodes)} nodes")


if __name__ == "__main__":
    main()
