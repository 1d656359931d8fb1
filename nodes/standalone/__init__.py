"""The host without ComfyUI, and those of ComfyUI's own nodes that common workflows use.

IDs, inputs, defaults, outputs and arithmetic of the nodes are those of ComfyUI 0.3.64, so that a workflow runs
unchanged and gives the same image.
"""

from __future__ import annotations


def native_nodes() -> dict[str, type]:
    """ComfyUI's node classes by ID, not bound to a host. The name of a class is its ID; base classes end in "Node"."""
    from ..node import Node
    from . import (
        conditioning,
        control,
        custom_sampling,
        files,
        images,
        latents,
        loaders,
        model_sampling,
        primitives,
        sampling,
        vae,
    )

    modules = (
        loaders, conditioning, control, vae, latents, model_sampling, sampling, custom_sampling, images, files,
        primitives,
    )  # fmt: skip
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Node) and not name.endswith("Node")
    }
