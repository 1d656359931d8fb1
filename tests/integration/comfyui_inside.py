"""`controlnet` inside a ComfyUI with another base folder: `python comfyui_inside.py COMFYUI_DIR BASE ARGUMENTS...`.

Started as a program of its own by `test_comfyui_inside.py`. BASE has the folders custom_nodes, models, input and user.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main(folder: str, base: str, *arguments: str) -> int:
    sys.path.insert(0, str(Path(__file__).parent))
    importlib.import_module("comfyui_host").without_torchvision()
    sys.path.insert(0, folder)
    importlib.import_module("comfy.cli_args").args.base_directory = base
    cli = importlib.import_module("comfyui_controlnet_core.workflows.cli")
    return cli.main([*arguments, "--comfyui", folder])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
