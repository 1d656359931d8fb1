"""Native nodes that say how a model was trained, where its file does not, and how its guidance is tamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ...controlnet_core.config import NoiseConfig, Parametrization, VAEConfig
from ...controlnet_core.diffusion.schedule import make_schedule
from ...controlnet_core.errors import UnfitError
from ..folders import brief
from ..host import Node
from ..values import Model

DISCRETE: Mapping[str, Parametrization] = MappingProxyType({"eps": "eps", "v_prediction": "v"})
CONTINUOUS: Mapping[str, tuple[Parametrization, float]] = MappingProxyType(
    {"v_prediction": ("v", 1.0), "edm": ("edm", 0.5), "edm_playground_v2.5": ("edm", 0.5), "eps": ("eps", 1.0)}
)
"""What the model predicts and the standard deviation that it takes latents to have, by the node's word."""
PLAYGROUND = VAEConfig(
    scaling_factor=0.5, latent_mean=(-1.6574, 1.886, -1.383, 2.5155), latent_std=(8.4927, 5.9022, 6.5498, 5.2299)
)
"""How Playground 2.5 scales its latents (its published configuration)."""


def retrained(model: Model, parametrization: Parametrization, noise: NoiseConfig, **config: Any) -> Model:
    """The MODEL, sampled as a model of that training."""
    base = model.base
    changed = replace(base.config, parametrization=parametrization, noise=noise, **config)
    return replace(model, base=replace(base, config=changed, schedule=make_schedule(noise)))


def check_sampling(sampling: Any, known: Mapping[str, Any]) -> bool:
    """Return True for a supported kind of sampling, and for None (linked, so not known yet). Raises UnfitError."""
    if sampling is not None and sampling not in tuple(known):
        raise UnfitError(f"sampling {brief(sampling)} is not supported here: use one of {', '.join(known)}")
    return True


class ModelSamplingDiscrete(Node):
    """The 1000 timesteps, and what is predicted on them."""

    CATEGORY = "advanced/model"
    DESCRIPTION = "Samples a model as one that predicts the noise or the velocity; zsnr for zero terminal SNR."
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        words = ["eps", "v_prediction", "lcm", "x0", "img_to_img"]
        zsnr = ("BOOLEAN", {"default": False})
        return {"required": {"model": ("MODEL",), "sampling": (words,), "zsnr": zsnr}}

    @classmethod
    def VALIDATE_INPUTS(cls, sampling: Any) -> bool:
        """Raise UnfitError for a kind that is not supported, before anything is loaded."""
        return check_sampling(sampling, DISCRETE)

    def run(self, model: Model, sampling: str, zsnr: bool) -> tuple[Model]:
        """-> MODEL. Raises UnfitError for a word of a training that is not supported."""
        check_sampling(sampling, DISCRETE)
        return (retrained(model, DISCRETE[sampling], NoiseConfig(zero_terminal_snr=zsnr)),)


class ModelSamplingContinuousEDM(Node):
    """Every noise level between two."""

    CATEGORY = "advanced/model"
    DESCRIPTION = "Samples a model as one that was trained on every noise level between two (EDM)."
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        level = {"min": 0.0, "max": 1000.0, "step": 0.001, "round": False}
        return {
            "required": {
                "model": ("MODEL",),
                "sampling": (["v_prediction", "edm", "edm_playground_v2.5", "eps", "cosmos_rflow"],),
                "sigma_max": ("FLOAT", {"default": 120.0, **level}),
                "sigma_min": ("FLOAT", {"default": 0.002, **level}),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, sampling: Any) -> bool:
        """Raise UnfitError for a kind that is not supported, before anything is loaded."""
        return check_sampling(sampling, CONTINUOUS)

    def run(self, model: Model, sampling: str, sigma_max: float, sigma_min: float) -> tuple[Model]:
        """-> MODEL. Raises UnfitError for a word of a training that is not supported."""
        check_sampling(sampling, CONTINUOUS)
        parametrization, spread = CONTINUOUS[sampling]
        noise = NoiseConfig("edm", sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=spread)
        if sampling != "edm_playground_v2.5":
            return (retrained(model, parametrization, noise),)
        scaled = {name: getattr(PLAYGROUND, name) for name in ("scaling_factor", "latent_mean", "latent_std")}
        return (retrained(model, parametrization, noise, vae=replace(model.base.config.vae, **scaled)),)


class RescaleCFG(Node):
    """Guidance without its excess of contrast (Lin et al. 2023, section 3.4)."""

    CATEGORY = "advanced/model"
    DESCRIPTION = "Brings the contrast of guided pictures back towards that of unguided ones, for strong guidance."
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        share = ("FLOAT", {"default": 0.7, "min": 0.0, "max": 1.0, "step": 0.01})
        return {"required": {"model": ("MODEL",), "multiplier": share}}

    def run(self, model: Model, multiplier: float) -> tuple[Model]:
        """-> MODEL."""
        return (replace(model, rescale=multiplier),)


NODES: dict[str, type] = {
    "RescaleCFG": RescaleCFG,
    "ModelSamplingDiscrete": ModelSamplingDiscrete,
    "ModelSamplingContinuousEDM": ModelSamplingContinuousEDM,
}
