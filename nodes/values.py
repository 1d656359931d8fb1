"""The values on the links between nodes.

Inside ComfyUI, MODEL, CLIP, VAE and CONTROL_NET are ComfyUI's own objects; without it they are `Model`, `Clip`, `Vae`
and `ControlNetHandle`. CONDITIONING has ComfyUI's form everywhere: a list of [text (1, tokens, width), options].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from ..controlnet_core.checkpoints.detect import Identity
from ..controlnet_core.checkpoints.lora_kinds import Update
from ..controlnet_core.checkpoints.lora_places import merge
from ..controlnet_core.config import ModelConfig
from ..controlnet_core.control.curve import StrengthCurve
from ..controlnet_core.control.unit import ControlStack
from ..controlnet_core.control.weights import BlockWeights
from ..controlnet_core.diffusion.schedule import NoiseSchedule
from ..controlnet_core.errors import ValueRangeError
from ..controlnet_core.models.control import ControlModel
from ..controlnet_core.models.text_encoder import DualTextEncoder, TextEncoder
from ..controlnet_core.models.vae import AutoencoderKL
from ..controlnet_core.pipeline import DiffusionModel
from ..controlnet_core.run_options import DEFAULTS, RunOptions
from ..controlnet_core.sample import SampleSettings

Clip: TypeAlias = TextEncoder | DualTextEncoder
"""A CLIP without ComfyUI."""
Conditioning: TypeAlias = list[list[Any]]
Halves: TypeAlias = tuple[Conditioning, Conditioning]
"""The prompt and the negative prompt: the halves of the guidance."""
# Mappings, since nodes of other packs add keys of their own, which have to survive.
Latent: TypeAlias = Mapping[str, Any]
"""{"samples": (B, 4, h, w)}, not scaled for the UNet; may have "noise_mask" (B, 1, H, W) and "batch_index" (list of
int: the position of each row in the batch that the noise is made for)."""


@dataclass(frozen=True, eq=False)
class AppliedLora:
    """A LoRA on a MODEL: the name of its file, its updates by the names of the UNet's weights, and its strength."""

    name: str
    updates: Mapping[str, Update]
    strength: float


@dataclass(frozen=True, eq=False)
class Model:
    """A MODEL without ComfyUI: the UNet of a file with its noise schedule, and the LoRAs to apply, in order.

    rescale: the fraction of the contrast added by guidance that is removed, see `diffusion.guidance`. options: of its
    samplings, such as the work that they may skip.
    """

    base: DiffusionModel
    identity: Identity
    path: Path
    loras: tuple[AppliedLora, ...] = ()
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


class SamplerInputs(NamedTuple):
    """What a sampler node reads: a MODEL, the halves of the guidance, a LATENT, and how to sample it."""

    model: Any
    positive: Conditioning
    negative: Conditioning
    latent: Latent
    settings: SampleSettings


@dataclass(frozen=True, eq=False)
class Vae:
    """A VAE without ComfyUI."""

    model: AutoencoderKL
    path: Path

    @property
    def factor(self) -> int:
        """Side of a latent cell in pixels."""
        return self.model.config.factor


@dataclass(frozen=True, eq=False)
class ControlNetHandle:
    """A CONTROL_NET without ComfyUI. kind: what its hint shows, for ControlNet Union; empty where it is not set."""

    net: ControlModel
    identity: Identity
    path: Path
    kind: str = ""

    @property
    def name(self) -> str:
        """Its name in messages and reports."""
        return self.path.name


@dataclass(frozen=True, eq=False)
class HintSpec:
    """A further hint for a ControlNet Union: IMAGE (B, H, W, C), and what it shows ("depth", ...)."""

    image: Tensor
    kind: str = ""


@dataclass(frozen=True)
class UnitOptions:
    """Rarely used options of a unit; see the fields of `control.unit.ControlUnit`."""

    fit: str = "crop"
    kind: str = ""
    positive: float = 1.0
    negative: float = 1.0
    items: tuple[float, ...] = ()
    pool: bool = False


@dataclass(frozen=True, eq=False)
class ControlSpec:
    """The description of a unit by a node, with the names of its inputs. The host turns it into its kind of control.

    control_net: a CONTROL_NET. image: (B, H, W, C) in [0, 1]. name: in messages, if not that of the net. For the other
    fields see `control.unit.ControlUnit`. Raises ValueRangeError where start_percent is above end_percent.
    """

    control_net: Any
    image: Tensor
    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    mode: str = "balanced"
    mask: Tensor | None = None
    block_weights: BlockWeights | None = None
    schedule: StrengthCurve | None = None
    options: UnitOptions = UnitOptions()
    more_hints: tuple[HintSpec, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        # Scripts and other packs pass None for inputs that are not linked.
        object.__setattr__(self, "options", self.options or UnitOptions())
        object.__setattr__(self, "more_hints", tuple(self.more_hints or ()))
        if self.start_percent > self.end_percent:
            raise ValueRangeError(
                f"start_percent is {self.start_percent:g} and end_percent {self.end_percent:g}: control would end "
                "before it begins, swap them"
            )


# A tuple: a stack is linked to several nodes, and none of them may change it for the others.
SpecStack: TypeAlias = tuple[ControlSpec, ...]
"""A CNCORE_STACK."""


@dataclass(frozen=True, eq=False)
class Controlled:
    """The units on a conditioning, and the noise levels and shapes of the model."""

    units: ControlStack
    schedule: NoiseSchedule
    config: ModelConfig
