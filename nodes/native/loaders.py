"""Native loaders."""

from __future__ import annotations

from typing import Any

from ...controlnet_core.errors import CheckpointError
from ...controlnet_core.models.text_encoder import TextEncoder
from ..host import Node
from ..values import ControlNetHandle, Model, Vae


class CheckpointLoaderSimple(Node):
    """MODEL, CLIP and VAE of one file."""

    CATEGORY = "loaders"
    DESCRIPTION = "Loads a diffusion model checkpoint: the model, the text encoder and the autoencoder."
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"ckpt_name": (list(cls.host.files("checkpoints")),)}}

    def run(self, ckpt_name: str) -> tuple[Model, TextEncoder | None, Vae | None]:
        """-> MODEL, CLIP, VAE."""
        return self.host.load_checkpoint(self.host.find("checkpoints", ckpt_name))


class ControlNetLoader(Node):
    """A ControlNet."""

    CATEGORY = "loaders"
    DESCRIPTION = "Loads a ControlNet."
    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"control_net_name": (list(cls.host.files("controlnet")),)}}

    def run(self, control_net_name: str) -> tuple[ControlNetHandle]:
        """-> CONTROL_NET."""
        return (self.host.load_controlnet(self.host.find("controlnet", control_net_name)),)


class DiffControlNetLoader(Node):
    """A ControlNet; one that holds differences to a base cannot be loaded yet, and the loader says so."""

    CATEGORY = "loaders"
    DESCRIPTION = "Loads a ControlNet."
    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "control_net_name": (list(cls.host.files("controlnet")),)}}

    def run(self, model: Model, control_net_name: str) -> tuple[ControlNetHandle]:
        """-> CONTROL_NET."""
        return (self.host.load_controlnet(self.host.find("controlnet", control_net_name)),)


class VAELoader(Node):
    """An autoencoder."""

    CATEGORY = "loaders"
    DESCRIPTION = "Loads an autoencoder."
    RETURN_TYPES = ("VAE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"vae_name": (list(cls.host.files("vae")),)}}

    def run(self, vae_name: str) -> tuple[Vae]:
        """-> VAE."""
        return (self.host.load_vae(self.host.find("vae", vae_name)),)


class CLIPSetLastLayer(Node):
    """The same text encoder, stopped at another layer."""

    CATEGORY = "conditioning"
    DESCRIPTION = "Chooses the layer of the text encoder that prompts are read from: -1 is the last."
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        layer = ("INT", {"default": -1, "min": -24, "max": -1, "step": 1})
        return {"required": {"clip": ("CLIP",), "stop_at_clip_layer": layer}}

    def run(self, clip: TextEncoder | None, stop_at_clip_layer: int) -> tuple[TextEncoder]:
        """-> CLIP."""
        if clip is None:
            raise CheckpointError("the checkpoint has no text encoder: load one that has")
        return (clip.with_clip_skip(stop_at_clip_layer),)


NODES: dict[str, type] = {
    "CheckpointLoaderSimple": CheckpointLoaderSimple,
    "ControlNetLoader": ControlNetLoader,
    "DiffControlNetLoader": DiffControlNetLoader,
    "VAELoader": VAELoader,
    "CLIPSetLastLayer": CLIPSetLastLayer,
}
