"""Scenario of the hint nodes inside the real host; run by `comfyui_host.py`, held to by `test_comfyui.py`.

Every node that needs no files, two learned ones on files of random weights, and what the host does around them.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

LEARNED = {"CNCore_SoftEdge": ("soft_edge_teed", "soft_edge_pidinet"), "CNCore_Scribble": ("scribble_pidinet",)}
SIZE = 48


def frames(count: int = 3) -> torch.Tensor:
    """IMAGE (count, SIZE, SIZE, 3): gradients with a bright square that moves."""
    ramp = torch.linspace(0, 1, SIZE)
    flat = torch.stack([ramp.expand(SIZE, SIZE), ramp[:, None].expand(SIZE, SIZE), torch.full((SIZE, SIZE), 0.3)], -1)
    pictures = flat.repeat(count, 1, 1, 1)
    for index in range(count):
        pictures[index, 10:30, 5 + 6 * index : 25 + 6 * index] = 0.9
    return pictures


def defaults(cls: Any) -> dict[str, Any]:
    """The fields of a node as the editor shows them first."""
    return {k: e[1]["default"] for group in cls.INPUT_TYPES().values() for k, e in group.items() if "default" in e[-1]}


def calls(classes: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of a result -> node and inputs: every family at its default where that needs no files, and the learned."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in sorted(name for name in classes if hasattr(classes[name], "family")):
        family = classes[name].family
        given = {"image": frames(), **defaults(classes[name])}
        if family.needs_mask:
            given["mask"] = frames()[..., 2]
        kinds = [] if family.entries[0].weights else [family.kinds[0]]
        for kind in (*kinds, *LEARNED.get(name, ())):
            found[kind] = (name, {**given, **({"kind": kind} if "kind" in given else {})})
    for name, extra in (("CNCore_PoseRender", {}), ("CNCore_Preprocess", {"image": frames(), "settings": "low=20"})):
        found[name] = (name, {**defaults(classes[name]), **extra})
    return found


def preprocess_nodes(session: Any) -> None:
    """Hints, the nets' stay in the host's memory, interruption, and a file that is missing."""
    manage = importlib.import_module("comfy.model_management")
    mappings = session.nodes.NODE_CLASS_MAPPINGS.items()
    classes = {name: getattr(cls, "v1", cls) for name, cls in mappings if name.startswith("CNCore_")}
    texts = {}
    for key, (name, given) in calls(classes).items():
        shown = session.node(name, **given)
        session.tensors[f"hint.{key}"], texts[key] = shown["result"][0], shown["result"][-1]
    library = classes["CNCore_SoftEdge"].host.library()
    teed = {"image": frames(), **defaults(classes["CNCore_SoftEdge"]), "kind": "soft_edge_teed"}
    nets = {key: kept[1] for key, kept in library._nets.items()}
    held = [type(loaded.model.model).__name__ for loaded in manage.current_loaded_models if loaded.model is not None]
    manage.unload_all_models()
    session.tensors["hint again"] = session.node("CNCore_SoftEdge", **teed)["result"][0]
    same = all(library._nets[key][1] is net for key, net in nets.items())
    manage.interrupt_current_processing()
    interrupted = session.error(lambda: session.node("CNCore_SoftEdge", **teed))
    manage.interrupt_current_processing(False)
    session.facts["preprocess"] = {
        "texts": texts,
        "held": held,
        "nets": sorted(type(net).__name__ for net in nets.values()),
        "kept": same,
        "interrupted": interrupted,
        "missing": session.error(lambda: session.node("CNCore_SoftEdge", **{**teed, "kind": "soft_edge_hed"})),
        "side": session.node("CNCore_PixelPerfect", **{**defaults(classes["CNCore_PixelPerfect"]), "image": frames()})[
            "result"
        ][0],
    }
