"""What travels between nodes: plain records, the same in every home unless said otherwise.

MODEL, CLIP, VAE and CONTROL_NET are the host's own objects in the editor; headless they are `Model`,
`TextEncoder`, `Vae` and `ControlNetHandle`. CONDITIONING has the host's form everywhere: a list of
[text (1, tokens, width), options].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from ..controlnet_core.checkpoints.detect import Identity
from ..controlnet_core.models.controlnet import ControlNet
from ..controlnet_core.models.vae import AutoencoderKL
from ..controlnet_core.pipeline import DiffusionModel

Conditioning: TypeAlias = list[list[Any]]
Latent: TypeAlias = Mapping[str, Any]
"""{"samples": (B, 4, h, w)}, sometimes with "noise_mask" (B, 1, H, W) and "batch_index" (list of int)."""


@dataclass(frozen=True, eq=False)
class Model:
    """A headless MODEL: the UNet with its schedule, and the file it came from."""

    diffusion: DiffusionModel
    identity: Identity
    path: Path


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
    block_weights: tuple[float, ...] | None = None
    name: str = field(default="")


SpecStack: TypeAlias = tuple[ControlSpec, ...]
"""What the socket CNCORE_STACK carries."""
