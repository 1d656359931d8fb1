"""The nodes inside ComfyUI. Only this folder imports ComfyUI.

Importing this package imports nothing of ComfyUI and nothing heavy.
"""

from __future__ import annotations

from typing import Any

from .. import bind, own_nodes
from . import replacements


def editor_nodes() -> tuple[dict[str, type], dict[str, str]]:
    """Our node classes and their display names by ID, as ComfyUI reads them from a pack."""
    replacements.register()
    classes = bind(own_nodes(), DeferredHost())
    return classes, {name: cls.DISPLAY_NAME for name, cls in classes.items()}  # type: ignore[attr-defined]


class DeferredHost:
    """Imports the host when a node first asks it for something.

    Our classes inherit from ComfyUI's. At that time other packs have replaced those that they replace.
    """

    def __getattr__(self, name: str) -> Any:
        from .host import HOST

        return getattr(HOST, name)
