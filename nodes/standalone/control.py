"""Native apply nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ...controlnet_core.models.union import UNION_CHOICES
from ..host import Node
from ..units import add_units
from ..values import Conditioning, ControlNetHandle, ControlSpec, Vae

STRENGTH = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01})


class ControlNetApply(Node):
    """Control on one half, given to the other half as well."""

    CATEGORY = "conditioning/controlnet"
    DESCRIPTION = "Makes a picture follow a hint; the negative prompt is controlled the same way."
    DEPRECATED = True
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "control_net": ("CONTROL_NET",),
                "image": ("IMAGE",),
                "strength": STRENGTH,
            }
        }

    def run(
        self, conditioning: Conditioning, control_net: ControlNetHandle, image: Tensor, strength: float
    ) -> tuple[Conditioning]:
        """-> CONDITIONING."""
        if strength == 0:
            return (conditioning,)
        unit = self.host.unit(ControlSpec(control_net, image, strength))
        return (add_units(conditioning, [unit], to_uncond=True),)


class ControlNetApplyAdvanced(Node):
    """Control on both halves, with a window."""

    CATEGORY = "conditioning/controlnet"
    DESCRIPTION = "Makes a picture follow a hint, during a part of the sampling."
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        part = {"min": 0.0, "max": 1.0, "step": 0.001}
        return {
            "required": {
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "control_net": ("CONTROL_NET",),
                "image": ("IMAGE",),
                "strength": STRENGTH,
                "start_percent": ("FLOAT", {"default": 0.0, **part}),
                "end_percent": ("FLOAT", {"default": 1.0, **part}),
            },
            "optional": {"vae": ("VAE",)},
        }

    def run(
        self,
        positive: Conditioning,
        negative: Conditioning,
        control_net: ControlNetHandle,
        image: Tensor,
        strength: float,
        start_percent: float,
        end_percent: float,
        vae: Vae | None = None,
    ) -> tuple[Conditioning, Conditioning]:
        """-> CONDITIONING, CONDITIONING. A window that ends before it starts selects no step, as in the host."""
        if start_percent > end_percent:
            return positive, negative
        spec = ControlSpec(control_net, image, strength, start_percent, end_percent)
        return self.host.apply_control(positive, negative, [spec])


class ControlNetApplySD3(ControlNetApplyAdvanced):
    """The same with the autoencoder as an input that has to be linked; the nets here read pictures, and need none."""

    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        control_net, image = ("CONTROL_NET",), ("IMAGE",)
        known = super().INPUT_TYPES()["required"]
        halves = {name: known[name] for name in ("positive", "negative")}
        numbers = {name: known[name] for name in ("strength", "start_percent", "end_percent")}
        return {"required": {**halves, "control_net": control_net, "vae": ("VAE",), "image": image, **numbers}}


class ControlNetInpaintingAliMamaApply(ControlNetApplySD3):
    """Control with a mask for the nets that read one, which are of bases that do not run here.

    All others are applied without it, as in the editor; their inpainting hint is made from picture and mask by
    CNCore_Preprocess.
    """

    DEPRECATED = False

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        before = super().INPUT_TYPES()["required"]
        required: dict[str, Any] = {}
        for name, spec in before.items():
            required[name] = spec
            if name == "image":
                required["mask"] = ("MASK",)
        return {"required": required}

    def run(self, *, mask: Tensor, **inputs: Any) -> tuple[Conditioning, Conditioning]:  # type: ignore[override]
        """-> CONDITIONING, CONDITIONING."""
        return super().run(**inputs)


class SetUnionControlNetType(Node):
    """What the hint of a ControlNet Union shows."""

    CATEGORY = "conditioning/controlnet"
    DESCRIPTION = "Tells a ControlNet Union what its hint shows; auto tells it nothing. Other nets do not mind."
    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"control_net": ("CONTROL_NET",), "type": (["auto", *UNION_CHOICES],)}}

    def run(self, control_net: ControlNetHandle, type: str) -> tuple[ControlNetHandle]:
        """-> CONTROL_NET."""
        return (replace(control_net, kind="" if type == "auto" else type),)


NODES: dict[str, type] = {
    "SetUnionControlNetType": SetUnionControlNetType,
    "ControlNetApply": ControlNetApply,
    "ControlNetApplyAdvanced": ControlNetApplyAdvanced,
    "ControlNetApplySD3": ControlNetApplySD3,
    "ControlNetInpaintingAliMamaApply": ControlNetInpaintingAliMamaApply,
}
