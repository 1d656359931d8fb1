"""MODEL, CLIP, VAE and CONTROL_NET without ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from ...controlnet_core.checkpoints.detect import Identity
from ...controlnet_core.checkpoints.lora_places import WeightChange, merge
from ...controlnet_core.control.unit import ControlUnit
from ...controlnet_core.models.control import ControlModel
from ...controlnet_core.models.text_encoder import DualTextEncoder, TextEncoder
from ...controlnet_core.models.vae import AutoencoderKL
from ...controlnet_core.pipeline import DiffusionModel
from ...controlnet_core.run_options import DEFAULTS, RunOptions

Clip: TypeAlias = TextEncoder | DualTextEncoder
"""A CLIP."""


@dataclass(frozen=True, eq=False)
class AppliedLora:
    """A LoRA on a MODEL: the name of its file, its updates by the names of the UNet's weights, and its strength.

    A model that is merged into a MODEL is such a change too.
    """

    name: str
    updates: Mapping[str, WeightChange]
    strength: float


@dataclass(frozen=True, eq=False)
class Model:
    """A MODEL: the UNet of a file with its noise schedule, and the LoRAs to apply, in order.

    units: control that acts in each sampling, under every prompt. rescale: the fraction of the contrast added by
    guidance that is removed, see `diffusion.guidance`. options: of its samplings, such as the work that they may skip.
    """

    base: DiffusionModel
    identity: Identity
    path: Path
    loras: tuple[AppliedLora, ...] = ()
    units: tuple[ControlUnit, ...] = ()
    rescale: float = 0.0
    options: RunOptions = DEFAULTS

    @cached_property
    def diffusion(self) -> DiffusionModel:
        """The base with its LoRAs merged into it."""
        # Merged at the first use, so that a chain of LoRA nodes is merged once, at its end.
        if not self.loras:
            return self.base
        unet = merge(self.base.unet, [(lora.updates, lora.strength) for lora in self.loras])
        return replace(self.base, unet=unet)


@dataclass(frozen=True, eq=False)
class Vae:
    """A VAE: the autoencoder of a file."""

    model: AutoencoderKL
    path: Path

    @property
    def factor(self) -> int:
        """Side of a latent cell in pixels."""
        return self.model.config.factor


@dataclass(frozen=True, eq=False)
class ControlNetHandle:
    """A CONTROL_NET: the net of a file. kind: what its hint shows, for ControlNet Union; empty where it is not set."""

    net: ControlModel
    identity: Identity
    path: Path
    kind: str = ""

    @property
    def name(self) -> str:
        """Its name in messages and reports."""
        return self.path.name
