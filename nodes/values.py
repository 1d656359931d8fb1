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
from ..controlnet_core.config import ModelConfig
from ..controlnet_core.control.curve import StrengthCurve
from ..controlnet_core.control.unit import ControlStack
from ..controlnet_core.control.weights import BlockWeights
from ..controlnet_core.diffusion.schedule import NoiseSchedule
from ..controlnet_core.engine.run import EXACT, Shortcuts
from ..controlnet_core.models.control import ControlModel
from ..controlnet_core.models.text_encoder import DualTextEncoder, TextEncoder
from ..controlnet_core.models.vae import AutoencoderKL
from ..controlnet_core.pipeline import DiffusionModel

Clip: TypeAlias = TextEncoder | DualTextEncoder
"""A headless CLIP."""
Conditioning: TypeAlias = list[list[Any]]
Latent: TypeAlias = Mapping[str, Any]
"""{"samples": (B, 4, h, w)} as the autoencoder makes them, not scaled for a UNet; sometimes with "noise_mask"
(B, 1, H, W) and "batch_index" (list of int)."""


@dataclass(frozen=True, eq=False)
class AppliedLora:
    """A LoRA on a MODEL: the file's name, its updates by our names of the UNet's weights, and its strength."""

    name: str
    updates: Mapping[str, Update]
    strength: float


@dataclass(frozen=True, eq=False)
class Model:
    """A headless MODEL: the UNet as its file has it, with its schedule, and the LoRAs on it, in their order.

    rescale: how much of the contrast that guidance adds is taken back, see `diffusion.guidance`. shortcuts: what
    sampling may leave out.
    """

    base: DiffusionModel
    identity: Identity
    path: Path
    loras: tuple[AppliedLora, ...] = ()
    rescale: float = 0.0
    shortcuts: Shortcuts = EXACT

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
    """A headless CONTROL_NET. kind: what its hint shows, for a net that reads several kinds; empty for none."""

    net: ControlModel
    identity: Identity
    path: Path
    kind: str = ""

    @property
    def name(self) -> str:
        """What messages and reports call it."""
        return self.path.name


@dataclass(frozen=True, eq=False)
class HintSpec:
    """A further picture for a net that reads several: IMAGE (B, H, W, C), and what it shows ("depth", ...)."""

    image: Tensor
    kind: str = ""


@dataclass(frozen=True)
class UnitOptions:
    """What few units need; the fields are those of `control.unit.ControlUnit`."""

    fit: str = "crop"
    kind: str = ""
    positive: float = 1.0
    negative: float = 1.0
    items: tuple[float, ...] = ()
    pool: bool = False


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
    schedule: StrengthCurve | None = None
    options: UnitOptions = UnitOptions()
    hints: tuple[HintSpec, ...] = ()


SpecStack: TypeAlias = tuple[ControlSpec, ...]
"""What the socket CNCORE_STACK carries."""


@dataclass(frozen=True, eq=False)
class Controlled:
    """What acts on a conditioning, and on which noise levels: all that a plan needs."""

    units: ControlStack
    schedule: NoiseSchedule
    config: ModelConfig
