"""The host without ComfyUI, and those of ComfyUI's own nodes that common workflows use.

IDs, inputs, defaults, outputs and arithmetic of the nodes are those of ComfyUI 0.3.64, so that a workflow runs
unchanged and gives the same image.
"""

from __future__ import annotations

from collections.abc import Mapping


def native_nodes() -> dict[str, type]:
    """ComfyUI's node classes by ID, not bound to a host. The name of a class is its ID; base classes end in "Node"."""
    from . import (
        compositing,
        conditioning,
        control,
        curves,
        files,
        hypernetworks,
        images,
        latents,
        loaders,
        masks,
        merging,
        model_sampling,
        primitives,
        sampling,
        sigmas,
        text_boxes,
        upscaling,
        vae,
        vision,
    )

    modules = (
        loaders, conditioning, control, curves, vae, latents, merging, model_sampling, sampling, sigmas, images, files,
        masks, compositing, upscaling, vision, text_boxes, hypernetworks, primitives,
    )  # fmt: skip
    found = (item for module in modules for item in vars(module).items())
    return {name: cls for name, cls in found if hasattr(cls, "INPUTS") and not name.endswith("Node")}


def pack_nodes(ours: Mapping[str, type]) -> dict[str, type]:
    """Nodes of other packs by ID, not bound to a host: those that have an equivalent among ours."""
    from .pack_pictures import PACK_PICTURES
    from .pack_speed import PACK_SPEED
    from .pack_texts import PACK_TEXTS
    from .pack_values import PACK_VALUES
    from .replaced import replaced_nodes

    return {**replaced_nodes(ours), **PACK_VALUES, **PACK_TEXTS, **PACK_PICTURES, **PACK_SPEED}
