"""The nodes inside ComfyUI. Only this folder imports ComfyUI.

Importing this package imports nothing of ComfyUI and nothing heavy.
"""

from __future__ import annotations

from typing import Any

from .. import bind_nodes, own_nodes
from . import replacements


def editor_nodes() -> tuple[dict[str, type], dict[str, str]]:
    """Our node classes and their display names by ID, as ComfyUI reads them from a pack.

    V3 classes where ComfyUI takes them. A function `comfy_entrypoint` would be ignored beside NODE_CLASS_MAPPINGS.
    """
    replacements.register()
    host: Any = DeferredHost()
    classes = bind_nodes(own_nodes(), host)
    names = {name: cls.DISPLAY_NAME for name, cls in classes.items()}  # type: ignore[attr-defined]
    try:
        from .v3_nodes import v3_nodes
    except ImportError:  # an older release, which has V1 classes only
        return classes, names
    return v3_nodes(classes), names


class DeferredHost:
    """Imports the host when a node first asks it for something.

    Our classes inherit from ComfyUI's. At that time other packs have replaced those that they replace.
    """

    def __getattr__(self, name: str) -> Any:
        from .host import HOST

        return getattr(HOST, name)
