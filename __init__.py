"""ControlNet Core: a node pack for ComfyUI, and a Python library and command without it.

Inside ComfyUI this file offers the node classes. Elsewhere `load`, `preprocess` and `control` are the Python API; it
is imported when one of them is first used, so that `import comfyui_controlnet_core` loads neither torch nor a model.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .workflows.api import Control, Pipe, control, load, preprocess

__all__ = ["Control", "Pipe", "control", "load", "preprocess"]

# A test runner may import this file without its package, where relative imports cannot work: hence `__package__`.
if __package__ and "folder_paths" in sys.modules:  # ComfyUI is running and asks for nodes
    from .nodes.comfyui import editor_nodes

    NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = editor_nodes()
    WEB_DIRECTORY = "./web"
    __all__ += ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]


def __getattr__(name: str) -> object:
    """Import the Python API when one of its names is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .workflows import api

    return getattr(api, name)
