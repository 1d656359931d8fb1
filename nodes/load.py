"""Nodes that load: a checkpoint, a ControlNet, a picture to start from."""

from __future__ import annotations

from typing import Any

from . import builtin, scenes
from .host import Node


class LoadCheckpoint(Node):
    """MODEL, CLIP and VAE of one file."""

    DISPLAY_NAME = "Load Checkpoint (ControlNet Core)"
    CATEGORY = "ControlNet Core/load"
    DESCRIPTION = (
        "Loads a Stable Diffusion checkpoint: the model that paints, the text encoder and the autoencoder. "
        "The built-in demo model needs no download. Your own files go into models/checkpoints."
    )
    SEARCH_ALIASES = ["checkpoint", "model", "demo"]
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    RETURN_NAMES = ("model", "clip", "vae")
    OUTPUT_TOOLTIPS = (
        "The model that removes noise: link it to Sample.",
        "The text encoder: link it to Encode Prompt.",
        "The autoencoder between pictures and latents: link it to VAE Decode.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = [*builtin.checkpoints(cls.host.assets_dir), *cls.host.files("checkpoints")]
        tip = "The demo model that comes with this pack, or a file of models/checkpoints."
        return {"required": {"checkpoint": (names, {"tooltip": tip})}}

    def run(self, checkpoint: str) -> tuple[Any, Any, Any]:
        """-> MODEL, CLIP, VAE."""
        path = builtin.checkpoints(self.host.assets_dir).get(checkpoint)
        return self.host.load_checkpoint(path or self.host.find("checkpoints", checkpoint))


class LoadControlNet(Node):
    """A net that controls, of any kind and layout."""

    DISPLAY_NAME = "Load ControlNet (ControlNet Core)"
    CATEGORY = "ControlNet Core/load"
    DESCRIPTION = (
        "Loads a ControlNet, ControlNet Union, Control-LoRA, difference file or T2I-Adapter in any usual layout. The "
        "built-in demo nets fit the built-in demo model only; your own files go into models/controlnet and have to "
        "be made for your checkpoint's base."
    )
    SEARCH_ALIASES = ["controlnet", "canny", "openpose", "depth", "scribble", "t2i adapter", "control lora", "union"]
    RETURN_TYPES = ("CONTROL_NET",)
    RETURN_NAMES = ("control_net",)
    OUTPUT_TOOLTIPS = ("The net: link it to Apply ControlNet or Control Unit, native ones too.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = [*builtin.controlnets(cls.host.assets_dir), *cls.host.files("controlnet")]
        tip = "What the net was trained to follow: give it hints of that kind."
        base = "The base for files that hold only a difference to one; without it, the model that is sampled."
        return {
            "required": {"control_net": (names, {"tooltip": tip})},
            "optional": {"model": ("MODEL", {"tooltip": base})},
        }

    def run(self, control_net: str, model: Any = None) -> tuple[Any]:
        """-> CONTROL_NET."""
        path = builtin.controlnets(self.host.assets_dir).get(control_net)
        return (self.host.load_controlnet(path or self.host.find("controlnet", control_net), model),)


class ExampleImage(Node):
    """A picture to try things with."""

    DISPLAY_NAME = "Example Image"
    CATEGORY = "ControlNet Core/load"
    DESCRIPTION = (
        "A picture to try things with, free of rights: photographs, and scenes of the demo world, which also "
        "have an exact hint for every condition. The second output says in words what it shows."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "caption")
    OUTPUT_TOOLTIPS = ("The picture, or the hint chosen as view.", "What the picture shows, to use as a prompt.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = [*builtin.photos(cls.host.assets_dir), *scenes.SCENES]
        return {
            "required": {
                "picture": (names, {"tooltip": "A photograph, or a scene that the demo model knows."}),
                "view": (
                    [*scenes.VIEWS, scenes.STEREO],
                    {
                        "default": "picture",
                        "tooltip": "The picture itself, or its exact hint; hints and z-pass (distances in metres) "
                        "exist for demo scenes only, a stereo pair (a copy with a shifted half) for photographs.",
                    },
                ),
                "size": (
                    "INT",
                    {
                        "default": 512,
                        "min": 64,
                        "max": 2048,
                        "step": 8,
                        "tooltip": "Side of the square picture in pixels. The demo model was trained at 128.",
                    },
                ),
            }
        }

    def run(self, picture: str, view: str, size: int) -> tuple[Any, str]:
        """-> IMAGE (1, size, size, 3), what it shows."""
        photo = builtin.photos(self.host.assets_dir).get(picture)
        return scenes.scene(picture, view, size) if photo is None else scenes.photo(photo, view, size)
