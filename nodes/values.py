"""The values on the links between nodes, under both hosts.

CONDITIONING has ComfyUI's form everywhere: a list of [text (1, tokens, width), options]. MODEL, CLIP, VAE and
CONTROL_NET are objects of the host: ComfyUI's own, or those of `standalone.values`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch import Tensor

from ..controlnet_core.errors import ValueRangeError

# Types only: ComfyUI imports this file at its start, which need not load the engine.
if TYPE_CHECKING:
    from ..controlnet_core.config import ModelConfig
    from ..controlnet_core.control.curve import StrengthCurve
    from ..controlnet_core.control.unit import ControlStack, ControlUnit
    from ..controlnet_core.control.weights import BlockWeights
    from ..controlnet_core.diffusion.schedule import NoiseSchedule
    from ..controlnet_core.sample import SampleSettings

Conditioning: TypeAlias = list[list[Any]]
Halves: TypeAlias = tuple[Conditioning, Conditioning]
"""The prompt and the negative prompt: the halves of the guidance."""
# Mappings, since nodes of other packs add keys of their own, which have to survive.
Latent: TypeAlias = Mapping[str, Any]
"""{"samples": (B, 4, h, w)}, not scaled for the UNet; may have "noise_mask" (B, 1, H, W) and "batch_index" (list of
int: the position of each row in the batch that the noise is made for)."""


class SamplerInputs(NamedTuple):
    """What a sampler node reads: a MODEL, the halves of the guidance, a LATENT, and how to sample it."""

    model: Any
    positive: Conditioning
    negative: Conditioning
    latent: Latent
    settings: SampleSettings


def mask_batch(mask: Tensor | None) -> Tensor | None:
    """MASK (B, H, W), or (H, W) as some nodes make it -> (B, H, W) float32; None for none."""
    return None if mask is None else mask.float().reshape(-1, *mask.shape[-2:])


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

    def unit(self, number: int) -> ControlUnit:
        """The unit that was applied as this one; the first is 1. Raises ValueRangeError where there are fewer."""
        if number > len(self.units):
            raise ValueRangeError(
                f"unit is {number}, but the prompt has {len(self.units)} ControlNets: link a prompt with control, and "
                "count from 1"
            )
        return self.units[number - 1]
