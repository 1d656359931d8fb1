"""ControlNet Core: a node pack for ComfyUI, and a library and command without it.

In the editor this file is imported as a package and offers the node classes. Test runners may
import it as a bare module, where relative imports cannot work: hence the guard.
"""

import sys

if __package__ and "folder_paths" in sys.modules:  # the editor is running, and asks for nodes
    from .nodes.comfyui import editor_nodes

    NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = editor_nodes()
    WEB_DIRECTORY = "./web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
