"""ComfyUI's loaders: checkpoints, their parts, ControlNets and LoRAs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ...controlnet_core.config import NoiseConfig
from ...controlnet_core.errors import CheckpointError, UnfitError
from ..fields import Field, choice, clip, files, integer, model, number, optional
from ..folders import brief
from ..node import Node
from .model_sampling import retrained
from .values import Clip, ControlNetHandle, Model, Vae

NET = files("control_net_name", "controlnet")
LORA = files("lora_name", "loras")
# ComfyUI's lists are complete, so that a workflow for another base model is refused with a reason, and not as a value
# that is unknown.
ONE_ENCODER = ("stable_diffusion",)
OTHER_ONE = (
    "stable_cascade", "sd3", "stable_audio", "mochi", "ltxv", "pixart", "cosmos", "lumina2", "wan", "hidream",
    "chroma", "ace", "omnigen2", "qwen_image", "hunyuan_image",
)  # fmt: skip
TWO_ENCODERS = ("sdxl",)
OTHER_TWO = ("sd3", "flux", "hunyuan_video", "hidream", "hunyuan_image")
"""Types of text encoders in ComfyUI's lists: of base models that this package runs, and of others."""
CONFIGS: Mapping[str, tuple[bool, int | None]] = {
    "anything_v3.yaml": (False, -2),
    "v1-inference.yaml": (False, None),
    "v1-inference_clip_skip_2.yaml": (False, -2),
    "v1-inference_clip_skip_2_fp16.yaml": (False, -2),
    "v1-inference_fp16.yaml": (False, None),
    "v1-inpainting-inference.yaml": (False, None),
    "v2-inference-v.yaml": (True, None),
    "v2-inference-v_fp32.yaml": (True, None),
    "v2-inference.yaml": (False, None),
    "v2-inference_fp32.yaml": (False, None),
    "v2-inpainting-inference.yaml": (False, None),
}
"""The configurations that ComfyUI brings: whether the model predicts the velocity, and the layer of the text encoder
that it reads, where they say it."""
DEVICE = choice("device", ["default", "cpu"], advanced=True)


def lora_strength(name: str) -> Field:
    """The strength of a LoRA."""
    return number(name, 1.0, -100.0, 100.0)


class CheckpointLoaderSimple(Node):
    """Loads a checkpoint: the diffusion model, the text encoder and the autoencoder."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    INPUTS = (files("ckpt_name", "checkpoints"),)

    def run(self, ckpt_name: str) -> tuple[Model, Clip | None, Vae | None]:
        """-> MODEL, CLIP, VAE."""
        return self.host.load_checkpoint(self.host.find("checkpoints", ckpt_name))


class CheckpointLoader(Node):
    """Loads a checkpoint with one of ComfyUI's configurations: what the model predicts, and the text layer it reads."""

    CATEGORY = "advanced/loaders"
    DEPRECATED = True
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    INPUTS = (choice("config_name", list(CONFIGS)), files("ckpt_name", "checkpoints"))

    def run(self, config_name: str, ckpt_name: str) -> tuple[Model, Clip | None, Vae | None]:
        """-> MODEL, CLIP, VAE. Shapes come from the file, as in ComfyUI."""
        model, clip, vae = self.host.load_checkpoint(self.host.find("checkpoints", ckpt_name))
        predicts_v, layer = CONFIGS[config_name]
        if predicts_v:
            model = retrained(model, "v", NoiseConfig())
        return model, clip if clip is None or layer is None else clip.with_clip_skip(layer), vae


class ControlNetLoader(Node):
    """Loads a ControlNet."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("CONTROL_NET",)
    INPUTS = (NET,)

    def run(self, control_net_name: str, model: Model | None = None) -> tuple[ControlNetHandle]:
        """-> CONTROL_NET."""
        return (self.host.load_controlnet(self.host.find("controlnet", control_net_name), model),)


class DiffControlNetLoader(ControlNetLoader):
    """Loads a ControlNet. A file that holds only differences to a base model is completed with the model."""

    INPUTS = (model("model"), NET)


class LoraLoader(Node):
    """Adds a LoRA to the model and to the text encoder, each with its own strength. LoRAs add up."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("MODEL", "CLIP")
    INPUTS = (model("model"), clip("clip"), LORA, lora_strength("strength_model"), lora_strength("strength_clip"))

    def run(
        self, model: Model, clip: Clip | None, lora_name: str, strength_model: float, strength_clip: float
    ) -> tuple[Model, Clip | None]:
        """-> MODEL, CLIP."""
        # As in ComfyUI, a LoRA of strength 0 is not even looked for.
        if strength_model == strength_clip == 0.0:
            return model, clip
        return self.host.apply_lora(model, clip, self.host.find("loras", lora_name), strength_model, strength_clip)


class LoraLoaderModelOnly(LoraLoader):
    """Adds a LoRA to the model, without its part for the text encoder."""

    RETURN_TYPES = ("MODEL",)
    INPUTS = (model("model"), LORA, lora_strength("strength_model"))

    def run(self, model: Model, lora_name: str, strength_model: float) -> tuple[Model]:  # type: ignore[override]
        """-> MODEL."""
        # Without a CLIP the part for the text encoder is skipped.
        return super().run(model, None, lora_name, strength_model, 0.0)[:1]


class VAELoader(Node):
    """Loads an autoencoder."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("VAE",)
    INPUTS = (files("vae_name", "vae"),)

    def run(self, vae_name: str) -> tuple[Vae]:
        """-> VAE."""
        return (self.host.load_vae(self.host.find("vae", vae_name)),)


class CLIPSetLastLayer(Node):
    """Sets the layer of the text encoder whose output is used: -1 is the last."""

    CATEGORY = "conditioning"
    RETURN_TYPES = ("CLIP",)
    INPUTS = (clip("clip"), integer("stop_at_clip_layer", -1, -24, -1, step=1))

    def run(self, clip: Clip | None, stop_at_clip_layer: int) -> tuple[Clip]:
        """-> CLIP."""
        if clip is None:
            raise CheckpointError("the checkpoint has no text encoder: load one that has")
        return (clip.with_clip_skip(stop_at_clip_layer),)


class UNETLoader(Node):
    """Loads a diffusion model without text encoder and autoencoder."""

    CATEGORY = "advanced/loaders"
    RETURN_TYPES = ("MODEL",)
    INPUTS = (
        files("unet_name", "diffusion_models"),
        choice("weight_dtype", ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]),
    )

    def run(self, unet_name: str, weight_dtype: str) -> tuple[Model]:
        """-> MODEL. fp8_e4m3fn_fast computes like fp8_e4m3fn, which is slower and more exact."""
        return (self.host.load_unet(self.host.find("diffusion_models", unet_name), weight_dtype),)


class CLIPLoader(Node):
    """Loads a text encoder of Stable Diffusion 1.x or 2.x, or of SDXL's refiner; the file tells which."""

    CATEGORY = "advanced/loaders"
    RETURN_TYPES = ("CLIP",)
    TYPES: ClassVar[tuple[str, ...]] = ONE_ENCODER
    INPUTS = (
        files("clip_name", "text_encoders"), choice("type", [*ONE_ENCODER, *OTHER_ONE]), *optional(DEVICE)
    )  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(cls, type: Any) -> bool:
        """Raises UnfitError for text encoders of another base model, before anything is loaded."""
        # None: the value is linked and not known yet.
        if type is not None and type not in cls.TYPES:
            raise UnfitError(
                f"text encoders of type {brief(type)} belong to a base model that does not run here: use {cls.TYPES[0]}"
            )
        return True

    def run(self, type: str = ONE_ENCODER[0], device: str = "default", **names: str) -> tuple[Clip]:
        """-> CLIP. names: one file, or two."""
        self.VALIDATE_INPUTS(type)
        return (self.host.load_clip([self.host.find("text_encoders", name) for name in names.values()]),)


class DualCLIPLoader(CLIPLoader):
    """Loads SDXL's two text encoders, in any order."""

    TYPES = TWO_ENCODERS
    INPUTS = (
        files("clip_name1", "text_encoders"), files("clip_name2", "text_encoders"),
        choice("type", [*TWO_ENCODERS, *OTHER_TWO]), *optional(DEVICE),
    )  # fmt: skip
