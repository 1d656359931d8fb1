"""The editor's own nodes that everyday workflows use, for runs without the editor.

IDs, inputs, defaults, outputs and arithmetic are those of ComfyUI 0.3.64, so that a workflow runs
unchanged and gives the same picture.
"""

from __future__ import annotations


def native_nodes() -> dict[str, type]:
    """Native node classes by ID, not bound to a host yet."""
    from . import (
        conditioning,
        control,
        custom_sampling,
        editing,
        files,
        images,
        latents,
        loaders,
        noise_levels,
        parts,
        primitives,
        sampling,
        sdxl,
        vae,
    )

    modules = (
        loaders, parts, conditioning, sdxl, control, editing, vae, latents, noise_levels, sampling,
        custom_sampling, images, files,
        primitives,
    )  # fmt: skip
    return {name: cls for module in modules for name, cls in module.NODES.items()}
