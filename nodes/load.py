"""Nodes that load a checkpoint, a ControlNet or an example image."""

from __future__ import annotations

from typing import Any

from . import builtin, example_pictures
from .builtin import base_names, base_path, net_names, net_path
from .fields import Output, choice, integer, model, optional
from .node import Node

CATEGORY = "ControlNet Core/load"


class LoadCheckpoint(Node):
    """Loads a Stable Diffusion checkpoint: the diffusion model, the text encoder and the autoencoder. The built-in demo
    model needs no download. Put your own files into models/checkpoints.
    """

    DISPLAY_NAME = "Load Checkpoint (ControlNet Core)"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["checkpoint", "model", "demo"]
    INPUTS = (choice("checkpoint", base_names, "The built-in demo model, or a file in models/checkpoints."),)
    OUTPUTS = (
        Output("MODEL", "model", "The diffusion model: link it to Sample."),
        Output("CLIP", "clip", "The text encoder: link it to Encode Prompt."),
        Output("VAE", "vae", "The autoencoder, which converts images to latents and back: link it to VAE Decode."),
    )

    def run(self, checkpoint: str) -> tuple[Any, Any, Any]:
        """-> MODEL, CLIP, VAE."""
        return self.host.load_checkpoint(base_path(self.host, checkpoint))


class LoadControlNet(Node):
    """Loads a ControlNet, ControlNet Union, Control-LoRA, difference file, ControlNet-LLLite, ControlNet-XS or
    T2I-Adapter in any common layout. The built-in demo ControlNets only fit the built-in demo model. Put your own files
    into models/controlnet; they must be made for the base model of your checkpoint.
    """

    DISPLAY_NAME = "Load ControlNet (ControlNet Core)"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["controlnet", "canny", "openpose", "depth", "scribble", "t2i adapter", "control lora", "union"]
    INPUTS = (
        choice("control_net", net_names, "The ControlNet. Use hints of the kind that it was trained on."),
        *optional(
            model(
                "model",
                "The base model, for files that need weights of one: Control-LoRA, difference files, ControlNet-XS. "
                "Without it, the model that is sampled is used.",
            )
        ),
    )
    OUTPUTS = (
        Output(
            "CONTROL_NET",
            "control_net",
            "The ControlNet: link it to Apply ControlNet or Control Unit. Native nodes accept it too.",
        ),
    )

    def run(self, control_net: str, model: Any = None) -> tuple[Any]:
        """-> CONTROL_NET."""
        # Without a model, a difference file is completed at the start of the sampling, when its model is known.
        return (self.host.load_controlnet(net_path(self.host, control_net), model),)


class ExampleImage(Node):
    """Example images that are free to use: photographs, and scenes of the demo world with an exact hint for every kind
    of control. The second output describes the image.
    """

    DISPLAY_NAME = "Example Image"
    CATEGORY = CATEGORY
    INPUTS = (
        choice(
            "picture",
            # Photographs are listed from the folder, so that more of them can be added there.
            lambda host: [*builtin.photos(host.assets_dir), *example_pictures.SCENES],
            "A photograph, or a scene of the kind that the demo model was trained on.",
        ),
        choice(
            "view",
            [*example_pictures.VIEWS, example_pictures.STEREO],
            "The image itself, or an exact hint. Hints and z-pass (distances in metres) exist only for demo scenes; "
            "the stereo pair (the image beside a shifted copy) exists only for photographs.",
            "picture",
        ),
        integer("size", 512, 64, 2048, "Width and height in pixels. The demo model was trained at 128.", step=8),
    )
    OUTPUTS = (
        Output("IMAGE", "image", "The image, or the hint selected by view."),
        Output("STRING", "caption", "A description of the image, for use as a prompt."),
    )

    def run(self, picture: str, view: str, size: int) -> tuple[Any, str]:
        """-> IMAGE (1, size, size, 3), the description."""
        photo = builtin.photos(self.host.assets_dir).get(picture)
        if photo is None:
            return example_pictures.render_scene(picture, view, size)
        return example_pictures.load_photo(photo, view, size)
