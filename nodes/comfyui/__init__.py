"""The side of the port that stands in the editor (ComfyUI). The only place that imports it.

Importing this package imports nothing of the editor yet, and nothing heavy: the parts are imported when a
node needs them.
"""

from __future__ import annotations

from .. import bind, own_nodes
from . import replacements
from .host import ComfyHost


def editor_nodes() -> tuple[dict[str, type], dict[str, str]]:
    """Node classes and display names by ID, as the editor wants them from a pack.

    Only our own nodes: the native ones are the editor's.
    """
    replacements.register()
    classes = bind(own_nodes(), ComfyHost())
    return classes, {name: cls.DISPLAY_NAME for name, cls in classes.items()}  # type: ignore[attr-defined]
