"""Native loaders."""

from __future__ import annotations

from typing import Any

from ...controlnet_core.errors import CheckpointError
from ..host import Node
from ..values import Clip, ControlNetHandle, Model, Vae


class CheckpointLoaderSimple(Node):
    """MODEL, CLIP and VAE of one file."""

    CATEGORY = "loaders"
    DESCRIPTION = "Loads a diffusion model checkpoint: the model, the text encoder and the autoencoder."
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"ckpt_name": (list(cls.host.files("checkpoints")),)}}

    def run(self, ckpt_name: str) -> tuple[Model, Clip | None, Vae | None]:
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
    """A ControlNet; one that holds differences to a base is completed with the model's."""

    CATEGORY = "loaders"
    DESCRIPTION = "Loads a ControlNet; one that holds differences to a base is completed with the model's."
    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "control_net_name": (list(cls.host.files("controlnet")),)}}

    def run(self, model: Model, control_net_name: str) -> tuple[ControlNetHandle]:
        """-> CONTROL_NET."""
        return (self.host.load_controlnet(self.host.find("controlnet", control_net_name), model),)


LORA_STRENGTH = ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01})


class LoraLoader(Node):
    """A LoRA on model and text encoder."""

    CATEGORY = "loaders"
    DESCRIPTION = "Adds a LoRA to the model and to the text encoder, each with its own strength; several may follow."
    RETURN_TYPES = ("MODEL", "CLIP")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "lora_name": (list(cls.host.files("loras")),),
                "strength_model": LORA_STRENGTH,
                "strength_clip": LORA_STRENGTH,
            }
        }

    def run(
        self, model: Model, clip: Clip | None, lora_name: str, strength_model: float, strength_clip: float
    ) -> tuple[Model, Clip | None]:
        """-> MODEL, CLIP."""
        if strength_model == strength_clip == 0.0:
            return model, clip
        return self.host.apply_lora(model, clip, self.host.find("loras", lora_name), strength_model, strength_clip)


class LoraLoaderModelOnly(Node):
    """A LoRA on the model."""

    CATEGORY = "loaders"
    DESCRIPTION = "Adds a LoRA to the model; its part for the text encoder is left out."
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        files = list(cls.host.files("loras"))
        return {"required": {"model": ("MODEL",), "lora_name": (files,), "strength_model": LORA_STRENGTH}}

    def run(self, model: Model, lora_name: str, strength_model: float) -> tuple[Model]:
        """-> MODEL."""
        if strength_model == 0.0:
            return (model,)
        return (self.host.apply_lora(model, None, self.host.find("loras", lora_name), strength_model, 0.0)[0],)


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

    def run(self, clip: Clip | None, stop_at_clip_layer: int) -> tuple[Clip]:
        """-> CLIP."""
        if clip is None:
            raise CheckpointError("the checkpoint has no text encoder: load one that has")
        return (clip.with_clip_skip(stop_at_clip_layer),)


NODES: dict[str, type] = {
    "CheckpointLoaderSimple": CheckpointLoaderSimple,
    "ControlNetLoader": ControlNetLoader,
    "DiffControlNetLoader": DiffControlNetLoader,
    "LoraLoader": LoraLoader,
    "LoraLoaderModelOnly": LoraLoaderModelOnly,
    "VAELoader": VAELoader,
    "CLIPSetLastLayer": CLIPSetLastLayer,
}
