"""ComfyUI's nodes that set how a model was trained, where its file does not say it, and that rescale guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from ...controlnet_core.config import NoiseConfig, Parametrization, VAEConfig
from ...controlnet_core.diffusion.schedule import make_schedule
from ...controlnet_core.errors import UnfitError
from ..fields import Field, choice, model, number, share, switch
from ..folders import brief
from ..node import Node
from .values import Model

DISCRETE: Mapping[str, Parametrization] = {"eps": "eps", "v_prediction": "v", "lcm": "eps"}
CONTINUOUS: Mapping[str, tuple[Parametrization, float]] = {
    "v_prediction": ("v", 1.0), "edm": ("edm", 0.5), "edm_playground_v2.5": ("edm", 0.5), "eps": ("eps", 1.0)
}  # fmt: skip
"""What the model predicts, and the standard deviation of the latents that it assumes, by the node's option."""
PLAYGROUND = VAEConfig(
    scaling_factor=0.5, latent_mean=(-1.6574, 1.886, -1.383, 2.5155), latent_std=(8.4927, 5.9022, 6.5498, 5.2299)
)
"""How Playground 2.5 scales its latents, from its published configuration."""


def retrained(model: Model, parametrization: Parametrization, noise: NoiseConfig, **config: Any) -> Model:
    """The MODEL, sampled as a model that was trained with this noise and predicts this quantity."""
    # LoRAs stay on the MODEL: they are merged into the base when it is sampled.
    base = model.base
    changed = replace(base.config, parametrization=parametrization, noise=noise, **config)
    return replace(model, base=replace(base, config=changed, schedule=make_schedule(noise)))


def sigma(name: str, default: float) -> Field:
    """A noise level. It is not rounded: the smallest levels need all decimals."""
    return number(name, default, 0.0, 1000.0, step=0.001, round=False)


class ModelNode(Node):
    """Base of the nodes that return a MODEL."""

    CATEGORY = "advanced/model"
    RETURN_TYPES = ("MODEL",)


class SamplingKindNode(ModelNode):
    """Base of the nodes that set how a model was trained."""

    SUPPORTED: ClassVar[Mapping[str, Any]]

    @classmethod
    def VALIDATE_INPUTS(cls, sampling: Any) -> bool:
        """Raises UnfitError for an option that is not supported here, before anything is loaded."""
        # None: the value is linked and not known yet. A tuple, since a linked value may be unhashable.
        if sampling is not None and sampling not in tuple(cls.SUPPORTED):
            known = ", ".join(cls.SUPPORTED)
            raise UnfitError(f"sampling {brief(sampling)} is not supported here: use one of {known}")
        return True


class ModelSamplingDiscrete(SamplingKindNode):
    """Samples a model as one that predicts the noise or the velocity, or as a latent consistency model (lcm); zsnr is
    for zero terminal SNR."""

    SUPPORTED = DISCRETE
    INPUTS = (
        model("model"), choice("sampling", ["eps", "v_prediction", "lcm", "x0", "img_to_img"]), switch("zsnr", False)
    )  # fmt: skip

    def run(self, model: Model, sampling: str, zsnr: bool) -> tuple[Model]:
        """-> MODEL. Raises UnfitError for an option that is not supported here."""
        self.VALIDATE_INPUTS(sampling)
        kind = "lcm" if sampling == "lcm" else "discrete"
        return (retrained(model, DISCRETE[sampling], NoiseConfig(kind, zero_terminal_snr=zsnr)),)


class ModelSamplingContinuousEDM(SamplingKindNode):
    """Samples a model as one that was trained on all noise levels between two limits (EDM)."""

    SUPPORTED = CONTINUOUS
    INPUTS = (
        model("model"),
        choice("sampling", ["v_prediction", "edm", "edm_playground_v2.5", "eps", "cosmos_rflow"]),
        sigma("sigma_max", 120.0),
        sigma("sigma_min", 0.002),
    )

    def run(self, model: Model, sampling: str, sigma_max: float, sigma_min: float) -> tuple[Model]:
        """-> MODEL. Raises UnfitError for an option that is not supported here."""
        self.VALIDATE_INPUTS(sampling)
        parametrization, spread = CONTINUOUS[sampling]
        noise = NoiseConfig("edm", sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=spread)
        if sampling != "edm_playground_v2.5":
            return (retrained(model, parametrization, noise),)
        scaled = {name: getattr(PLAYGROUND, name) for name in ("scaling_factor", "latent_mean", "latent_std")}
        return (retrained(model, parametrization, noise, vae=replace(model.base.config.vae, **scaled)),)


class RescaleCFG(ModelNode):
    """Reduces the contrast that strong guidance adds, towards that of images without guidance."""

    INPUTS = (model("model"), share("multiplier", 0.7))

    def run(self, model: Model, multiplier: float) -> tuple[Model]:
        """-> MODEL."""
        return (replace(model, rescale=multiplier),)
