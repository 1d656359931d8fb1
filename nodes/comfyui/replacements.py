"""Nodes of other packs that ComfyUI may replace by ours where those packs are not installed.

ComfyUI 0.14 and later offers this to the user when a workflow has such a node. Nothing is replaced where the other pack
is installed. Inputs that are missing in a row keep our default; links to them are removed by ComfyUI.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Coroutine
from typing import Any

from ..replacements import REPLACEMENTS

log = logging.getLogger(__name__)


def register() -> None:
    """Tell ComfyUI's server about the replacements; nothing in releases that have none."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    if not hasattr(getattr(server, "instance", None), "node_replace_manager"):
        return
    try:
        from comfy_api.latest import ComfyAPI, io
    except ImportError:
        return
    offers = ComfyAPI().node_replacement
    for one in REPLACEMENTS:
        outputs = [{"new_idx": new, "old_idx": old} for old, new in enumerate(one.outputs)]
        made = io.NodeReplace(one.new, one.old, list(one.widgets), one.mapping(), outputs)
        run(offers.register(made))


def run(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine that waits for nothing, as ComfyUI's functions of registration are.

    ComfyUI imports packs in its event loop, which cannot run a second one.
    """
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    log.warning("a registration of ComfyUI waits: node replacements are not offered")
