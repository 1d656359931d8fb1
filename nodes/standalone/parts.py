"""Native loaders of a model's parts, each from a file of its own."""

from __future__ import annotations

from typing import Any

from ...controlnet_core.errors import UnfitError
from ..folders import brief
from ..host import Node
from ..values import Clip, Model

ONE = ("stable_diffusion",)
OTHER_ONE = (
    "stable_cascade", "sd3", "stable_audio", "mochi", "ltxv", "pixart", "cosmos", "lumina2", "wan", "hidream",
    "chroma", "ace", "omnigen2", "qwen_image", "hunyuan_image",
)  # fmt: skip
TWO = ("sdxl",)
OTHER_TWO = ("sd3", "flux", "hunyuan_video", "hidream", "hunyuan_image")
"""Types of text encoders that the native loaders know, for bases that this package has and has not."""
DEVICE = (["default", "cpu"], {"advanced": True})


def check_type(type: Any, known: tuple[str, ...]) -> bool:
    """Return True for a supported type, and for None (linked, so not known yet). Raises UnfitError for another."""
    if type is not None and type not in known:
        raise UnfitError(f"text encoders of type {brief(type)} belong to a base that does not run here: use {known[0]}")
    return True


class UNETLoader(Node):
    """A UNet."""

    CATEGORY = "advanced/loaders"
    DESCRIPTION = "Loads a diffusion model without its text encoder and autoencoder."
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        dtypes = ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]
        return {"required": {"unet_name": (list(cls.host.files("diffusion_models")),), "weight_dtype": (dtypes,)}}

    def run(self, unet_name: str, weight_dtype: str) -> tuple[Model]:
        """-> MODEL. The _fast form computes as the other one, which is slower and more exact."""
        return (self.host.load_unet(self.host.find("diffusion_models", unet_name), weight_dtype),)


class CLIPLoader(Node):
    """A text encoder."""

    CATEGORY = "advanced/loaders"
    DESCRIPTION = "Loads a text encoder: of Stable Diffusion 1.x, 2.x, or of SDXL's refiner, as its file is."
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = (list(cls.host.files("text_encoders")),)
        return {"required": {"clip_name": names, "type": ([*ONE, *OTHER_ONE],)}, "optional": {"device": DEVICE}}

    @classmethod
    def VALIDATE_INPUTS(cls, type: Any) -> bool:
        """Raise UnfitError for a type that is not supported, before anything is loaded."""
        return check_type(type, ONE)

    def run(self, clip_name: str, type: str = ONE[0], device: str = "default") -> tuple[Clip]:
        """-> CLIP."""
        check_type(type, ONE)
        return (self.host.load_clip([self.host.find("text_encoders", clip_name)]),)


class DualCLIPLoader(Node):
    """Two text encoders."""

    CATEGORY = "advanced/loaders"
    DESCRIPTION = "Loads SDXL's two text encoders, in any order."
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = (list(cls.host.files("text_encoders")),)
        required = {"clip_name1": names, "clip_name2": names, "type": ([*TWO, *OTHER_TWO],)}
        return {"required": required, "optional": {"device": DEVICE}}

    @classmethod
    def VALIDATE_INPUTS(cls, type: Any) -> bool:
        """Raise UnfitError for a type that is not supported, before anything is loaded."""
        return check_type(type, TWO)

    def run(self, clip_name1: str, clip_name2: str, type: str, device: str = "default") -> tuple[Clip]:
        """-> CLIP."""
        check_type(type, TWO)
        return (self.host.load_clip([self.host.find("text_encoders", name) for name in (clip_name1, clip_name2)]),)


NODES: dict[str, type] = {"UNETLoader": UNETLoader, "CLIPLoader": CLIPLoader, "DualCLIPLoader": DualCLIPLoader}
