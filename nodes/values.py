"""What travels between nodes: plain records, the same in every home unless said otherwise.

MODEL, CLIP, VAE and CONTROL_NET are the host's own objects in the editor; headless they are `Model`,
`Clip`, `Vae` and `ControlNetHandle`. CONDITIONING has the host's form everywhere: a list of
[text (1, tokens, width), options].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from ..controlnet_core.checkpoints.detect import Identity
from ..controlnet_core.checkpoints.lora_kinds import Update
from ..controlnet_core.checkpoints.lora_places import merge
from ..controlnet_core.config import ModelConfig, UNetConfig
from ..controlnet_core.control.unit import ControlStack
from ..controlnet_core.diffusion.schedule import NoiseSchedule
from ..controlnet_core.models.controlnet import ControlNet
from ..controlnet_core.models.text_encoder import DualTextEncoder, TextEncoder
from ..controlnet_core.models.vae import AutoencoderKL
from ..controlnet_core.pipeline import DiffusionModel

Clip: TypeAlias = TextEncoder | DualTextEncoder
"""A headless CLIP."""
Conditioning: TypeAlias = list[list[Any]]
Latent: TypeAlias = Mapping[str, Any]
"""{"samples": (B, 4, h, w)}, sometimes with "noise_mask" (B, 1, H, W) and "batch_index" (list of int)."""


@dataclass(frozen=True, eq=False)
class AppliedLora:
    """A LoRA on a MODEL: the file's name, its updates by our names of the UNet's weights, and its strength."""

    name: str
    updates: Mapping[str, Update]
    strength: float


@dataclass(frozen=True, eq=False)
class Model:
    """A headless MODEL: the UNet as its file has it, with its schedule, and the LoRAs on it, in their order."""

    base: DiffusionModel
    identity: Identity
    path: Path
    loras: tuple[AppliedLora, ...] = ()

    @cached_property
    def diffusion(self) -> DiffusionModel:
        """What is sampled: the base with its LoRAs, merged when first asked for, so that a chain is merged once."""
        if not self.loras:
            return self.base
        unet = merge(self.base.unet, [(lora.updates, lora.strength) for lora in self.loras])
        return replace(self.base, unet=unet)


@dataclass(frozen=True, eq=False)
class Vae:
    """A headless VAE."""

    model: AutoencoderKL
    path: Path

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side."""
        return self.model.config.factor


@dataclass(frozen=True, eq=False)
class ControlNetHandle:
    """A headless CONTROL_NET."""

    net: ControlNet
    identity: Identity
    path: Path

    @property
    def name(self) -> str:
        """What messages and reports call it."""
        return self.path.name


@dataclass(frozen=True)
class BlockWeights:
    """Weights by resolution, to be read for a net of any shape.

    levels: a factor for the skips of each resolution, the picture's own first. middle: of the middle block.
    custom: a factor for each block instead, skips first to last and then the middle; empty for none.
    """

    levels: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    middle: float = 1.0
    custom: tuple[float, ...] = ()

    def resolve(self, config: UNetConfig) -> tuple[float, ...]:
        """A factor for each skip and the middle of this net (13 in SD1.5)."""
        if self.custom:
            return self.custom
        found = [self.levels[0]]
        for level in range(len(config.widths)):
            here = self.levels[min(level, len(self.levels) - 1)]
            found += [here] * config.res_blocks
            if level != len(config.widths) - 1:
                found.append(self.levels[min(level + 1, len(self.levels) - 1)])
        return (*found, self.middle)


@dataclass(frozen=True, eq=False)
class ControlSpec:
    """A unit of control as nodes describe it; the host makes its own kind of control from it.

    net: a CONTROL_NET. image: (B, H, W, C) in [0, 1]. The other fields are those of
    `control.unit.ControlUnit`.
    """

    net: Any
    image: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    mask: Tensor | None = None
    block_weights: BlockWeights | None = None
    name: str = field(default="")


SpecStack: TypeAlias = tuple[ControlSpec, ...]
"""What the socket CNCORE_STACK carries."""


@dataclass(frozen=True, eq=False)
class Controlled:
    """What acts on a conditioning, and on which noise levels: all that a plan needs."""

    units: ControlStack
    schedule: NoiseSchedule
    config: ModelConfig
