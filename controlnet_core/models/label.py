"""SDXL's label vector: the pooled text, and numbers about the picture as sinusoids.

Source: Podell et al. 2023, "SDXL: Improving Latent Diffusion Models", section 2.2 (size and crop conditioning).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import ShapeError
from .layers import timestep_embedding

SINUSOID = 256
"""Width of one number's embedding."""


@dataclass(frozen=True)
class PictureSize:
    """What SDXL is told about the picture that it makes, in pixels.

    height, width: of the picture before it was scaled for training; small ones ask for a blurred picture.
    crop_top, crop_left: how much was cut off. target_height, target_width: of the picture itself.
    """

    height: float
    width: float
    crop_top: float
    crop_left: float
    target_height: float
    target_width: float


@dataclass(frozen=True)
class ScoredSize:
    """What SDXL's refiner is told: as `PictureSize`, and how much people like the picture (0 to 10)."""

    height: float
    width: float
    crop_top: float
    crop_left: float
    aesthetic_score: float


SIZES: Mapping[int, type[PictureSize] | type[ScoredSize]] = MappingProxyType({6: PictureSize, 5: ScoredSize})
"""What a label vector says, by how many numbers have room in it beside the pooled text."""


def size_kind(pooled_width: int, label_dim: int) -> type[PictureSize] | type[ScoredSize]:
    """Which numbers a label vector of this width takes. Raises ShapeError for one of no known model."""
    numbers, rest = divmod(label_dim - pooled_width, SINUSOID)
    if rest or numbers not in SIZES:
        raise ShapeError(
            f"the pooled text is {pooled_width} wide, and the model reads a label vector of {label_dim}, which is "
            f"neither {' nor '.join(f'{pooled_width + n * SINUSOID}' for n in SIZES)}: use the text encoder of the "
            "same checkpoint"
        )
    return SIZES[numbers]


def label_vector(pooled: Tensor, size: PictureSize | ScoredSize) -> Tensor:
    """Pooled text (B, P) and a size -> label vector (B, P + 256 per number), float32."""
    numbers: Sequence[float] = astuple(size)
    sinusoids = timestep_embedding(torch.tensor(numbers, device=pooled.device), SINUSOID).flatten()
    return torch.cat([pooled.float(), sinusoids.expand(pooled.shape[0], -1)], dim=1)
